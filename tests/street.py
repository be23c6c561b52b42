"""A textured scene of known depth, seen from a car that drives."""

from dataclasses import replace

import torch
from torch import Tensor

from mim4d.clip import Clip
from mim4d.geometry import pixel_rays
from tests.toy import toy_clip

WALL = 9.0
"""Distance of the wall of :func:`street` from the current ego frame, metres."""


def texture(points: Tensor) -> Tensor:
    """Colour [..., 3] of points [..., 3] in the current ego frame: waves 1.5 m long and longer, in all directions."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(24, 3, generator=generator)
    waves = waves / waves.norm(dim=1, keepdim=True) * (1 + 3 * torch.rand(24, 1, generator=generator))
    phases = 6.28 * torch.rand(24, 3, generator=generator)
    return 0.5 + 0.1 * torch.sin((points @ waves.T)[..., None] + phases).sum(-2).clamp(-4, 4)


def street(
    frames: int = 3,
    cameras: int = 1,
    size: tuple[int, int] = (64, 96),
    wall_velocity: tuple[float, float] = (0.0, 0.0),
) -> tuple[Clip, Tensor]:
    """A car on the ground that drives towards a wall: the clip, and its depth [B, T, V, H, W].

    The wall moves at (x, y) m/s in the current ego frame and is at :data:`WALL` at the time of the current frame.
    """
    clip = toy_clip(1, frames, cameras, size, turn=0.02)
    height, width = size
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([u, v], dim=-1).flatten(0, 1)  # [H*W, 2]
    current_from_camera = clip.current_from_ego[:, :, None] @ clip.ego_from_camera
    origins, directions = pixel_rays(pixels, clip.intrinsics, current_from_camera)  # [B, T, V, H*W, 3]
    ground = torch.where(directions[..., 2] < 0, -origins[..., 2] / directions[..., 2], torch.inf)
    moved = clip.times[..., None] * torch.tensor([*wall_velocity, 0.0])  # [B, T, 3]
    wall = WALL + moved[..., None, None, 0] - origins[..., 0]
    wall = torch.where(directions[..., 0] > 0, wall / directions[..., 0], torch.inf)
    distance = torch.minimum(ground, wall).clamp(max=60)
    points = origins + directions * distance[..., None]  # [B, T, V, H*W, 3]
    points = torch.where((wall < ground)[..., None], points - moved[:, :, None, None], points)
    colours = texture(points).clamp(0, 1)  # [B, T, V, H*W, 3]
    images = (255 * colours).round().byte().unflatten(3, size).permute(0, 1, 2, 5, 3, 4)
    along_axis = (directions * current_from_camera[..., None, :3, 2]).sum(-1)
    return replace(clip, images=images), (distance * along_axis).unflatten(3, size)
