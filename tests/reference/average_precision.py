"""Scores of downstream tasks, by loops over their definitions."""

import itertools
import math

import numpy as np


def pixel_scores(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """IoU where the logit is 0 or more, the best IoU over thresholds, and average precision, of flat arrays."""

    def counts(threshold: float) -> tuple[int, int, int]:
        hits = misses = false = 0
        for logit, true in zip(logits.tolist(), truth.tolist(), strict=True):
            if logit >= threshold:
                hits, false = hits + bool(true), false + (not true)
            else:
                misses += bool(true)
        return hits, misses, false

    hits, misses, false = counts(0.0)
    iou = hits / (hits + misses + false)
    best = area = before = 0.0
    for threshold in sorted(set(logits.tolist()), reverse=True):
        hits, misses, false = counts(threshold)
        best = max(best, hits / (hits + misses + false))
        recall = hits / (hits + misses)
        area += (recall - before) * hits / (hits + false)
        before = recall
    return iou, best, area


def walk(line: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Points at equal distances along a line, found by walking it."""
    lengths = [math.dist(a, b) for a, b in itertools.pairwise(line)]
    points = []
    for k in range(count):
        left = sum(lengths) * k / (count - 1)
        for a, b, length in zip(line, line[1:], lengths, strict=False):
            if left <= length and length > 0:
                share = left / length
                points.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
                break
            left -= length
        else:
            points.append(line[-1])
    return points


def chamfer(line: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """Mean of both mean distances to the nearest of 100 points."""
    a, b = walk(line, 100), walk(other, 100)
    there = sum(min(math.dist(p, q) for q in b) for p in a) / len(a)
    back = sum(min(math.dist(p, q) for p in a) for q in b) / len(b)
    return (there + back) / 2


def chamfer_average_precision(
    predicted: list[list[tuple[float, list[tuple[float, float]]]]],
    true: list[list[list[tuple[float, float]]]],
    threshold: float,
) -> float:
    """MapTR's average precision of one class.

    Args:
        predicted: For each sample its lines, each with how sure the model is of it.
        true: For each sample its lines.
        threshold: Chamfer distance within which a line is found, metres.
    """
    everything = [(score, sample, line) for sample, lines in enumerate(predicted) for score, line in lines]
    everything.sort(key=lambda row: -row[0])
    taken, points = set(), []
    hits = 0
    for rank, (_, sample, line) in enumerate(everything, 1):
        distances = [chamfer(line, other) for other in true[sample]]
        if distances:
            nearest = distances.index(min(distances))
            if distances[nearest] <= threshold and (sample, nearest) not in taken:
                taken.add((sample, nearest))
                hits += 1
        points.append((hits / sum(map(len, true)), hits / rank))
    area = before = 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[k:])
        before = recall
    return area
