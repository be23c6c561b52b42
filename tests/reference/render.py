"""NeuS (arXiv 2106.10689) in float64, per ray and sample."""

import math

EPS = 1e-5
"""The authors' code adds this above and below the line of alpha, which keeps 0 / 0 away deep inside a solid."""


def logistic(x):
    """1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def opaque_share(before, after, inv_s, eps=EPS):
    """Alpha of a section from the signed distances at its ends (eq. 13)."""
    enter, leave = logistic(before * inv_s), logistic(after * inv_s)
    return min(max((enter - leave + eps) / (enter + eps), 0.0), 1.0)


def weights(alphas):
    """Weight of each section: alpha times the transmittance of all sections before it."""
    result, light = [], 1.0
    for alpha in alphas:
        result.append(alpha * light)
        light *= 1 - alpha
    return result


def interval(origin, direction, low, high, nearest=1.0):
    """The interval (near, far) of a ray inside a box and not nearer than ``nearest``, or None."""
    near, far = nearest, math.inf
    for axis in range(3):
        if direction[axis] == 0:
            if not low[axis] <= origin[axis] <= high[axis]:
                return None
            continue
        crossings = sorted((edge - origin[axis]) / direction[axis] for edge in (low[axis], high[axis]))
        near, far = max(near, crossings[0]), min(far, crossings[1])
    return (near, far) if far > near else None


def stratified(near, far, jitter):
    """One distance in each equal interval of a ray."""
    size = (far - near) / len(jitter)
    return [near + i * size + share * size for i, share in enumerate(jitter)]


def coarse_weights(distances, sdf, inv_s, eps=EPS):
    """Weights of the intervals between samples, from signed distances (the supplement and the authors' code)."""
    alphas, last = [], 0.0
    for i in range(len(distances) - 1):
        step = distances[i + 1] - distances[i]
        slope = (sdf[i + 1] - sdf[i]) / (step + 1e-5)
        steepest = max(min(slope, last, 0.0), -1e3)
        last = slope
        middle = (sdf[i] + sdf[i + 1]) / 2
        alphas.append(opaque_share(middle - steepest * step / 2, middle + steepest * step / 2, inv_s, eps))
    return weights(alphas)


def importance(distances, shares, count):
    """More distances, where the cumulative weight reaches 0.5/count, 1.5/count, ... of its total."""
    shares = [share + 1e-5 for share in shares]
    total, added = sum(shares), []
    for k in range(count):
        wanted, reached = (k + 0.5) / count * total, 0.0
        for i, share in enumerate(shares):
            if reached + share >= wanted or i == len(shares) - 1:
                added.append(distances[i] + (wanted - reached) / share * (distances[i + 1] - distances[i]))
                break
            reached += share
    return sorted([*distances, *added])


def march(evaluate, origin, direction, distances, far, inv_s, scale, background, eps=EPS):
    """Colour, depth in metres and opacity of one ray.

    ``evaluate(point, direction)`` gives signed distance and normal in scene units, and colour, at a point in metres.
    """
    ends = [*distances[1:], far]
    alphas, colours, middles = [], [], []
    for start, end in zip(distances, ends, strict=True):
        middle = (start + end) / 2
        sdf, normal, colour = evaluate(origin + middle * direction, direction)
        cos = sum(direction[axis] * normal[axis] for axis in range(3))
        drop = max(-cos, 0.0) * (end - start) / scale
        alphas.append(opaque_share(sdf + drop / 2, sdf - drop / 2, inv_s, eps))
        colours.append(colour)
        middles.append(middle)
    shares = weights(alphas)
    opacity = sum(shares)
    depth = sum(share * middle for share, middle in zip(shares, middles, strict=True)) / max(opacity, 1e-6)
    rgb = [
        sum(share * colour[c] for share, colour in zip(shares, colours, strict=True)) + (1 - opacity) * background[c]
        for c in range(3)
    ]
    return rgb, depth, opacity
