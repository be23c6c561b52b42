"""1. Which image patches stay visible (the spatial mask)."""

import torch
from torch import Tensor

from ..backbones.encoder import PATCH
from .rng import Stream, uniform


def count_visible(image_size: tuple[int, int], hidden_share: float) -> int:
    """Visible patches per image: the same number in every image, at least one.

    Args:
        image_size: (H, W) in pixels, multiples of 32.
        hidden_share: The published "mask ratio", 0 to 1.
    """
    return max(1, round((1 - hidden_share) * (image_size[0] // PATCH) * (image_size[1] // PATCH)))


def visible_patches(
    seeds: Tensor, frames: int, cameras: int, image_size: tuple[int, int], hidden_share: float
) -> Tensor:
    """Hide the same share of patches in every image, at random.

    Args:
        seeds: [B] int64, the clips' seeds.
        frames: T.
        cameras: V.
        image_size: (H, W) in pixels, multiples of 32.
        hidden_share: The published "mask ratio", 0 to 1.

    Returns:
        [B, T, V, H/32, W/32] bool, True where the patch is visible: :func:`count_visible` of every image.
    """
    rows, columns = image_size[0] // PATCH, image_size[1] // PATCH
    scores = uniform(seeds, Stream.MASK, (frames, cameras, rows * columns))
    rank = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (rank < count_visible(image_size, hidden_share)).unflatten(-1, (rows, columns))


def draw_targets(seeds: Tensor, frames: int) -> Tensor:
    """Which frames are rebuilt (the temporal mask): the current, last one and, where there are more, a random other.

    Args:
        seeds: [B] int64, the clips' seeds.
        frames: T.

    Returns:
        [B, min(T, 2)] int64 frame numbers.
    """
    current = torch.full_like(seeds, frames - 1)
    if frames == 1:
        return current[:, None]
    other = (uniform(seeds, Stream.TARGET, ()) * (frames - 1)).long()
    return torch.stack([current, other], dim=1)
