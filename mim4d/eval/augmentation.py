"""Augmentation in BEV: rotate the ego frame about z and mirror it, for cameras and labels alike.

As BEVDet's augmentation of the bird's-eye view (arXiv 2112.11790, section 3.2), but applied before the view transform:
features and labels fall into exactly the same cells, and images do not change, so that the maps of a frozen backbone
can be cached.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..clip import Clip
from ..geometry import VoxelGrid


@dataclass(frozen=True)
class BEVAugmentation:
    """The transform ``augmented_from_ego`` of x and y."""

    matrix: NDArray[np.float64]
    """[2, 2], orthogonal; its determinant is -1 if it mirrors."""

    @classmethod
    def none(cls) -> "BEVAugmentation":
        """Return the identity."""
        return cls(np.eye(2))

    @classmethod
    def draw(cls, seed: int, most: float = 22.5) -> "BEVAugmentation":
        """Mirror x and y with a probability of 1/2 each, and rotate by -``most`` to ``most`` degrees."""
        rng = np.random.default_rng(seed)
        mirror = np.diag(rng.choice((-1.0, 1.0), 2))
        angle = np.radians(rng.uniform(-most, most))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return cls(rotation @ mirror)

    def points(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transform points or vectors [..., 2]."""
        return xy @ self.matrix.T

    def clip(self, clip: Clip) -> Clip:
        """Transform the cameras of a clip. A mirrored camera has no rigid pose, but projects like any other."""
        full = torch.eye(4)
        full[:2, :2] = torch.from_numpy(self.matrix)
        return replace(clip, ego_from_camera=full @ clip.ego_from_camera)

    def boxes(self, boxes: NDArray[np.void]) -> NDArray[np.void]:
        """Transform boxes [N] of :data:`mim4d.eval.labels.BOX`."""
        augmented = boxes.copy()
        augmented["center"][:, :2] = self.points(boxes["center"][:, :2])
        augmented["velocity"] = self.points(boxes["velocity"])
        heading = self.points(np.stack([np.cos(boxes["yaw"]), np.sin(boxes["yaw"])], axis=-1))
        augmented["yaw"] = np.arctan2(heading[:, 1], heading[:, 0])
        return augmented

    def raster(self, source: NDArray[np.uint8], source_grid: VoxelGrid, grid: VoxelGrid) -> NDArray[np.uint8]:
        """Sample the nearest cell of ``source`` [Y', X'] on ``source_grid`` for each cell [Y, X] of ``grid``.

        ``source_grid`` has to contain ``grid`` at every rotation.
        """
        centers = grid.centers(torch.zeros(1, dtype=torch.float64))[0, ..., :2].numpy()  # [Y, X, 2]
        points = centers @ self.matrix  # in the ego frame: the inverse of an orthogonal matrix is its transpose
        low = np.array([source_grid.x[0], source_grid.y[0]])
        column, row = np.moveaxis(np.floor((points - low) / source_grid.voxel[:2]).astype(int), -1, 0)
        return source[row, column]
