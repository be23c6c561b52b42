"""Augmentation in BEV: the ego frame turned about z, and perhaps mirrored, under the cameras and the labels alike.

As BEVDet's augmentation of the bird's-eye view (arXiv 2112.11790, section 3.2), but applied before the change of
view: features and labels meet in the same cells exactly, and images stay as they are, so those of a frozen backbone can
be kept.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..clip import Clip
from ..geometry import VoxelGrid


@dataclass(frozen=True)
class BEVAugmentation:
    """``turned_from_ego`` for x and y."""

    matrix: NDArray[np.float64]
    """[2, 2], orthogonal; its determinant is -1 where it mirrors."""

    @classmethod
    def none(cls) -> "BEVAugmentation":
        """The one that leaves everything as it is."""
        return cls(np.eye(2))

    @classmethod
    def draw(cls, seed: int, most: float = 22.5) -> "BEVAugmentation":
        """Mirrored along x and y half of the time each, and turned by up to ``most`` degrees either way."""
        rng = np.random.default_rng(seed)
        mirror = np.diag(rng.choice((-1.0, 1.0), 2))
        angle = np.radians(rng.uniform(-most, most))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return cls(rotation @ mirror)

    def points(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points or vectors [..., 2]."""
        return xy @ self.matrix.T

    def clip(self, clip: Clip) -> Clip:
        """The clip with its cameras turned. A mirrored camera is no rigid transform, but projects as any other."""
        full = torch.eye(4)
        full[:2, :2] = torch.from_numpy(self.matrix)
        return replace(clip, ego_from_camera=full @ clip.ego_from_camera)

    def boxes(self, boxes: NDArray[np.void]) -> NDArray[np.void]:
        """Boxes [N] of :data:`mim4d.eval.labels.BOX`."""
        turned = boxes.copy()
        turned["center"][:, :2] = self.points(boxes["center"][:, :2])
        turned["velocity"] = self.points(boxes["velocity"])
        heading = self.points(np.stack([np.cos(boxes["yaw"]), np.sin(boxes["yaw"])], axis=-1))
        turned["yaw"] = np.arctan2(heading[:, 1], heading[:, 0])
        return turned

    def raster(self, source: NDArray[np.uint8], source_grid: VoxelGrid, grid: VoxelGrid) -> NDArray[np.uint8]:
        """Cells [Y, X] of ``grid`` in the turned frame, each the nearest of ``source`` [Y', X'] on ``source_grid``.

        ``source_grid`` has to reach beyond ``grid`` wherever it may be turned.
        """
        middles = grid.centers(torch.zeros(1, dtype=torch.float64))[0, ..., :2].numpy()
        places = middles @ self.matrix  # the inverse: it is orthogonal
        low = np.array([source_grid.x[0], source_grid.y[0]])
        column, row = np.moveaxis(np.floor((places - low) / source_grid.voxel[:2]).astype(int), -1, 0)
        return source[row, column]
