"""4. The lift: image features of all cameras -> one voxel volume a frame, in that frame's ego frame.

Lift-Splat-Shoot (arXiv 2008.05711, section 3): every pixel of the feature map gives each depth bin a share of its
context vector, and voxels sum what falls into them. Channels are reduced *before* the lift, so that neither the lifted
points nor the 3D convolution is wide.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..bounds import check_bounds
from ..clip import Clip
from ..geometry import VoxelGrid, constant, invert, project, transform, unproject
from .neck import group_norm


@dataclass(frozen=True, kw_only=True)
class LiftConfig:
    """Depth bins and widths."""

    depth_range: tuple[float, float] = (1.0, 60.0)
    """Nearest and farthest depth along the optical axis, metres."""
    depth_step: float = 0.5
    """Depth of a bin, metres."""
    depth_channels: int = 256
    """Width of the depth network."""
    channels: int = 32
    """Channels C of the volume."""

    def __post_init__(self) -> None:
        near, far = self.depth_range
        if not self.depth_step > 0:
            raise ValueError(f"lift.depth_step = {self.depth_step} must be more than 0")
        if not 0 <= near < far:
            raise ValueError(f"lift.depth_range = {near:g} {far:g} must rise from 0 or more")
        bins = (far - near) / self.depth_step
        if round(bins) < 1 or abs(bins - round(bins)) > 1e-6 * bins:
            raise ValueError(f"lift.depth_range = {near:g} {far:g} is not a whole number of {self.depth_step:g} m bins")
        if bins > 4096:
            raise ValueError(f"lift.depth_step = {self.depth_step} makes {bins:.0f} bins; at most are 4096")
        check_bounds(self, {"depth_channels": (2, 4096), "channels": (1, 4096)}, "lift.")

    @property
    def num_bins(self) -> int:
        """D."""
        return round((self.depth_range[1] - self.depth_range[0]) / self.depth_step)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385), with group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class ASPP(nn.Module):
    """Parallel dilated convolutions and the image's mean (arXiv 1706.05587, section 3.3): context for depth."""

    def __init__(self, channels: int, dilations: tuple[int, ...] = (1, 6, 12, 18)) -> None:
        super().__init__()
        mid = channels // 2
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, mid, 1 if d == 1 else 3, padding=0 if d == 1 else d, dilation=d) for d in dilations
        )
        self.image = nn.Conv2d(channels, mid, 1)
        self.join = nn.Sequential(nn.Conv2d(mid * (len(dilations) + 1), channels, 1, bias=False), group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same."""
        mean = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return F.relu(self.join(torch.cat([F.relu(branch(x)) for branch in self.branches] + [F.relu(mean)], dim=1)))


class Lift(nn.Module):
    """Features of V cameras -> the volume of each frame."""

    def __init__(self, config: LiftConfig, in_channels: int, stride: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.config, self.stride, self.grid = config, stride, grid
        c = config.depth_channels
        self.depth_net = nn.Sequential(
            nn.Conv2d(in_channels, c, 3, padding=1, bias=False),
            group_norm(c),
            nn.ReLU(),
            *(ResidualBlock(c) for _ in range(3)),
            ASPP(c),
            nn.Conv2d(c, config.num_bins, 1),
        )
        self.context = nn.Conv2d(in_channels, config.channels, 1)
        self.refine = nn.Sequential(
            nn.Conv3d(config.channels, config.channels, 3, padding=1, bias=False),
            group_norm(config.channels),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, clip: Clip) -> Tensor:
        """Lift, splat, and one 3D convolution.

        Args:
            features: [B, T, V, C_in, h, w].
            clip: The clip they came from, for its geometry.

        Returns:
            Volumes [B, T, C, Z, Y, X].
        """
        b, t = features.shape[:2]
        flat = features.flatten(0, 2)
        depth = self.depth_net(flat).float().softmax(1)
        context = self.context(flat).float()
        volume = splat(depth, context, self.voxels(clip, features.shape[-2:]), b * t, self.grid)
        # In float32 whatever autocast says: torch's bfloat16 Conv3d has wrong weight gradients on some CPUs.
        with torch.autocast(volume.device.type, enabled=False):
            volume = self.refine(volume)
        return rearrange(volume, "(b t) c z y x -> b t c z y x", b=b)

    def voxels(self, clip: Clip, size: tuple[int, ...] | torch.Size) -> Tensor:
        """The voxel of every point of every camera's frustum.

        Args:
            clip: For intrinsics and camera poses.
            size: (h, w) of the feature map.

        Returns:
            [B*T, V, D, h*w] int64 into Z*Y*X; -1 for points outside the grid.
        """
        near, step, bins = self.config.depth_range[0], self.config.depth_step, self.config.num_bins
        like = clip.intrinsics
        ys = (torch.arange(size[0], device=like.device) + 0.5) * self.stride
        xs = (torch.arange(size[1], device=like.device) + 0.5) * self.stride
        depths = near + (torch.arange(bins, device=like.device) + 0.5) * step
        d, y, x = torch.meshgrid(depths, ys, xs, indexing="ij")
        pixels = torch.stack([x, y], dim=-1).flatten(0, 2)  # [D*h*w, 2]
        points = transform(clip.ego_from_camera, unproject(like, pixels, d.flatten()))  # [B, T, V, D*h*w, 3]
        # Voxel i reaches from its low face to the next one's; what is inside is decided by the very same numbers.
        index = (self.grid.index_of(points) + 0.5).floor().long()
        inside = ((index >= 0) & (index < constant(self.grid.shape[::-1], index))).all(-1)
        _, y_count, x_count = self.grid.shape
        flat = (index[..., 2] * y_count + index[..., 1]) * x_count + index[..., 0]
        flat = torch.where(inside, flat, -1)
        return flat.flatten(0, 1).unflatten(-1, (bins, -1))


class Reach(NamedTuple):
    """Voxels in view of the cameras at some distance, and how many of them a lift reaches."""

    low: float
    """Metres."""
    high: float
    """Metres; infinity for the last band."""
    in_view: int
    reached: int


def reach(lift: Lift, clip: Clip, edges: tuple[float, ...] = (20.0, 35.0)) -> list[Reach]:
    """Count the voxels in view that a lift can put features into: a coarse feature map leaves gaps far away.

    A voxel is in view if its centre falls on some camera's image at a depth within the lift's range. The lift reaches
    it if it holds the centre of some feature cell of any camera at the middle of some depth bin.

    Args:
        lift: Its stride, depth bins and grid count, its weights do not.
        clip: For the calibration of the first clip's current frame.
        edges: Bounds of the bands of distance: horizontally, from the ego frame's origin to the voxel's centre, metres.

    Returns:
        A count for each band from near to far, without those that have no voxel in view.
    """
    clip = replace(clip, intrinsics=clip.intrinsics[:1, -1:], ego_from_camera=clip.ego_from_camera[:1, -1:])
    height, width = clip.image_size
    centers = lift.grid.centers(clip.intrinsics).flatten(0, 2)  # [Z*Y*X, 3]
    near, far = lift.config.depth_range
    pixels, depth = project(clip.intrinsics, transform(invert(clip.ego_from_camera), centers))  # [1, 1, V, Z*Y*X, 2]
    u, v = pixels.unbind(-1)
    on_image = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth >= near) & (depth < far)
    in_view = on_image.flatten(0, 2).any(0)

    filled = lift.voxels(clip, (height // lift.stride, width // lift.stride)).flatten()
    reached = torch.zeros_like(in_view)
    reached[filled[filled >= 0]] = True

    distance = centers[:, :2].norm(dim=-1)
    bands = []
    for low, high in pairwise((0.0, *edges, math.inf)):
        here = in_view & (distance >= low) & (distance < high)
        bands.append(Reach(low, high, int(here.sum()), int((here & reached).sum())))
    return [band for band in bands if band.in_view]


def reach_line(bands: list[Reach]) -> str:
    """What :func:`reach` found, for the log of a run."""
    if not bands:
        return "warning: no voxel is in view of any camera: check the calibration, `method.grid` and `method.lift`"
    shares = [f"{band.reached / band.in_view:.0%} {_distance(band)}".replace("%", " %") for band in bands]
    return f"lift: reaches {', '.join(shares)} of the voxels in view (more with finer `method.neck.stages`)"


def _distance(band: Reach) -> str:
    if not band.low:
        return f"within {band.high:g} m"
    return f"beyond {band.low:g} m" if math.isinf(band.high) else f"from {band.low:g} to {band.high:g} m"


def splat(depth: Tensor, context: Tensor, voxels: Tensor, volumes: int, grid: VoxelGrid) -> Tensor:
    """Sum depth share x context into the voxels they fall into (LSS section 3.2).

    Args:
        depth: [F*V, D, h, w], each pixel's shares over depth bins.
        context: [F*V, C, h, w].
        voxels: [F, V, D, h*w] int64 into Z*Y*X, -1 outside.
        volumes: F, how many volumes (frames).
        grid: Their shape.

    Returns:
        [F, C, Z, Y, X], laid out with channels last in memory: every later stage reads whole voxels.
    """
    count = grid.shape[0] * grid.shape[1] * grid.shape[2]
    first = torch.arange(volumes, device=voxels.device)[:, None, None, None] * count
    # What falls outside goes to one more row at the end, which is cut off: no boolean indexing, so no host sync.
    rows = torch.where(voxels >= 0, voxels + first, volumes * count).flatten()
    shares = rearrange(depth, "n d h w -> n d (h w) 1") * rearrange(context, "n c h w -> n 1 (h w) c")
    table = shares.new_zeros(volumes * count + 1, context.shape[1]).index_add(0, rows, shares.flatten(0, 2))
    return table[:-1].view(volumes, *grid.shape, -1).permute(0, 4, 1, 2, 3)
