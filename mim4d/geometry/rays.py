"""Rays through pixels, and their intersections with a box."""

import torch
from torch import Tensor

from .pinhole import unproject
from .precision import exact
from .rigid import transform


@exact
def pixel_rays(pixels: Tensor, intrinsics: Tensor, ego_from_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rays from the camera's centre through pixels, in the ego frame.

    Args:
        pixels: [..., R, 2], continuous.
        intrinsics: [..., 3, 3], pixels.
        ego_from_camera: [..., 4, 4].

    Returns:
        Origins and unit directions, both [..., R, 3] in the ego frame, metres.

    The ray through the principal point of a camera that looks forward, 1.5 m above the ground:

    >>> intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    >>> ego_from_camera = torch.tensor(
    ...     [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 1.5], [0.0, 0.0, 0.0, 1.0]]
    ... )
    >>> pixel_rays(torch.tensor([[50.0, 40.0]]), intrinsics, ego_from_camera)
    (tensor([[0.0000, 0.0000, 1.5000]]), tensor([[1., 0., 0.]]))
    """
    rays_camera = unproject(intrinsics, pixels, torch.ones_like(pixels[..., 0]))  # [..., R, 3]
    directions = rays_camera @ ego_from_camera[..., :3, :3].mT  # [..., R, 3]
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return transform(ego_from_camera, torch.zeros_like(rays_camera)), directions


def box_interval(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances at which rays enter and leave an axis-aligned box (the slab test).

    Args:
        origins: [..., 3], metres.
        directions: [..., 3], unit length.
        low: [3], the low corner of the box, metres.
        high: [3], the high corner of the box, metres.

    Returns:
        Near and far distances along the ray [...] in metres, near >= 0. A ray that misses the box has far <= near.

    >>> origins, directions = torch.tensor([[-3.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> box_interval(origins, directions, -torch.ones(3), torch.ones(3))
    (tensor([2.]), tensor([4.]))
    """
    # A zero component gives 0 / 0 where the origin lies on a face of the slab; 1e-9 keeps every quotient finite.
    tiny = torch.full_like(directions, 1e-9)
    safe = torch.where(directions.abs() < 1e-9, tiny, directions)
    to_low, to_high = (low - origins) / safe, (high - origins) / safe  # [..., 3]
    near = torch.minimum(to_low, to_high).amax(-1).clamp(min=0)  # [...]
    far = torch.maximum(to_low, to_high).amin(-1)  # [...]
    return near, far
