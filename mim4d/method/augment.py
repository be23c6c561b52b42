"""0. Augmentation: whole clips are mirrored, and the encoder sees their images in other light.

A short drive is soon known by heart. A mirrored clip is another street, driven on its other side, and just as true: all
its geometry is mirrored along with its images. Light changes only what the encoder sees; losses compare the images
themselves (Monodepth2, arXiv 1806.01260, section 4).
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..clip import Clip
from ..geometry import constant
from .rng import Stream, uniform

LIGHT = 0.2
"""Brightness, contrast and saturation are multiplied by 1 - LIGHT to 1 + LIGHT (Monodepth2)."""
MIDDLE = 127.5
"""The grey that contrast leaves as it is. The image's own mean would tell what hidden patches show."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour (ITU-R BT.601)."""


def mirror_half(clip: Clip) -> Clip:
    """Mirror the clips whose seed says so, half of all."""
    return mirror(clip, uniform(clip.seeds, Stream.MIRROR, ()) < 0.5)


def mirror(clip: Clip, chosen: Tensor) -> Clip:
    """Mirror clips at the plane through the middle of the car, y = 0.

    The left front camera then looks to the front right; cameras keep their places in the list, and their names.

    Args:
        clip: B clips.
        chosen: [B] bool, the clips to mirror; the others stay as they are.
    """
    width = clip.images.shape[-1]
    across = torch.where(chosen, -1.0, 1.0)  # [B], the sign of everything that points across the car
    one = torch.ones_like(across)
    ego = torch.stack([one, across, one, one], dim=-1)[:, None]  # [B, 1, 4], the mirror of ego coordinates
    camera = torch.stack([across, one, one, one], dim=-1)[:, None, None]  # [B, 1, 1, 4], that of camera coordinates
    intrinsics = clip.intrinsics.clone()
    intrinsics[..., 0, 1] *= across[:, None, None]
    center = intrinsics[..., 0, 2]  # [B, T, V]
    intrinsics[..., 0, 2] = torch.where(chosen[:, None, None], width - center, center)
    return replace(
        clip,
        images=torch.where(chosen.view(-1, 1, 1, 1, 1, 1), clip.images.flip(-1), clip.images),
        intrinsics=intrinsics,
        ego_from_camera=ego[:, :, None, :, None] * clip.ego_from_camera * camera[..., None, :],
        current_from_ego=ego[..., None] * clip.current_from_ego * ego[..., None, :],
        points=clip.points * ego[..., None, :3],
    )


def relight(images: Tensor, seeds: Tensor) -> Tensor:
    """Change the brightness, contrast and saturation of every image by random factors.

    Args:
        images: [B, T, V, 3, H, W], 0 to 255.
        seeds: [B] int64, the seeds of the clips.

    Returns:
        [B, T, V, 3, H, W] float32, 0 to 255.
    """
    factors = 1 + LIGHT * (2 * uniform(seeds, Stream.LIGHT, (*images.shape[1:3], 3, 1, 1, 1)) - 1)
    brightness, contrast, saturation = factors.unbind(3)  # [B, T, V, 1, 1, 1] each
    images = images.float() * brightness
    weights = constant(LUMINANCE, images).view(3, 1, 1)
    grey = (images * weights).sum(3, keepdim=True)  # [B, T, V, 1, H, W]
    saturated = grey + saturation * (images - grey)
    return (MIDDLE + contrast * (saturated - MIDDLE)).clamp(0, 255)
