"""7a. The rays that are rendered, and the colour and depth observed along them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import Clip
from ..geometry import VoxelGrid, constant, exact, invert, pixel_rays, project, transform
from .rng import Stream, uniform

Supervision = Literal["rgbd", "rgb"]


@dataclass(frozen=True, kw_only=True)
class Rays:
    """R rays for each of G volumes, in the ego frame of the volume, and the observations along them."""

    origins: Tensor
    """[G, R, 3], the camera centres, metres."""
    directions: Tensor
    """[G, R, 3], unit length."""
    rgb: Tensor
    """[G, R, 3], the colour of the pixel, 0 to 1."""
    depth: Tensor
    """[G, R], distance along the ray to the LiDAR point or to the lift's depth, metres; meaningless where
    ``has_depth`` is False."""
    valid: Tensor
    """[G, R] bool, whether the ray has an observed colour."""
    has_depth: Tensor
    """[G, R] bool, whether the ray has an observed depth, too."""
    pixels: Tensor
    """[G, R, 2], where each ray passes through its image. Rays are ordered by camera, R / V for each of V cameras."""


def choose_rays(clip: Clip, targets: Tensor, per_view: int, grid: VoxelGrid, supervision: Supervision) -> Rays:
    """Draw random rays of the target frames and look up what was observed along them.

    Args:
        clip: B clips.
        targets: [B, K] int64, frames to render.
        per_view: Rays per image.
        grid: LiDAR points outside it are not used, because no rendering can reach them.
        supervision: ``rgbd``: rays through LiDAR points, with colour and depth; ``rgb``: rays through uniformly drawn
            pixels, with colour alone.

    Returns:
        Rays with G = B*K and R = V*per_view. If fewer LiDAR points project into an image, its other rays are not
        ``valid``.
    """
    rows = torch.arange(clip.batch_size, device=clip.device)[:, None]  # [B, 1]
    intrinsics = clip.intrinsics[rows, targets]  # [B, K, V, 3, 3]
    ego_from_camera = clip.ego_from_camera[rows, targets]  # [B, K, V, 4, 4]
    if supervision == "rgb":
        height, width = clip.image_size
        fractions = uniform(clip.seeds, Stream.RAYS, (targets.shape[1], clip.num_cameras, per_view, 2))
        pixels = fractions * constant([width, height], fractions)  # [B, K, V, per_view, 2]
        valid = torch.ones_like(pixels[..., 0], dtype=torch.bool)
        points = None
    else:
        pixels, points, valid = _lidar_pixels(clip, targets, intrinsics, ego_from_camera, per_view, grid)

    origins, directions = pixel_rays(pixels, intrinsics, ego_from_camera)  # [B, K, V, per_view, 3]
    depth = torch.zeros_like(origins[..., 0]) if points is None else (points - origins).norm(dim=-1)
    cameras = torch.arange(clip.num_cameras, device=clip.device)[:, None]  # [V, 1]
    column, row = pixels.long().unbind(-1)  # [B, K, V, per_view]
    rgb = clip.images[rows[..., None, None], targets[..., None, None], cameras, :, row, column].float() / 255
    rays = {"origins": origins, "directions": directions, "rgb": rgb, "depth": depth, "valid": valid, "pixels": pixels}
    rays["has_depth"] = valid & (points is not None)
    return Rays(**{name: x.flatten(0, 1).flatten(1, 2) for name, x in rays.items()})  # [G, R, ...]


@exact
def with_depth_of_lift(rays: Rays, log_depth: Tensor, clip: Clip, targets: Tensor, grid: VoxelGrid) -> Rays:
    """Give rays the depth that the lift has at their pixels, where there is no LiDAR; it gets no gradient.

    Args:
        rays: R rays for each of G = B*K volumes.
        log_depth: [B, T, V, h, w], logarithm of the depth along the optical axis in metres.
        clip: B clips, for calibration.
        targets: [B, K] int64, the frames of the rays.
        grid: Points outside it are not used, because no rendering can reach them.
    """
    rows = torch.arange(clip.batch_size, device=clip.device)[:, None]  # [B, 1]
    maps = log_depth.detach()[rows, targets].flatten(0, 2)  # [G*V, h, w]
    axes = clip.ego_from_camera[rows, targets][..., :3, 2].flatten(0, 1)  # [G, V, 3]
    height, width = clip.image_size
    pixels = rays.pixels.unflatten(1, (clip.num_cameras, -1)).flatten(0, 1)  # [G*V, R/V, 2]
    places = pixels[:, None] * constant([2 / width, 2 / height], pixels) - 1  # [G*V, 1, R/V, 2]
    found = F.grid_sample(maps[:, None].float(), places, padding_mode="border", align_corners=False)
    along_axis = found.view(len(axes), -1).exp()  # [G, R]
    axes = axes.repeat_interleave(rays.pixels.shape[1] // clip.num_cameras, dim=1)  # [G, R, 3]
    depth = along_axis / (rays.directions * axes).sum(-1)
    reached = grid.contains(rays.origins + depth[..., None] * rays.directions)
    return replace(rays, depth=depth, has_depth=rays.valid & reached)


@exact
def transform_rays(rays: Rays, target_from_source: Tensor, grid: VoxelGrid) -> Rays:
    """Express rays in the ego frames of other frames, as if the world stood still.

    Args:
        rays: R rays for each of G volumes, in the ego frames of the frames that observed them.
        target_from_source: [G, 4, 4], from these ego frames to those of the volumes to render.
        grid: A ray whose observed depth lies outside it is no longer valid, because no rendering can reach what it saw.

    Returns:
        The rays in the ego frames of the targets. Observations and ``pixels`` are still those of the source frame.

    A camera 2 m ahead, whose ray to the left ends at a distance of 5 m:

    >>> one = torch.ones(1, 1)
    >>> rays = Rays(
    ...     origins=torch.tensor([[[0.0, 0.0, 1.0]]]),
    ...     directions=torch.tensor([[[0.0, 1.0, 0.0]]]),
    ...     rgb=torch.zeros(1, 1, 3),
    ...     depth=5 * one,
    ...     valid=one > 0,
    ...     has_depth=one > 0,
    ...     pixels=torch.zeros(1, 1, 2),
    ... )
    >>> target_from_source = torch.eye(4)[None]
    >>> target_from_source[0, 0, 3] = 2
    >>> moved = transform_rays(rays, target_from_source, VoxelGrid(x=(-4, 4), y=(-4, 4), z=(0, 2), voxel=(2, 2, 2)))
    >>> moved.origins, moved.valid
    (tensor([[[2., 0., 1.]]]), tensor([[False]]))
    """
    origins = transform(target_from_source, rays.origins)
    directions = rays.directions @ target_from_source[:, :3, :3].mT
    reached = grid.contains(origins + rays.depth[..., None] * directions)
    return replace(
        rays,
        origins=origins,
        directions=directions,
        valid=rays.valid & (reached | ~rays.has_depth),
        has_depth=rays.has_depth & reached,
    )


def _lidar_pixels(
    clip: Clip, targets: Tensor, intrinsics: Tensor, ego_from_camera: Tensor, per_view: int, grid: VoxelGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw random LiDAR points that project into each image.

    Returns:
        Pixels [B, K, V, per_view, 2], points in the ego frame [B, K, V, per_view, 3] and valid [B, K, V, per_view].
    """
    rows = torch.arange(clip.batch_size, device=clip.device)[:, None]  # [B, 1]
    points = clip.points[rows, targets]  # [B, K, P, 3]
    usable = clip.points_valid[rows, targets] & grid.contains(points)  # [B, K, P]
    missing = max(0, per_view - points.shape[2])  # topk below needs at least per_view points
    points, usable = F.pad(points, (0, 0, 0, missing)), F.pad(usable, (0, missing))

    pixels, depth = project(intrinsics, transform(invert(ego_from_camera), points[:, :, None]))  # [B, K, V, P, 2]
    height, width = clip.image_size
    u, v = pixels.unbind(-1)  # [B, K, V, P]
    on_image = usable[:, :, None] & (depth > 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    # P is the first axis of the draw, so that the numbers do not depend on how far a batch is padded.
    numbers = uniform(clip.seeds, Stream.RAYS, (points.shape[2], targets.shape[1], clip.num_cameras))  # [B, P, K, V]
    chosen = torch.where(on_image, numbers.permute(0, 2, 3, 1) + 1, 0).topk(per_view, dim=-1)
    valid = chosen.values > 0  # [B, K, V, per_view]
    index = chosen.indices[..., None]  # [B, K, V, per_view, 1]
    pixels = pixels.gather(3, index.expand(-1, -1, -1, -1, 2))
    points = points[:, :, None].expand(-1, -1, clip.num_cameras, -1, -1).gather(3, index.expand(-1, -1, -1, -1, 3))
    # Rays that are not valid may hold a NaN of the padding: they get the image's centre and (0, 0, 0) instead.
    pixels = torch.where(valid[..., None], pixels, constant([width / 2, height / 2], pixels))
    points = torch.where(valid[..., None], points, 0)
    return pixels, points, valid
