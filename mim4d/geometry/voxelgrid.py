"""The voxel grid, the only place that converts between voxel indices and metres."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .constant import constant

MAX_VOXELS = 2**24
"""Most voxels that a grid may have: 2**24 of 32 float32 channels take 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """An axis-aligned box in the ego frame, divided into voxels.

    Raises:
        ValueError: If a range is empty or is not a whole number of voxels, or if there are more than ``MAX_VOXELS``.

    >>> VoxelGrid().shape
    (5, 180, 180)
    >>> VoxelGrid(x=(0, 4), y=(-2, 2), z=(0, 2), voxel=(2, 2, 2)).shape
    (1, 2, 2)
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
        if voxels > MAX_VOXELS:
            voxel = " ".join(map(str, self.voxel))
            raise ValueError(f"grid.voxel = {voxel} m makes {voxels:.3g} voxels; at most {MAX_VOXELS:.3g} are allowed")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (Z, Y, X), in the order of a volume's last dimensions."""
        sizes = [round((r[1] - r[0]) / s) for r, s in zip((self.x, self.y, self.z), self.voxel, strict=True)]
        return sizes[2], sizes[1], sizes[0]

    def low(self, like: Tensor) -> Tensor:
        """Low corner of the box, (x, y, z) [3] in metres, on the device and in the dtype of ``like``."""
        return constant([self.x[0], self.y[0], self.z[0]], like)

    def high(self, like: Tensor) -> Tensor:
        """High corner of the box, (x, y, z) [3] in metres, on the device and in the dtype of ``like``."""
        return constant([self.x[1], self.y[1], self.z[1]], like)

    def centers(self, like: Tensor) -> Tensor:
        """Voxel centres: low + (i + 0.5) voxel for index i of each axis.

        Args:
            like: A tensor that has the device and dtype of the result.

        Returns:
            [Z, Y, X, 3] as (x, y, z), metres in the ego frame.

        >>> grid = VoxelGrid(x=(0, 4), y=(-2, 2), z=(0, 2), voxel=(2, 2, 2))
        >>> grid.centers(torch.zeros(1))[0, 0]
        tensor([[ 1., -1.,  1.],
                [ 3., -1.,  1.]])
        """
        axes = [
            low + (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * size
            for low, count, size in zip((self.x[0], self.y[0], self.z[0]), self.shape[::-1], self.voxel, strict=True)
        ]
        z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")  # [Z, Y, X]
        return torch.stack([x, y, z], dim=-1)  # [Z, Y, X, 3]

    def index_of(self, points: Tensor) -> Tensor:
        """Continuous voxel index of points: (point - low) / voxel - 0.5, so the centre of voxel i has index i.

        Args:
            points: [..., 3], metres in the ego frame.

        Returns:
            [..., 3] as (x, y, z), the reverse of a volume's axes.

        >>> grid = VoxelGrid(x=(0, 4), y=(-2, 2), z=(0, 2), voxel=(2, 2, 2))
        >>> grid.index_of(torch.tensor([[3.0, -1.0, 1.0], [0.0, -2.0, 0.0]]))
        tensor([[ 1.0000,  0.0000,  0.0000],
                [-0.5000, -0.5000, -0.5000]])
        """
        return (points - self.low(points)) / constant(self.voxel, points) - 0.5

    def contains(self, points: Tensor) -> Tensor:
        """Return whether points lie in the box, which includes its low faces but not its high faces.

        Args:
            points: [..., 3], metres in the ego frame.

        Returns:
            [...] bool.

        >>> grid = VoxelGrid(x=(0, 4), y=(-2, 2), z=(0, 2), voxel=(2, 2, 2))
        >>> grid.contains(torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
        tensor([ True, False])
        """
        return ((points >= self.low(points)) & (points < self.high(points))).all(-1)
