"""Rays through pixels, and where they meet a box."""

import torch
from torch import Tensor

from .pinhole import unproject
from .precision import exact
from .rigid import transform


@exact
def pixel_rays(pixels: Tensor, intrinsics: Tensor, ego_from_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Rays from the camera's centre through pixels, in the ego frame.

    Args:
        pixels: [..., N, 2], continuous.
        intrinsics: [..., 3, 3].
        ego_from_camera: [..., 4, 4].

    Returns:
        origins and unit directions, both [..., N, 3] in the ego frame, metres.
    """
    rays_camera = unproject(intrinsics, pixels, torch.ones_like(pixels[..., 0]))
    directions = rays_camera @ ego_from_camera[..., :3, :3].mT
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return transform(ego_from_camera, torch.zeros_like(rays_camera)), directions


def box_interval(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave an axis-aligned box (the slab test).

    Args:
        origins: [..., 3] metres.
        directions: [..., 3], unit length.
        low: [3], the box's low corner, metres.
        high: [3], its high corner.

    Returns:
        near and far distances [...] along the ray in metres, near >= 0. A ray that misses has far <= near.
    """
    # A component of zero would give 0/0 on a slab's face; the smallest nudge keeps every quotient finite.
    tiny = torch.full_like(directions, 1e-9)
    safe = torch.where(directions.abs() < 1e-9, tiny, directions)
    to_low, to_high = (low - origins) / safe, (high - origins) / safe
    near = torch.minimum(to_low, to_high).amax(-1).clamp(min=0)
    far = torch.maximum(to_low, to_high).amin(-1)
    return near, far
