"""The voxel grid: the only place where an index becomes a metre."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .constant import constant

MOST_VOXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """An axis-aligned box in the ego frame, cut into voxels.

    Raises:
        ValueError: If a range is empty or is not a whole number of voxels, or there are more than MOST_VOXELS.
    """

    x: tuple[float, float] = (-54.0, 54.0)
    """Range forward, metres in the ego frame."""
    y: tuple[float, float] = (-54.0, 54.0)
    """Range to the left, metres in the ego frame."""
    z: tuple[float, float] = (-3.2, 4.8)
    """Range up, metres above the ground (the published -5 to 3 m counts from the LiDAR, 1.8 m up)."""
    voxel: tuple[float, float, float] = (0.6, 0.6, 1.6)
    """Size of a voxel along x, y, z, metres."""

    def __post_init__(self) -> None:
        voxels = 1.0
        for name, (low, high), size in zip("xyz", (self.x, self.y, self.z), self.voxel, strict=True):
            count = (high - low) / size if size > 0 else 0
            if count < 1 or abs(count - round(count)) > 1e-3:
                raise ValueError(f"grid.{name} = {low:g} {high:g} m is not a whole number of voxels of {size:g} m")
            voxels *= count
        if voxels > MOST_VOXELS:
            raise ValueError(f"grid.voxel = {' '.join(map(str, self.voxel))} m makes {voxels:.3g} voxels: too many")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (Z, Y, X), as the last dimensions of a volume."""
        sizes = [round((r[1] - r[0]) / s) for r, s in zip((self.x, self.y, self.z), self.voxel, strict=True)]
        return sizes[2], sizes[1], sizes[0]

    def low(self, like: Tensor) -> Tensor:
        """The box's low corner (x, y, z) [3] in metres, on the device and in the dtype of ``like``."""
        return constant([self.x[0], self.y[0], self.z[0]], like)

    def high(self, like: Tensor) -> Tensor:
        """The box's high corner (x, y, z) [3] in metres, on the device and in the dtype of ``like``."""
        return constant([self.x[1], self.y[1], self.z[1]], like)

    def centers(self, like: Tensor) -> Tensor:
        """Voxel centres [Z, Y, X, 3] as (x, y, z) metres in the ego frame."""
        axes = [
            low + (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * size
            for low, count, size in zip((self.x[0], self.y[0], self.z[0]), self.shape[::-1], self.voxel, strict=True)
        ]
        z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        return torch.stack([x, y, z], dim=-1)

    def index_of(self, points: Tensor) -> Tensor:
        """Continuous index (x, y, z) [..., 3] of points in metres; the centre of voxel i has index i."""
        return (points - self.low(points)) / constant(self.voxel, points) - 0.5

    def contains(self, points: Tensor) -> Tensor:
        """Which points [..., 3] (metres) lie in the box: [...] bool."""
        return ((points >= self.low(points)) & (points < self.high(points))).all(-1)
