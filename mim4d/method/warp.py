"""5. The warp: volumes of other frames as the target's ego frame would see them, if the world stood still."""

import torch.nn.functional as F
from torch import Tensor

from ..geometry import VoxelGrid, constant, transform


def warp(volumes: Tensor, source_from_target: Tensor, grid: VoxelGrid) -> Tensor:
    """Resample volumes at the target's voxel centres.

    The centres are taken *in metres* to the source's ego frame and only then to sampling coordinates; what lies
    outside the source's range is zero.

    Args:
        volumes: [B, S, C, Z, Y, X], each in its source's ego frame.
        source_from_target: [B, S, 4, 4], metres.
        grid: The voxels of sources and target alike.

    Returns:
        [B, S, C, Z, Y, X] in the target's ego frame, trilinearly interpolated.
    """
    b, s = volumes.shape[:2]
    centers = grid.centers(source_from_target)  # [Z, Y, X, 3] metres, target
    points = transform(source_from_target, centers.flatten(0, 2))  # [B, S, Z*Y*X, 3] metres, source
    size = constant(grid.shape[::-1], points)  # (X, Y, Z), the order of grid_sample's coordinates
    coordinates = (grid.index_of(points) + 0.5) / size * 2 - 1
    warped = F.grid_sample(
        volumes.flatten(0, 1).float(),
        coordinates.view(b * s, *grid.shape, 3),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return warped.unflatten(0, (b, s))
