"""8. Rendered against seen: every term named, weighted once, and averaged a clip at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rays import Rays
from .render import Rendered


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the two terms, each used for direct and for temporal rendering."""

    rgb: float = 10.0
    """Weight of the mean absolute colour error (colours 0 to 1)."""
    depth: float = 10.0
    """Weight of the mean absolute depth error (in scene units: metres / the volume's largest reach)."""

    def __post_init__(self) -> None:
        for name in ("rgb", "depth"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} = {getattr(self, name)} must be at least 0")


def compare(rendered: Rendered, rays: Rays, clips: int) -> dict[str, Tensor]:
    """Errors of one rendering, averaged over each clip's rays and then over clips.

    The average is taken a clip at a time so that the same clips give the same loss however they are split over
    processes; a clip without a single valid ray counts as zero.

    Args:
        rendered: Of G volumes, clip by clip.
        rays: The rays and their targets.
        clips: B, a divisor of G.

    Returns:
        Scalars ``rgb`` (L1, 0 to 1) and ``depth`` (L1, metres); and, without gradient, ``psnr`` (dB), ``abs_rel`` and
        ``delta`` (the share of depths within a factor of 1.25).
    """
    has_colour = (rays.valid & rendered.hit).float().view(clips, -1)
    has_depth = (rays.has_depth & rendered.hit).float().view(clips, -1)

    def mean(error: Tensor, weight: Tensor) -> Tensor:  # a clip's: [B]
        return (error.reshape(clips, -1) * weight).sum(1) / weight.sum(1).clamp(min=1)

    colour = rendered.rgb - rays.rgb
    depth = (rendered.depth - rays.depth).abs()
    with torch.no_grad():
        psnr = -10 * torch.log10(mean(colour.square().mean(-1), has_colour).clamp(min=1e-10))
        psnr = psnr * has_colour.any(1)
        truth = rays.depth.clamp(min=0.1)
        abs_rel = mean(depth / truth, has_depth)
        ratio = rendered.depth.clamp(min=0.1) / truth
        delta = mean((torch.maximum(ratio, 1 / ratio) < 1.25).float(), has_depth)
    errors = {"rgb": mean(colour.abs().mean(-1), has_colour), "depth": mean(depth, has_depth)}
    measures = {"psnr": psnr, "abs_rel": abs_rel, "delta": delta}
    return {name: value.mean() for name, value in (errors | measures).items()}
