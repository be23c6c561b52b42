"""4. The lift: from the image features of all cameras to one voxel volume per frame, in the ego frame of that frame.

Lift-Splat-Shoot (arXiv 2008.05711, section 3): each pixel of a feature map distributes its context vector c over the
depth bins in proportion to the probabilities p of a depth network, and a voxel sums the points that fall into it::

    volume(voxel) = sum over cameras, pixels and bins whose point lies in the voxel of p(pixel, bin) c(pixel)

Channels are reduced *before* the lift, so that neither the lifted points nor the 3D convolution is wide. The depth
network also sees through which camera a pixel looks, and where: a lens of half the focal length shows a thing at half
the size, and no image tells which of the two it is.
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


VIEW_CHANNELS = 4
"""Channels of :meth:`Lift.view`."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm and a shortcut (arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to maps [N, C, h, w]; the shape stays the same."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class ASPP(nn.Module):
    """Parallel dilated convolutions and the mean of the map (arXiv 1706.05587, section 3.3): wide context for depth."""

    def __init__(self, channels: int, dilations: tuple[int, ...] = (1, 6, 12, 18)) -> None:
        super().__init__()
        mid = channels // 2
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, mid, 1 if d == 1 else 3, padding=0 if d == 1 else d, dilation=d) for d in dilations
        )
        self.image = nn.Conv2d(channels, mid, 1)
        self.join = nn.Sequential(nn.Conv2d(mid * (len(dilations) + 1), channels, 1, bias=False), group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branches to maps [N, C, h, w]; the shape stays the same."""
        mean = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])  # [N, C/2, h, w]
        return F.relu(self.join(torch.cat([F.relu(branch(x)) for branch in self.branches] + [F.relu(mean)], dim=1)))


class Lift(nn.Module):
    """The lift of V cameras' feature maps to one volume per frame.

    Args:
        config: Depth bins and widths.
        in_channels: Channels of the feature maps, C_in.
        stride: Stride of the feature maps, pixels.
        grid: Voxels of the volumes.
    """

    def __init__(self, config: LiftConfig, in_channels: int, stride: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.config, self.stride, self.grid = config, stride, grid
        c = config.depth_channels
        self.depth_net = nn.Sequential(
            nn.Conv2d(in_channels + VIEW_CHANNELS, c, 3, padding=1, bias=False),
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

    def depth(self, features: Tensor, clip: Clip) -> Tensor:
        """Compute the probabilities of the depth bins.

        Args:
            features: [B, T, V, C_in, h, w].
            clip: The clips of the features, for their intrinsics and camera poses.

        Returns:
            [B, T, V, D, h, w] float32, with sum 1 over D.
        """
        view = self.view(clip, features.shape[-2:]).to(features.dtype)  # [B, T, V, 4, h, w]
        x = torch.cat([features, view], dim=3).flatten(0, 2)  # [N, C_in + 4, h, w]
        probability = self.depth_net(x).float().softmax(1)  # [N, D, h, w]
        return probability.unflatten(0, features.shape[:3])

    def view(self, clip: Clip, size: tuple[int, ...] | torch.Size) -> Tensor:
        """Describe through which camera every pixel of the feature maps looks, and in which direction.

        Where the ground is flat, its depth is the camera's height divided by minus the slope upwards. The size of a
        thing in the image is proportional to the focal length.

        Args:
            clip: For intrinsics and camera poses.
            size: (h, w) of the feature maps.

        Returns:
            [B, T, V, 4, h, w]: the slopes of the pixel's ray to the right in the camera frame and upwards in the ego
            frame, per metre of depth; the camera's height in the ego frame in metres; log(focal length / image width).
        """
        intrinsics, pose = clip.intrinsics, clip.ego_from_camera
        pixels = self._pixels(intrinsics, size)  # [h*w, 2]
        rays = unproject(intrinsics, pixels, torch.ones_like(pixels[:, 0]))  # [B, T, V, h*w, 3], at a depth of 1 m
        up = transform(pose, rays)[..., 2] - pose[..., 2, 3, None]  # [B, T, V, h*w]
        height = pose[..., 2, 3, None].expand_as(up)
        focal = (intrinsics[..., 0, 0, None] / clip.image_size[1]).log().expand_as(up)
        return torch.stack([rays[..., 0], up, height, focal], dim=3).unflatten(-1, size)

    def _pixels(self, like: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
        """Return the image positions of a feature map's pixel centres, [h*w, 2]."""
        rows = (torch.arange(size[0], device=like.device) + 0.5) * self.stride
        columns = (torch.arange(size[1], device=like.device) + 0.5) * self.stride
        v, u = torch.meshgrid(rows, columns, indexing="ij")  # [h, w]
        return torch.stack([u, v], dim=-1).flatten(0, 1).to(like.dtype)

    def log_depth(self, depth: Tensor) -> Tensor:
        """Compute the mean of log depth: exp of it is the geometric mean of the bins' depths.

        The mean of depth itself would be drawn far away by a wide distribution, the mean of inverse depth towards the
        camera.

        Args:
            depth: [B, T, V, D, h, w], the probabilities of the depth bins.

        Returns:
            [B, T, V, h, w], the depth in metres along the optical axis.
        """
        return (depth * self.bins(depth).log()[:, None, None]).sum(3)

    def bins(self, like: Tensor) -> Tensor:
        """Return the middles of the depth bins, near + (d + 0.5) step: [D] on the device of ``like``, metres."""
        near, step = self.config.depth_range[0], self.config.depth_step
        return near + (torch.arange(self.config.num_bins, device=like.device) + 0.5) * step

    def forward(self, features: Tensor, depth: Tensor, clip: Clip) -> Tensor:
        """Lift, splat, and apply one 3D convolution.

        Args:
            features: [B, T, V, C_in, h, w].
            depth: [B, T, V, D, h, w], the probabilities of the depth bins.
            clip: The clips of the features, for their intrinsics and camera poses.

        Returns:
            Volumes [B, T, C, Z, Y, X].
        """
        b, t = features.shape[:2]
        context = self.context(features.flatten(0, 2)).float()  # [N, C, h, w]
        voxels = self.voxels(clip, features.shape[-2:])  # [B*T, V, D, h*w]
        volume = splat(depth.flatten(0, 2), context, voxels, b * t, self.grid)  # [B*T, C, Z, Y, X]
        # In float32 even inside autocast: torch's bfloat16 Conv3d has wrong weight gradients on some CPUs.
        with torch.autocast(volume.device.type, enabled=False):
            volume = self.refine(volume)
        return rearrange(volume, "(b t) c z y x -> b t c z y x", b=b)

    def voxels(self, clip: Clip, size: tuple[int, ...] | torch.Size) -> Tensor:
        """Find the voxel of every frustum point: of every pixel of the feature map at the middle of every depth bin.

        Bin d has its middle at depth near + (d + 0.5) step; pixel (row, column) of the feature map has its centre at
        ((column + 0.5) stride, (row + 0.5) stride) in the image.

        Args:
            clip: For intrinsics and camera poses.
            size: (h, w) of the feature map.

        Returns:
            [B*T, V, D, h*w] int64, indices into Z*Y*X; -1 for points outside the grid.
        """
        bins = self.config.num_bins
        pixels = self._pixels(clip.intrinsics, size)  # [h*w, 2]
        depth = self.bins(pixels).repeat_interleave(len(pixels))  # [D*h*w]
        points_camera = unproject(clip.intrinsics, pixels.repeat(bins, 1), depth)  # [B, T, V, D*h*w, 3]
        points = transform(clip.ego_from_camera, points_camera)  # [B, T, V, D*h*w, 3]
        # A voxel contains its low faces but not its high ones. `inside` is decided by the index and not by the metres:
        # these could be rounded differently, and a point would land in a wrong row of the volume.
        index = (self.grid.index_of(points) + 0.5).floor().long()  # [B, T, V, D*h*w, 3], (x, y, z)
        inside = ((index >= 0) & (index < constant(self.grid.shape[::-1], index))).all(-1)
        _, y_count, x_count = self.grid.shape
        voxels = (index[..., 2] * y_count + index[..., 1]) * x_count + index[..., 0]  # [B, T, V, D*h*w]
        voxels = torch.where(inside, voxels, -1)
        return voxels.flatten(0, 1).unflatten(-1, (bins, -1))


class Reach(NamedTuple):
    """Number of voxels that cameras see within a band of distance, and how many of them a lift reaches."""

    low: float
    """Near end of the band, metres."""
    high: float
    """Far end of the band, metres; infinity for the last band."""
    in_view: int
    """Voxels in view of a camera."""
    reached: int
    """Voxels in view that the lift puts features into."""


def reach(lift: Lift, clip: Clip, edges: tuple[float, ...] = (20.0, 35.0)) -> list[Reach]:
    """Count the voxels in view that a lift can put features into: a coarse feature map leaves gaps far away.

    A voxel is in view if its centre projects into the image of a camera at a depth within the range of the lift. It is
    reached if it contains a frustum point of a camera (see :meth:`Lift.voxels`).

    Args:
        lift: For its stride, depth bins and grid; its weights do not matter.
        clip: For the calibration of the first clip's current frame.
        edges: Edges between the bands, as horizontal distances of voxel centres from the ego frame's origin, metres.

    Returns:
        The bands from near to far, without those that have no voxel in view.
    """
    clip = replace(clip, intrinsics=clip.intrinsics[:1, -1:], ego_from_camera=clip.ego_from_camera[:1, -1:])
    height, width = clip.image_size
    centers = lift.grid.centers(clip.intrinsics).flatten(0, 2)  # [Z*Y*X, 3]
    near, far = lift.config.depth_range
    pixels, depth = project(clip.intrinsics, transform(invert(clip.ego_from_camera), centers))  # [1, 1, V, Z*Y*X, 2]
    u, v = pixels.unbind(-1)  # [1, 1, V, Z*Y*X]
    on_image = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth >= near) & (depth < far)
    in_view = on_image.flatten(0, 2).any(0)  # [Z*Y*X]

    voxels = lift.voxels(clip, (height // lift.stride, width // lift.stride)).flatten()
    reached = torch.zeros_like(in_view)
    reached[voxels[voxels >= 0]] = True

    distance = centers[:, :2].norm(dim=-1)  # [Z*Y*X]
    bands = []
    for low, high in pairwise((0.0, *edges, math.inf)):
        in_band = in_view & (distance >= low) & (distance < high)
        bands.append(Reach(low, high, int(in_band.sum()), int((in_band & reached).sum())))
    return [band for band in bands if band.in_view]


def reach_line(bands: list[Reach]) -> str:
    """Format the result of :func:`reach` as one line for the log of a run.

    >>> reach_line([Reach(0, 20, in_view=200, reached=150), Reach(20, math.inf, in_view=50, reached=10)])
    'lift: voxels in view that are reached: 75 % within 20 m, 20 % beyond 20 m (more with a finer `method.neck.stages`)'
    """
    if not bands:
        return "warning: no voxel is in view of any camera: check the calibration, `method.grid` and `method.lift`"
    parts = [f"{band.reached / band.in_view:.0%} {_distance(band)}".replace("%", " %") for band in bands]
    return f"lift: voxels in view that are reached: {', '.join(parts)} (more with a finer `method.neck.stages`)"


def _distance(band: Reach) -> str:
    if not band.low:
        return f"within {band.high:g} m"
    return f"beyond {band.low:g} m" if math.isinf(band.high) else f"from {band.low:g} to {band.high:g} m"


def splat(depth: Tensor, context: Tensor, voxels: Tensor, volumes: int, grid: VoxelGrid) -> Tensor:
    """Sum probability times context over the points in each voxel (arXiv 2008.05711, section 3.2).

    Args:
        depth: [N, D, h, w], the probabilities of the depth bins of each pixel.
        context: [N, C, h, w].
        voxels: [B*T, V, D, h*w] int64, indices into Z*Y*X; -1 for points outside the grid.
        volumes: Number of volumes, B*T.
        grid: Voxels of the volumes.

    Returns:
        [B*T, C, Z, Y, X], with channels last in memory, because all later stages read whole voxels.

    One pixel with two depth bins, whose points lie in voxels 1 and 0:

    >>> depth, context = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1), torch.tensor([8.0]).view(1, 1, 1, 1)
    >>> voxels = torch.tensor([1, 0]).view(1, 1, 2, 1)
    >>> splat(depth, context, voxels, 1, VoxelGrid(x=(0, 4), y=(0, 2), z=(0, 2), voxel=(2, 2, 2))).flatten()
    tensor([6., 2.])
    """
    count = grid.shape[0] * grid.shape[1] * grid.shape[2]
    first_row = torch.arange(volumes, device=voxels.device)[:, None, None, None] * count  # [B*T, 1, 1, 1]
    # Points outside the grid go to an extra row, which is cut off: boolean indexing would make the host wait.
    rows = torch.where(voxels >= 0, voxels + first_row, volumes * count).flatten()  # [N*D*h*w]
    weighted = rearrange(depth, "n d h w -> n d (h w) 1") * rearrange(context, "n c h w -> n 1 (h w) c")
    table = weighted.new_zeros(volumes * count + 1, context.shape[1]).index_add(0, rows, weighted.flatten(0, 2))
    return table[:-1].view(volumes, *grid.shape, -1).permute(0, 4, 1, 2, 3)
