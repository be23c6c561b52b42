"""8a. Losses: compare rendered colour and depth with observations."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .rays import Rays
from .render import Rendered


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms. A term of weight 0 is not computed."""

    rgb: float = 10.0
    """Weight of the mean absolute colour error of direct and of temporal rendering (colours 0 to 1)."""
    depth: float = 10.0
    """Weight of the depth error of both, against LiDAR, or with supervision rgb against the depth of the lift."""
    # The mean absolute error in units of the volume's largest reach. The lift's depth counts only if consistency
    # supervises it.
    other_rays: float = 0.0
    """Weight of direct rendering along rays of another frame, as a fraction of rgb and depth; needs frames above 1."""
    consistency: float = 0.0
    """Weight of the photometric consistency of the lift's depth between frames and between cameras."""
    lift_depth: float = 0.0
    """Weight of the error of the lift's log depth against LiDAR; needs supervision rgbd."""
    flow: float = 0.0
    """Weight of the photometric error of points that move by the BEV flow; needs consistency or lift_depth."""
    # Its gradient stays out of encoder, neck and depth network.
    rendered_gradient: float = 1.0
    """Fraction of the gradient of rgb and depth that reaches encoder, neck and depth network, 0 to 1."""
    # With 0, rendering trains only modules that are discarded after pretraining.

    def __post_init__(self) -> None:
        for name in ("rgb", "depth", "other_rays", "consistency", "lift_depth", "flow"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} = {getattr(self, name)} must be at least 0")
        if not (self.renders or self.supervises_lift):
            raise ValueError("loss.rgb, depth, consistency and lift_depth are all 0: at least one must be more than 0")
        if self.other_rays and not self.renders:
            raise ValueError(
                f"loss.other_rays = {self.other_rays} is a fraction of loss.rgb and loss.depth, which are both 0: "
                "raise one of them"
            )
        if self.flow and not self.supervises_lift:
            raise ValueError(
                f"loss.flow = {self.flow} needs loss.consistency or loss.lift_depth above 0: "
                "the flow moves points at the depth of the lift"
            )
        if not 0 <= self.rendered_gradient <= 1:
            raise ValueError(f"loss.rendered_gradient = {self.rendered_gradient} must lie in 0 .. 1")

    @property
    def supervises_lift(self) -> bool:
        """Whether a term of the lift's own depth has a weight."""
        return self.consistency > 0 or self.lift_depth > 0

    @property
    def renders(self) -> bool:
        """Whether a rendering term has a weight."""
        return self.rgb > 0 or self.depth > 0


class Comparison(NamedTuple):
    """Errors of the renderings of B clips."""

    errors: dict[str, Tensor]
    """Scalars with gradient: ``rgb`` (L1, colours 0 to 1) and ``depth`` (L1, metres). A clip without a ray that has
    such an observation counts as 0."""
    measures: dict[str, Tensor]
    """Values per clip [B] without gradient: ``rgb``, ``depth``, ``psnr`` (dB), ``abs_rel`` (depth error / depth) and
    ``delta`` (fraction of depths within a factor of 1.25); with ``on_visible`` also ``rgb_hidden``, ``rgb_visible``,
    ``depth_hidden`` and ``depth_visible``. NaN for a clip without a ray that has such an observation."""


def compare(rendered: Rendered, rays: Rays, clips: int, on_visible: Tensor | None = None) -> Comparison:
    """Compare rendered colour and depth with observations.

    With n_b rays of clip b that hit the volume and have the observation::

        rgb   = 1 / B * sum over b of 1 / n_b * sum over rays of mean over channels of |rendered - observed|
        depth = 1 / B * sum over b of 1 / n_b * sum over rays of |rendered - observed|

    Every clip has the same weight, however many rays it has, so that the loss of a batch does not depend on how its
    clips are distributed over processes.

    Args:
        rendered: Renderings of G volumes, ordered by clip.
        rays: The rays and their observations.
        clips: B, a divisor of G.
        on_visible: [G, R] bool, whether a ray passes through a visible patch, to measure both kinds of rays separately.

    One ray, whose colour is off by 0.25 and whose depth is 11 m instead of 10 m:

    >>> one, xyz = torch.ones(1, 1), torch.zeros(1, 1, 3)
    >>> observed = {"rgb": xyz, "depth": 10 * one, "valid": one > 0, "has_depth": one > 0}
    >>> rays = Rays(origins=xyz, directions=xyz, pixels=torch.zeros(1, 1, 2), **observed)
    >>> rendered = Rendered(rgb=rays.rgb + 0.25, depth=11 * one, opacity=one, hit=one > 0)
    >>> compare(rendered, rays, clips=1).errors
    {'rgb': tensor(0.2500), 'depth': tensor(1.)}
    >>> compare(rendered, rays, clips=1).measures["abs_rel"]
    tensor([0.1000])
    """
    has_colour = (rays.valid & rendered.hit).view(clips, -1)  # [B, G/B*R]
    has_depth = (rays.has_depth & rendered.hit).view(clips, -1)

    def mean(error: Tensor, counted: Tensor) -> Tensor:  # [B], 0 without counted rays
        return (error.reshape(clips, -1) * counted).sum(1) / counted.sum(1).clamp(min=1)

    def measure(error: Tensor, counted: Tensor) -> Tensor:  # [B], NaN without counted rays
        return torch.where(counted.any(1), mean(error.detach(), counted), torch.nan)

    colour = rendered.rgb - rays.rgb  # [G, R, 3]
    rgb = colour.abs().mean(-1)  # [G, R]
    depth = (rendered.depth - rays.depth).abs()  # [G, R]
    errors = {"rgb": mean(rgb, has_colour).mean(), "depth": mean(depth, has_depth).mean()}
    with torch.no_grad():
        observed = rays.depth.clamp(min=0.1)  # no division by 0
        ratio = rendered.depth.clamp(min=0.1) / observed
        measures = {
            "rgb": measure(rgb, has_colour),
            "depth": measure(depth, has_depth),
            "psnr": -10 * torch.log10(measure(colour.square().mean(-1), has_colour).clamp(min=1e-10)),
            "abs_rel": measure(depth / observed, has_depth),
            "delta": measure((torch.maximum(ratio, 1 / ratio) < 1.25).float(), has_depth),
        }
        if on_visible is not None:
            visible = on_visible.view(clips, -1)
            for name, chosen in {"hidden": ~visible, "visible": visible}.items():
                measures[f"rgb_{name}"] = measure(rgb, has_colour & chosen)
                measures[f"depth_{name}"] = measure(depth, has_depth & chosen)
    return Comparison(errors, measures)
