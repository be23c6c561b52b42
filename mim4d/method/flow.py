"""8c. BEV flow: the velocity of what the warp by the car's own motion does not explain.

The warp aligns what stands still. A moving thing is found in another frame only if its point, at the depth of the lift,
also moves by its velocity times the time gap. The photometric error of :mod:`mim4d.method.consistency` supervises this
velocity without labels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..clip import Clip
from ..geometry import VoxelGrid, constant, exact, invert, transform
from .consistency import at_scale, mean_over, pixel_points, source_errors, source_images, source_poses
from .neck import group_norm

SCALES = (4, 8)
"""Sizes of the images that are compared, as fractions of the whole size. What moves is displaced far: on the synthetic
world, on the way from standing still to the true velocity, the error first rises at half and at quarter size, and falls
all the way at an eighth."""
REACH = 4
"""Largest shift between two frames at which their cells are compared, cells."""
CHANNELS = 16
"""Channels of the cells that are compared."""
WIDTH = 64
"""Channels of the head's hidden layers."""
SLOWNESS = 0.001
"""Photometric error that a flow of 1 m/s must save at a pixel: what stands still has no flow."""


class FlowHead(nn.Module):
    """Compare a frame's volume with the warped other ones, and predict a velocity per BEV cell.

    For each other frame s, at the time gap g_s, the head predicts the shift of each cell's content and a weight::

        flow = sum over s of softmax_s(weight_s) shift_s / g_s

    A new head returns zeros.

    Args:
        channels: C of the volumes.
        grid: Voxels of the volumes.
    """

    def __init__(self, channels: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Sequential(nn.Conv2d(channels * grid.shape[0], CHANNELS, 1, bias=False), group_norm(CHANNELS))
        compared = 2 * CHANNELS + (2 * REACH + 1) ** 2
        self.hidden = nn.Sequential(
            *(nn.Conv2d(compared, WIDTH, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()),
        )
        self.last = nn.Conv2d(WIDTH, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, volumes: Tensor, warped: Tensor, gaps: Tensor) -> Tensor:
        """Predict the velocities at the times of the volumes.

        Args:
            volumes: [G, C, Z, Y, X].
            warped: [G, S, C, Z, Y, X], the other frames in the ego frames of ``volumes``.
            gaps: [G, S] seconds, source minus target.

        Returns:
            [G, 2, Y, X] float32, over ground, (x, y) in m/s in the ego frames of ``volumes``.
        """
        g, s = gaps.shape
        own = self.embed(rearrange(volumes, "g c z y x -> g (z c) y x"))  # [G, E, Y, X]
        others = self.embed(rearrange(warped, "g s c z y x -> (g s) (z c) y x"))  # [G*S, E, Y, X]
        own = own.repeat_interleave(s, dim=0)  # [G*S, E, Y, X]
        compared = torch.cat([own, others, similarities(own, others, REACH)], dim=1)
        found = self.last(self.hidden(compared)).float().unflatten(0, (g, s))  # [G, S, 3, Y, X]
        cells, weight = found.split((2, 1), dim=2)
        shifts = cells * constant(self.grid.voxel[:2], cells)[:, None, None]  # [G, S, 2, Y, X], metres
        return (weight.softmax(1) * shifts / gaps[:, :, None, None, None]).sum(1)


def similarities(maps: Tensor, others: Tensor, reach: int) -> Tensor:
    """Compare each cell of a map with the cells around it in another map.

    Args:
        maps: [N, E, Y, X].
        others: [N, E, Y, X]; cells outside are 0.
        reach: Largest shift along each axis, cells.

    Returns:
        [N, (2 reach + 1)^2, Y, X], the mean over E of the product with the cell that is shifted by (dy, dx), which
        both run from -reach to reach, dx faster.

    >>> similarities(torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0, 5.0]).view(1, 1, 1, 2), 1)[0, 3:6]
    tensor([[[ 0.,  6.]],
    <BLANKLINE>
            [[ 3., 10.]],
    <BLANKLINE>
            [[ 5.,  0.]]])
    """
    height, width = maps.shape[-2:]
    padded = F.pad(others, (reach, reach, reach, reach))
    shifts = range(2 * reach + 1)
    products = [(maps * padded[..., dy : dy + height, dx : dx + width]).mean(1) for dy in shifts for dx in shifts]
    return torch.stack(products, dim=1)


def flow_loss(flow: Tensor, log_depth: Tensor, clip: Clip, grid: VoxelGrid) -> Tensor:
    """Compute the photometric error of images whose points move by the flow, and the price of the flow.

    The point that a pixel shows, at the depth of the lift, has the velocity of its BEV cell. In another frame of the
    same camera, a time gap g later, it has moved by velocity times g. With e_s(pixel) the photometric error against
    frame s at the moved point::

        loss = mean over scales and pixels of (min over s of e_s + SLOWNESS * speed)

    Other than in :func:`mim4d.method.consistency.consistency`, what looks the same in all frames counts: it moves as
    the car does, or nothing moves.

    Args:
        flow: [B, T, 2, Y, X], (x, y) in m/s in the ego frame of each frame.
        log_depth: [B, T, V, h, w], logarithm of the depth along the optical axis in metres.
        clip: For images, calibration, poses and times; T >= 2.
        grid: The voxels, whose columns are the cells.

    Returns:
        The loss of each clip [B].
    """
    sources = source_images(clip)[:, :, :, : clip.num_frames - 1]  # [B, T, V, S, 2]
    poses = _source_from_ego(clip, sources)  # [B, T, V, S, 4, 4]
    times = clip.times
    gaps = times.gather(1, sources[:, :, 0, :, 0].flatten(1)).view(*times.shape, -1) - times[..., None]  # [B, T, S]
    losses = []
    for scale in SCALES:
        images, depth, intrinsics = at_scale(log_depth, clip, scale)
        points = transform(clip.ego_from_camera, pixel_points(depth, intrinsics))  # [B, T, V, H*W, 3]
        velocity = flow_at(flow, points, grid)  # [B, T, V, H*W, 2]
        motion = F.pad(velocity, (0, 1))[:, :, :, None] * gaps[:, :, None, :, None, None]  # [B, T, V, S, H*W, 3]
        moved = points[:, :, :, None] + motion
        error = source_errors(images, moved, images, intrinsics, sources, poses).amin(3)  # [B, T, V, H-2, W-2]
        speed = velocity.norm(dim=-1).view_as(depth)[..., 1:-1, 1:-1]
        losses.append(mean_over(error + SLOWNESS * speed, error.isfinite()))
    return torch.stack(losses).mean(0)


@exact
def _source_from_ego(clip: Clip, sources: Tensor) -> Tensor:
    """Return the transforms [B, T, V, S, 4, 4] from the ego frame of every frame to its source cameras."""
    return source_poses(clip, sources) @ invert(clip.ego_from_camera)[:, :, :, None]


def flow_at(flow: Tensor, points: Tensor, grid: VoxelGrid) -> Tensor:
    """Interpolate the flow between the centres of BEV cells.

    Args:
        flow: [B, T, 2, Y, X].
        points: [B, T, V, P, 3] in the ego frames, metres.
        grid: The voxels, whose columns are the cells.

    Returns:
        [B, T, V, P, 2]; 0 outside the grid.

    >>> grid = VoxelGrid(x=(0, 4), y=(0, 2), z=(0, 2), voxel=(2, 2, 2))
    >>> flow = torch.tensor([[10.0, 20.0], [0.0, 4.0]]).view(1, 1, 2, 1, 2)
    >>> flow_at(flow, torch.tensor([2.0, 1.0, 0.5]).view(1, 1, 1, 1, 3), grid).flatten()
    tensor([15.,  2.])
    """
    size = constant(grid.shape[:0:-1], points)  # (X, Y)
    coordinates = (grid.index_of(points)[..., :2] + 0.5) / size * 2 - 1  # [B, T, V, P, 2], -1 to 1 within the grid
    found = F.grid_sample(flow.flatten(0, 1), coordinates.flatten(0, 1), padding_mode="zeros", align_corners=False)
    return rearrange(found, "(b t) c v p -> b t v p c", b=len(flow))
