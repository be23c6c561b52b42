"""7b. Sampling along rays: evenly first, then more samples near the estimated surface."""

import torch
from torch import Tensor


def stratified(near: Tensor, far: Tensor, jitter: Tensor) -> Tensor:
    """Place one sample in each of M equal intervals of every ray: near + (i + jitter_i) / M (far - near).

    Args:
        near: [R], metres.
        far: [R], metres.
        jitter: [R, M], position of each sample within its interval, 0 to 1.

    Returns:
        [R, M] distances, increasing.

    >>> stratified(torch.tensor([1.0]), torch.tensor([5.0]), torch.full((1, 4), 0.5))
    tensor([[1.5000, 2.5000, 3.5000, 4.5000]])
    """
    count = jitter.shape[1]
    intervals = torch.arange(count, device=near.device)  # [M]
    return near[:, None] + (intervals + jitter) / count * (far - near)[:, None]


def surface_weights(distances: Tensor, sdf: Tensor, inv_s: float) -> Tensor:
    """Compute rendering weights of the intervals between samples from signed distances (NeuS, arXiv 2106.10689).

    This is the estimate for importance sampling ("hierarchical sampling" in the supplement and the authors' code). With
    f_i the signed distance of sample i, δ_i the length of interval i and Φ the logistic function of inv_s times its
    argument::

        slope_i  = min((f_i+1 - f_i) / δ_i, slope of interval i - 1, 0)
        middle_i = (f_i + f_i+1) / 2
        alpha_i  = (Φ(middle_i - slope_i δ_i / 2) - Φ(middle_i + slope_i δ_i / 2)) / Φ(middle_i - slope_i δ_i / 2)
        weight_i = alpha_i * product over j < i of (1 - alpha_j)

    Args:
        distances: [R, M], in the unit of ``sdf``.
        sdf: [R, M].
        inv_s: Fixed sharpness of the surface.

    Returns:
        [R, M - 1], not negative.

    A wall at distance 1.5 takes all the weight:

    >>> distances = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    >>> surface_weights(distances, 1.5 - distances, inv_s=64.0).round(decimals=3)
    tensor([[0., 1., 0.]])
    """
    before, after = sdf[:, :-1], sdf[:, 1:]  # [R, M - 1]
    step = distances.diff(dim=1)
    slope = (after - before) / (step + 1e-5)
    # The minimum with the slope before makes the estimate robust where a ray only grazes a surface.
    previous = torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], dim=1)
    slope = torch.minimum(slope, previous).clamp(-1e3, 0)
    middle = (before + after) / 2
    enter = torch.sigmoid((middle - slope * step / 2) * inv_s)
    leave = torch.sigmoid((middle + slope * step / 2) * inv_s)
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)
    return alpha * transmittance(alpha)[:, :-1]


def transmittance(alpha: Tensor) -> Tensor:
    """Compute the transmittance before section i and after the last one: the product over j < i of 1 - alpha_j.

    Args:
        alpha: [R, M], opacity of each section, 0 to 1.

    Returns:
        [R, M + 1], 0 to 1: the first is 1, the last is the fraction of light that passes the whole ray.

    >>> transmittance(torch.tensor([[0.5, 0.5, 0.0]]))
    tensor([[1.0000, 0.5000, 0.2500, 0.2500]])
    """
    # The factor 1 - 1e-7 keeps the logarithm and its gradient finite for an opaque section. cumprod is no alternative:
    # its gradient searches for zeros on the host, which waits for a GPU.
    passed = torch.log1p(alpha * -(1 - 1e-7)).cumsum(dim=1).exp()
    return torch.cat([torch.ones_like(alpha[:, :1]), passed], dim=1)


def importance(distances: Tensor, weights: Tensor, count: int) -> Tensor:
    """Add samples by inverse transform sampling of the weights (NeRF, arXiv 2003.08934, section 5.2).

    The new samples are at the quantiles (i + 0.5) / count of the piecewise constant density that the weights define.

    Args:
        distances: [R, M], increasing.
        weights: [R, M - 1], of the intervals between them.
        count: Samples to add per ray.

    Returns:
        [R, M + count], increasing.

    All the weight lies between 1 and 2:

    >>> importance(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 0.0]]), count=2)
    tensor([[0.0000, 1.0000, 1.2500, 1.7500, 2.0000, 3.0000]])
    """
    weights = weights + 1e-5  # weights that are all zero spread the samples evenly
    cdf = torch.cumsum(weights / weights.sum(1, keepdim=True), dim=1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=1)  # [R, M]
    quantiles = (torch.arange(count, device=cdf.device, dtype=cdf.dtype) + 0.5) / count
    quantiles = quantiles.expand(len(cdf), -1).contiguous()  # [R, count]
    interval = (torch.searchsorted(cdf, quantiles, right=True) - 1).clamp(0, cdf.shape[1] - 2)  # [R, count]
    cdf_start, cdf_end = cdf.gather(1, interval), cdf.gather(1, interval + 1)
    start, end = distances.gather(1, interval), distances.gather(1, interval + 1)
    added = start + (quantiles - cdf_start) / (cdf_end - cdf_start).clamp(min=1e-8) * (end - start)
    return torch.cat([distances, added], dim=1).sort(dim=1).values
