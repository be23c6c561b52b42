"""5. The warp: resample the volumes of other frames in the target's ego frame, as if the world stood still."""

import torch.nn.functional as F
from torch import Tensor

from ..geometry import VoxelGrid, constant, transform


def warp(volumes: Tensor, source_from_target: Tensor, grid: VoxelGrid) -> Tensor:
    """Resample volumes at the voxel centres of the target frame: warped(x) = volume(source_from_target x).

    The centres x are transformed *in metres* to the ego frame of the source and only then converted to sampling
    coordinates. Points outside the range of the source get zeros.

    Args:
        volumes: [G, S, C, Z, Y, X], each in the ego frame of its source.
        source_from_target: [G, S, 4, 4], metres.
        grid: The voxels of both the sources and the target.

    Returns:
        [G, S, C, Z, Y, X] float32 in the ego frame of the target, trilinearly interpolated.

    A target that is one voxel ahead of its source sees everything one voxel nearer:

    >>> grid = VoxelGrid(x=(0, 8), y=(0, 2), z=(0, 2), voxel=(2, 2, 2))
    >>> volumes = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 1, 4)
    >>> source_from_target = torch.eye(4).view(1, 1, 4, 4)
    >>> warp(volumes, source_from_target, grid).flatten()
    tensor([1., 2., 3., 4.])
    >>> source_from_target[..., 0, 3] = 2
    >>> warp(volumes, source_from_target, grid).flatten()
    tensor([2., 3., 4., 0.])
    """
    g, s = volumes.shape[:2]
    centers = grid.centers(source_from_target)  # [Z, Y, X, 3], metres in the target's ego frame
    points = transform(source_from_target, centers.flatten(0, 2))  # [G, S, Z*Y*X, 3], metres in the source's
    size = constant(grid.shape[::-1], points)  # (X, Y, Z), the order of grid_sample's coordinates
    coordinates = (grid.index_of(points) + 0.5) / size * 2 - 1  # -1 to 1 within the box
    warped = F.grid_sample(
        volumes.flatten(0, 1).float(),  # [G*S, C, Z, Y, X]
        coordinates.view(g * s, *grid.shape, 3),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return warped.unflatten(0, (g, s))
