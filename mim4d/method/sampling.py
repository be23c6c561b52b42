"""7b. Where along a ray to look: evenly first, then more where the surface seems to be."""

import torch
from torch import Tensor


def stratified(near: Tensor, far: Tensor, jitter: Tensor) -> Tensor:
    """One sample in each of S equal pieces of every ray.

    Args:
        near: [N] metres.
        far: [N] metres.
        jitter: [N, S], where in its piece each sample falls, 0 to 1.

    Returns:
        [N, S] distances, increasing.
    """
    count = jitter.shape[1]
    pieces = torch.arange(count, device=near.device)
    return near[:, None] + (pieces + jitter) / count * (far - near)[:, None]


def surface_weights(distances: Tensor, sdf: Tensor, inv_s: float) -> Tensor:
    """Rendering weights of the pieces between samples, from signed distances alone (NeuS, arXiv 2106.10689, app. B).

    Args:
        distances: [N, S], in the units of ``sdf``.
        sdf: [N, S].
        inv_s: Fixed sharpness of the surface.

    Returns:
        [N, S - 1], not negative.
    """
    before, after = sdf[:, :-1], sdf[:, 1:]
    step = distances.diff(dim=1)
    slope = (after - before) / (step + 1e-5)
    # The lower of this slope and the last one, never rising: robust where a ray only grazes a surface.
    last = torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], dim=1)
    slope = torch.minimum(slope, last).clamp(-1e3, 0)
    middle = (before + after) / 2
    enter = torch.sigmoid((middle - slope * step / 2) * inv_s)
    leave = torch.sigmoid((middle + slope * step / 2) * inv_s)
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)
    return alpha * transmittance(alpha)[:, :-1]


def transmittance(alpha: Tensor) -> Tensor:
    """Transmittance before and after each section: the product of 1 - alpha over the sections so far.

    Args:
        alpha: [N, S], 0 to 1.

    Returns:
        [N, S + 1], 0 to 1: the first is 1, the last is the share of light that passes the whole ray.
    """
    # Every factor is at most 1, and a little more than 0, where the logarithm's gradient would be infinite. Not
    # cumprod: its gradient looks for zeros, on the host.
    passed = torch.log1p(alpha * -(1 - 1e-7)).cumsum(dim=1).exp()
    return torch.cat([torch.ones_like(alpha[:, :1]), passed], dim=1)


def importance(distances: Tensor, weights: Tensor, count: int) -> Tensor:
    """Place ``count`` more samples by the inverse of the weights' cumulative sum (NeRF, arXiv 2003.08934, section 5.2).

    Args:
        distances: [N, S], increasing.
        weights: [N, S - 1], of the pieces between them.
        count: Samples to add a ray, at evenly spaced quantiles.

    Returns:
        [N, S + count], increasing.
    """
    weights = weights + 1e-5
    cdf = torch.cumsum(weights / weights.sum(1, keepdim=True), dim=1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=1)  # [N, S]
    quantiles = (torch.arange(count, device=cdf.device, dtype=cdf.dtype) + 0.5) / count
    quantiles = quantiles.expand(len(cdf), -1).contiguous()
    piece = (torch.searchsorted(cdf, quantiles, right=True) - 1).clamp(0, cdf.shape[1] - 2)
    low, high = cdf.gather(1, piece), cdf.gather(1, piece + 1)
    start, end = distances.gather(1, piece), distances.gather(1, piece + 1)
    added = start + (quantiles - low) / (high - low).clamp(min=1e-8) * (end - start)
    return torch.cat([distances, added], dim=1).sort(dim=1).values
