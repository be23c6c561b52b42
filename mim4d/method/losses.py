"""8. Losses: compare rendered colour and depth with observations."""

from dataclasses import dataclass
from typing import NamedTuple

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


class Comparison(NamedTuple):
    """Errors of one rendering of B clips."""

    errors: dict[str, Tensor]
    """Scalars ``rgb`` (L1, 0 to 1) and ``depth`` (L1, metres), to learn from: a clip without a single such ray counts
    as zero."""
    measures: dict[str, Tensor]
    """Values per clip [B] without gradient, to look at: ``rgb``, ``depth``, ``psnr`` (dB), ``abs_rel`` and ``delta``
    (the share of depths within a factor of 1.25), and where asked for ``rgb_hidden``, ``rgb_visible``,
    ``depth_hidden`` and ``depth_visible``. NaN for a clip without a single such ray: nothing was measured."""


def compare(rendered: Rendered, rays: Rays, clips: int, on_visible: Tensor | None = None) -> Comparison:
    """Compare rendered colour and depth with observations, clip by clip.

    Every clip has the same weight, however many rays it has, so that the same clips give the same loss however they
    are split over processes.

    Args:
        rendered: Of G volumes, clip by clip.
        rays: The rays and their targets.
        clips: B, a divisor of G.
        on_visible: [G, R] bool, whether a ray goes through a patch that the encoder sees, to measure both kinds apart.
    """
    has_colour = (rays.valid & rendered.hit).view(clips, -1)  # [B, G/B*R]
    has_depth = (rays.has_depth & rendered.hit).view(clips, -1)

    def mean(error: Tensor, counted: Tensor) -> Tensor:  # [B], 0 where nothing counts
        return (error.reshape(clips, -1) * counted).sum(1) / counted.sum(1).clamp(min=1)

    def measure(error: Tensor, counted: Tensor) -> Tensor:  # [B], NaN where nothing counts
        return torch.where(counted.any(1), mean(error.detach(), counted), torch.nan)

    colour = rendered.rgb - rays.rgb  # [G, R, 3]
    rgb = colour.abs().mean(-1)
    depth = (rendered.depth - rays.depth).abs()
    errors = {"rgb": mean(rgb, has_colour).mean(), "depth": mean(depth, has_depth).mean()}
    with torch.no_grad():
        truth = rays.depth.clamp(min=0.1)
        ratio = rendered.depth.clamp(min=0.1) / truth
        measures = {
            "rgb": measure(rgb, has_colour),
            "depth": measure(depth, has_depth),
            "psnr": -10 * torch.log10(measure(colour.square().mean(-1), has_colour).clamp(min=1e-10)),
            "abs_rel": measure(depth / truth, has_depth),
            "delta": measure((torch.maximum(ratio, 1 / ratio) < 1.25).float(), has_depth),
        }
        if on_visible is not None:
            visible = on_visible.view(clips, -1)
            for name, where in {"hidden": ~visible, "visible": visible}.items():
                measures[f"rgb_{name}"] = measure(rgb, has_colour & where)
                measures[f"depth_{name}"] = measure(depth, has_depth & where)
    return Comparison(errors, measures)
