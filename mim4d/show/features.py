"""Feature maps as colours: the first three principal components of all images together, as in DINO's figures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbones import NoMaskedForwardError, forward_masked
from ..backbones.pyramid import patch_of, pyramid_of

HIDDEN = 0.3
"""Fraction of patches that are hidden, as in pretraining."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Colours of the maps of one stride."""

    stride: int
    """Pixels."""
    colours: Tensor
    """[N, 3, h, w] from 0 to 1."""
    masked: Tensor | None
    """[N, 3, h, w]: the same components of the masked forward; grey where hidden. None without a masked forward."""
    explained: float
    """Fraction of the variance that the three components have."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """Three directions in the space of features, and the range of values along them."""

    mean: Tensor
    """[C]."""
    directions: Tensor
    """[C, 3], orthonormal."""
    low: Tensor
    """[3]: the value that becomes 0."""
    high: Tensor
    """[3]: the value that becomes 1."""
    explained: float

    def colours(self, maps: Tensor) -> Tensor:
        """Features [N, C, h, w] -> colours [N, 3, h, w] from 0 to 1."""
        values = (maps.movedim(1, -1) - self.mean) @ self.directions  # [N, h, w, 3]
        return ((values - self.low) / (self.high - self.low).clamp(min=1e-12)).clamp(0, 1).movedim(-1, 1)


def principal_components(maps: Tensor) -> Components:
    """Find the three directions in which features vary most.

    Each direction points so that its largest entry is positive: the same features always have the same colours. Values
    beyond the 1st and 99th percentile are clipped, so that a few outliers do not leave the rest without contrast.

    Args:
        maps: Features [N, C, h, w] of all images, C at least 3.
    """
    x = maps.movedim(1, -1).flatten(0, 2).double()  # [N * h * w, C]
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))  # ascending
    directions = vectors[:, [-1, -2, -3]]  # [C, 3]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))  # [1, 3]
    directions = directions * largest.sign()
    along = (x - mean) @ directions  # [N * h * w, 3]
    order = along.sort(0).values
    last = len(order) - 1
    total = values.clamp(min=0).sum()
    return Components(
        mean=mean.to(maps.dtype),
        directions=directions.to(maps.dtype),
        low=order[round(0.01 * last)].to(maps.dtype),
        high=order[round(0.99 * last)].to(maps.dtype),
        explained=float(values[-3:].sum() / total) if total else 0.0,
    )


def random_mask(shape: tuple[int, int, int]) -> Tensor:
    """Return a mask [N, h, w], True where visible, that is always the same and hides :data:`HIDDEN` of each image."""
    n, h, w = shape
    order = torch.rand(n, h * w, generator=torch.Generator().manual_seed(0)).argsort(1).argsort(1)
    return (order >= round(HIDDEN * h * w)).view(n, h, w)


@torch.inference_mode()
def stages_of(model: Any, images: Tensor) -> tuple[list[Stage], Tensor]:
    """Compute the colours of all stages, of the whole images and of images with hidden patches.

    Args:
        model: A backbone from :func:`mim4d.backbones.named.open_backbone`.
        images: [N, 3, H, W], normalised; H and W multiples of its patch.

    Returns:
        The stages, finest first, and the mask [N, H/patch, W/patch], True where a patch is visible.
    """
    pyramid, patch = pyramid_of(model), patch_of(model)
    n, _, height, width = images.shape
    visible = random_mask((n, height // patch, width // patch))
    whole = model(images)
    try:
        masked: list[Tensor] | None = forward_masked(model, images, visible)
    except NoMaskedForwardError:
        masked = None
    stages = []
    for index, stride in zip(pyramid.indices, pyramid.strides, strict=True):
        components = principal_components(whole[index])
        hidden = None
        if masked is not None:
            sites = patch // stride
            shown = visible.repeat_interleave(sites, 1).repeat_interleave(sites, 2)[:, None]  # [N, 1, h, w]
            hidden = torch.where(shown, components.colours(masked[index]), 0.5)
        stages.append(
            Stage(
                stride=stride,
                colours=components.colours(whole[index]),
                masked=hidden,
                explained=components.explained,
            )
        )
    return stages, visible
