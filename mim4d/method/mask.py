"""1. The masks: which image patches stay visible (space), and which frames are dropped and rebuilt (time)."""

import torch
from torch import Tensor

from ..backbones.encoder import PATCH
from .rng import Stream, uniform


def count_visible(image_size: tuple[int, int], mask_ratio: float, patch: int = PATCH) -> int:
    """Number of visible patches per image: round((1 - mask_ratio) H/patch W/patch), at least 1, in every image.

    Args:
        image_size: (H, W) in pixels, multiples of ``patch``.
        mask_ratio: Fraction of patches to hide, 0 to 1.
        patch: Side of a patch in pixels.

    >>> count_visible((480, 800), mask_ratio=0.3)  # the published setting: 15 x 25 patches
    262
    """
    return max(1, round((1 - mask_ratio) * (image_size[0] // patch) * (image_size[1] // patch)))


def visible_patches(
    seeds: Tensor, frames: int, cameras: int, image_size: tuple[int, int], mask_ratio: float, patch: int = PATCH
) -> Tensor:
    """Draw the spatial mask: hide the same number of random patches in every image.

    Args:
        seeds: [B] int64, the seeds of the clips.
        frames: T.
        cameras: V.
        image_size: (H, W) in pixels, multiples of ``patch``.
        mask_ratio: Fraction of patches to hide, 0 to 1.
        patch: Side of a patch in pixels.

    Returns:
        [B, T, V, H/patch, W/patch] bool, True where the patch is visible: :func:`count_visible` patches of every image.

    >>> visible = visible_patches(torch.tensor([7]), frames=1, cameras=2, image_size=(64, 128), mask_ratio=0.25)
    >>> visible.shape, visible.sum((-2, -1))
    (torch.Size([1, 1, 2, 2, 4]), tensor([[[6, 6]]]))
    """
    rows, columns = image_size[0] // patch, image_size[1] // patch
    scores = uniform(seeds, Stream.MASK, (frames, cameras, rows * columns))  # [B, T, V, H/patch * W/patch]
    rank = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (rank < count_visible(image_size, mask_ratio, patch)).unflatten(-1, (rows, columns))


def draw_targets(seeds: Tensor, frames: int) -> Tensor:
    """Draw the temporal mask: the current (last) frame and, if there are more frames, a random other one.

    Args:
        seeds: [B] int64, the seeds of the clips.
        frames: T.

    Returns:
        [B, K] int64 frame indices, K = min(T, 2).

    >>> draw_targets(torch.tensor([7]), frames=2)
    tensor([[1, 0]])
    """
    current = torch.full_like(seeds, frames - 1)
    if frames == 1:
        return current[:, None]
    other = (uniform(seeds, Stream.TARGET, ()) * (frames - 1)).long()  # [B]
    return torch.stack([current, other], dim=1)


def draw_others(seeds: Tensor, targets: Tensor, frames: int) -> Tensor:
    """Draw another frame for each target frame.

    Args:
        seeds: [B] int64, the seeds of the clips.
        targets: [B, K] int64, frame indices.
        frames: T, at least 2.

    Returns:
        [B, K] int64 frame indices, none of them its own target.

    >>> draw_others(torch.tensor([7]), targets=torch.tensor([[1, 0]]), frames=2)
    tensor([[0, 1]])
    """
    others = (uniform(seeds, Stream.OTHER, (targets.shape[1],)) * (frames - 1)).long()  # [B, K]
    return others + (others >= targets).long()
