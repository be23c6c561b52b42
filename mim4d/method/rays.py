"""7a. Which rays are looked at, and what was seen along them."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import Clip
from ..geometry import VoxelGrid, constant, invert, pixel_rays, project, transform
from .rng import Stream, uniform

Supervision = Literal["rgbd", "rgb"]


@dataclass(frozen=True, kw_only=True)
class Rays:
    """R rays into each of G volumes, in the ego frame of each volume's frame, and their targets."""

    origins: Tensor
    """[G, R, 3] metres."""
    directions: Tensor
    """[G, R, 3], unit length."""
    rgb: Tensor
    """[G, R, 3] the pixel's colour, 0 to 1."""
    depth: Tensor
    """[G, R] distance along the ray to the LiDAR point, metres; void without one."""
    valid: Tensor
    """[G, R] bool: the ray has a colour target."""
    has_depth: Tensor
    """[G, R] bool: the ray has a depth target too."""
    pixels: Tensor
    """[G, R, 2] where each ray goes through its image, pixels; R counts view by view, the same number in each."""


def choose_rays(clip: Clip, targets: Tensor, per_view: int, grid: VoxelGrid, supervision: Supervision) -> Rays:
    """Draw rays of the target frames: through projected LiDAR points, or through any pixels where there is no LiDAR.

    Args:
        clip: B clips.
        targets: [B, K] int64, frames to look at.
        per_view: Rays an image.
        grid: Only LiDAR points inside it are used: no rendering could reach the others.
        supervision: ``rgbd``: LiDAR points with their depth; ``rgb``: uniformly drawn pixels, colour alone.

    Returns:
        Rays with G = B*K and R = V*per_view. Where an image has fewer LiDAR points, the rest is not ``valid``.
    """
    rows = torch.arange(clip.batch_size, device=clip.device)[:, None]
    intrinsics = clip.intrinsics[rows, targets]  # [B, K, V, 3, 3]
    ego_from_camera = clip.ego_from_camera[rows, targets]  # [B, K, V, 4, 4]
    if supervision == "rgb":
        height, width = clip.image_size
        shares = uniform(clip.seeds, Stream.RAYS, (targets.shape[1], clip.num_cameras, per_view, 2))
        pixels = shares * constant([width, height], shares)
        valid = torch.ones_like(pixels[..., 0], dtype=torch.bool)
        points = None
    else:
        pixels, points, valid = _lidar_pixels(clip, targets, intrinsics, ego_from_camera, per_view, grid)

    origins, directions = pixel_rays(pixels, intrinsics, ego_from_camera)  # [B, K, V, R, 3]
    depth = torch.zeros_like(origins[..., 0]) if points is None else (points - origins).norm(dim=-1)
    views = torch.arange(clip.num_cameras, device=clip.device)[:, None]
    column, row = pixels.long().unbind(-1)
    rgb = clip.images[rows[..., None, None], targets[..., None, None], views, :, row, column].float() / 255
    flat = {"origins": origins, "directions": directions, "rgb": rgb, "depth": depth, "valid": valid, "pixels": pixels}
    flat["has_depth"] = valid & (points is not None)
    return Rays(**{name: x.flatten(0, 1).flatten(1, 2) for name, x in flat.items()})


def _lidar_pixels(
    clip: Clip, targets: Tensor, intrinsics: Tensor, ego_from_camera: Tensor, per_view: int, grid: VoxelGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Random LiDAR points of each image: pixels [B, K, V, R, 2], points in ego [B, K, V, R, 3], valid [B, K, V, R]."""
    rows = torch.arange(clip.batch_size, device=clip.device)[:, None]
    points = clip.points[rows, targets]  # [B, K, P, 3]
    real = clip.points_valid[rows, targets] & grid.contains(points)
    missing = max(0, per_view - points.shape[2])
    points, real = F.pad(points, (0, 0, 0, missing)), F.pad(real, (0, missing))

    pixels, depth = project(intrinsics, transform(invert(ego_from_camera), points[:, :, None]))  # [B, K, V, P, 2]
    height, width = clip.image_size
    u, v = pixels.unbind(-1)
    seen = real[:, :, None] & (depth > 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    # Points come first in the draw's shape, so that the numbers do not depend on how far a batch was padded.
    draw = uniform(clip.seeds, Stream.RAYS, (points.shape[2], targets.shape[1], clip.num_cameras))
    chosen = torch.where(seen, draw.permute(0, 2, 3, 1) + 1, 0).topk(per_view, dim=-1)
    valid = chosen.values > 0
    pick = chosen.indices[..., None]
    pixels = pixels.gather(3, pick.expand(-1, -1, -1, -1, 2))
    points = points[:, :, None].expand(-1, -1, clip.num_cameras, -1, -1).gather(3, pick.expand(-1, -1, -1, -1, 3))
    # A void slot still needs a finite ray and depth (it may have picked a NaN): the image's centre, the origin.
    pixels = torch.where(valid[..., None], pixels, constant([width / 2, height / 2], pixels))
    points = torch.where(valid[..., None], points, 0)
    return pixels, points, valid
