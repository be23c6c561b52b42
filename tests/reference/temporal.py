"""Deformable attention over frames (arXiv 2010.04159, eq. 3) in float64, per cell, head and point."""

import math

import numpy as np


def time_embedding(gap, channels, shortest=0.1, longest=100.0):
    """Sines, then cosines, of a gap in seconds; periods from shortest to longest, each a fixed multiple of the last."""
    half = channels // 2
    ratio = (longest / shortest) ** (1 / (half - 1))
    angles = [2 * math.pi * gap / (shortest * ratio**i) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def bilinear(plane, x, y):
    """Value [C] of a plane [Y, X, C] between the centres of its cells (at whole numbers); zero outside."""
    height, width, channels = plane.shape
    value = np.zeros(channels)
    left, top = math.floor(x), math.floor(y)
    for j in (top, top + 1):
        for i in (left, left + 1):
            if 0 <= i < width and 0 <= j < height:
                value += (1 - abs(x - i)) * (1 - abs(y - j)) * plane[j, i]
    return value


def attend(weights, queries, keys, values, heads, points):
    """Deformable attention.

    Args:
        weights: By name: ``offsets``, ``scores`` and ``output``, each ``.weight`` and ``.bias``.
        queries: [Y, X, E].
        keys: [S, Y, X, E].
        values: [S, Y, X, E].
        heads: A whole share of E each.
        points: Sampled points a head and frame.

    Returns:
        Features [Y, X, E]; offsets [S, Y, X, heads, points, 2] and attention [S, Y, X, heads, points].
    """
    frames, height, width, channels = keys.shape
    share = channels // heads
    offsets = np.zeros((frames, height, width, heads, points, 2))
    attention = np.zeros((frames, height, width, heads, points))
    features = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            logits = np.zeros((frames, heads, points))
            for s in range(frames):
                asked = queries[y, x] + keys[s, y, x]
                moves = weights["offsets.weight"] @ asked + weights["offsets.bias"]
                scores = weights["scores.weight"] @ asked + weights["scores.bias"]
                for h in range(heads):
                    for p in range(points):
                        offsets[s, y, x, h, p] = moves[(h * points + p) * 2 : (h * points + p) * 2 + 2]
                        logits[s, h, p] = scores[h * points + p]
            mixed = np.zeros(channels)
            for h in range(heads):
                exponentials = np.exp(logits[:, h] - logits[:, h].max())
                attention[:, y, x, h] = exponentials / exponentials.sum()
                part = slice(h * share, (h + 1) * share)
                for s in range(frames):
                    for p in range(points):
                        dx, dy = offsets[s, y, x, h, p]
                        value = bilinear(values[s, :, :, part], x + dx, y + dy)
                        mixed[part] += attention[s, y, x, h, p] * value
            features[y, x] = weights["output.weight"] @ mixed + weights["output.bias"]
    return features, offsets, attention
