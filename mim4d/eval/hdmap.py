"""HD maps as vectorised lines, by a query decoder.

MapTR's protocol (arXiv 2208.14437, section 4.1): dividers, road boundaries and pedestrian crossings within 30 m ahead
and behind and 15 m to either side; average precision at Chamfer distances of 0.5, 1.0 and 1.5 m. A line is 20 points in
any equivalent order (section 3.2): 2 orders of an open line, 38 of a closed one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.cluster import vq
from scipy.optimize import linear_sum_assignment
from shapely.geometry.base import BaseGeometry
from torch import Tensor, nn

from ..geometry import VoxelGrid
from .augmentation import BEVAugmentation
from .decoder import VectorDecoder
from .labels import Annotations
from .task import Figures, extent

NAMES = ("divider", "boundary", "crossing")
COLOURS = ("tab:orange", "tab:blue", "tab:green")
POINTS = 20
"""Points per line."""
LINES = 30
"""Largest number of predicted lines per sample."""
ORDERS = 2 * (POINTS - 1)
"""Equivalent orders of a closed line's points."""
THRESHOLDS = (0.5, 1.0, 1.5)
"""Largest Chamfer distances of a match, metres."""
DENSE = 100
"""Points per line for the Chamfer distance."""
REACH = 40.0
"""Half the side of the square of the map that is read, metres: larger than the grid, so that it can be rotated."""

Lines = list[tuple[int, NDArray[np.float64]]]
"""Index of the class, and points [n, 2] in metres."""


@dataclass(frozen=True)
class MapTarget:
    """Target of one sample with L lines."""

    labels: Tensor
    """[L] int64: classes."""
    points: Tensor
    """[L, ORDERS, POINTS, 2], 0 to 1 over the grid, in every equivalent order."""


class HDMap:
    """The task. The ground truth of a sample is its :data:`Lines` in a square larger than the grid."""

    name = "hd-map"
    grid = VoxelGrid(x=(-30.0, 30.0), y=(-15.0, 15.0), z=(-3.2, 4.8), voxel=(0.375, 0.375, 8.0))

    def read(self, annotations: Annotations, token: str) -> Lines:
        """Read the lines of a sample."""
        layers = annotations.map_layers(token, ("divider", "crossing", "road"), REACH)
        shapes = [(0, line) for line in layers["divider"]]
        for label, name in ((1, "road"), (2, "crossing")):
            if layers[name]:
                shapes.append((label, shapely.union_all(layers[name]).boundary))
        return [(label, np.array(part.coords)) for label, shape in shapes for part in _parts(shape)]

    def lines(self, truth: Lines, augmentation: BEVAugmentation) -> Lines:
        """Augment lines and clip them to the grid."""
        square = shapely.box(self.grid.x[0], self.grid.y[0], self.grid.x[1], self.grid.y[1])
        moved = [(label, shapely.LineString(augmentation.points(line))) for label, line in truth]
        cut = [(label, shapely.intersection(line, square)) for label, line in moved]
        return [(label, np.array(part.coords)) for label, shape in cut for part in _parts(shape)]

    def target(self, truth: Lines, augmentation: BEVAugmentation) -> MapTarget:
        """Resample the augmented lines in the grid to POINTS points at equal distances, in every equivalent order."""
        lines = self.lines(truth, augmentation)
        points = np.array([_orders(resample(line, POINTS)) for _, line in lines]).reshape(-1, ORDERS, POINTS, 2)
        low, high = np.array([self.grid.x[0], self.grid.y[0]]), np.array([self.grid.x[1], self.grid.y[1]])
        labels = torch.tensor([label for label, _ in lines], dtype=torch.int64)
        return MapTarget(labels, torch.from_numpy((points - low) / (high - low)).float())

    def head(self, channels: int, up: int, examples: Iterable[Lines]) -> nn.Module:
        """Build a decoder whose queries start from typical lines of the examples."""
        targets = [self.target(truth, BEVAugmentation.none()) for truth in examples]
        # The smallest order of each line, so that equal lines have equal points and the mean of a cluster is a line.
        lines = np.array([min(orders) for target in targets for orders in target.points.tolist()])
        lines = lines.reshape(-1, POINTS, 2)
        return VectorDecoder(channels, len(NAMES), torch.from_numpy(typical(lines, LINES)).float())

    def loss(self, output: list[tuple[Tensor, Tensor]], targets: list[MapTarget]) -> Tensor:
        """Return the sum of the layers' losses per true line.

        In each layer, predicted lines are first assigned to true ones at the lowest cost (DETR, arXiv 2005.12872,
        section 3.1).

        Args:
            output: Logits [B, N, classes] and points [B, N, POINTS, 2] of each layer.
            targets: B targets.
        """
        lines = max(1, sum(len(target.labels) for target in targets))
        losses = [
            self._layer_loss(logits[b].float(), points[b].float(), target)
            for logits, points in output
            for b, target in enumerate(targets)
        ]
        return torch.stack(losses).sum() / lines

    def _layer_loss(self, logits: Tensor, points: Tensor, target: MapTarget) -> Tensor:
        """Return the loss of one layer and one sample, summed over lines.

        Args:
            logits: [N, classes].
            points: [N, POINTS, 2].
            target: L lines.
        """
        labels, lines = target.labels.to(logits.device), target.points.to(logits.device)
        truth = torch.zeros_like(logits)
        distance = points.new_zeros(())
        if len(labels):
            with torch.no_grad():
                distances = torch.cdist(points.flatten(1), lines.flatten(2).flatten(0, 1), p=1)  # [N, L*ORDERS]
                nearest, order = distances.unflatten(1, (len(labels), ORDERS)).min(-1)  # [N, L] each
                cost = 2 * _focal_cost(logits)[:, labels] + 5 * nearest  # [N, L]
                finite = cost.nan_to_num().cpu().numpy()  # scipy raises for NaN; the run then reports the loss
                rows, columns = (torch.as_tensor(i) for i in linear_sum_assignment(finite))
                rows, columns = rows.to(logits.device), columns.to(logits.device)
            truth[rows, labels[columns]] = 1
            distance = (points[rows] - lines[columns, order[rows, columns]]).abs().sum()
        return 2 * _focal(logits, truth).sum() + 5 * distance

    def predictions(self, output: list[tuple[Tensor, Tensor]], sample: int) -> tuple[Lines, NDArray[np.float64]]:
        """Return a sample's predicted lines, in metres and of the most probable class, and their scores, 0 to 1."""
        logits, points = (values[sample].float().cpu() for values in output[-1])
        low, high = np.array([self.grid.x[0], self.grid.y[0]]), np.array([self.grid.x[1], self.grid.y[1]])
        metres = points.double().numpy() * (high - low) + low
        scores, labels = logits.sigmoid().max(-1)
        return list(zip(labels.tolist(), metres, strict=True)), scores.double().numpy()

    def scores(self, annotations: Annotations, split: str) -> "MapScores":
        """Return an empty score; every split can be scored."""
        return MapScores(self)

    def draw(self, axis: Axes, truth: Lines, output: Any | None) -> None:
        """Draw lines from above; predicted ones with a score above 0.3."""
        lines, scores = self.lines(truth, BEVAugmentation.none()), None
        if output is not None:
            lines, scores = self.predictions(output, 0)
        axis.set_facecolor("whitesmoke")
        for index, (label, line) in enumerate(lines):
            if scores is None or scores[index] > 0.3:
                alpha = 1.0 if scores is None else float(scores[index])
                axis.plot(line[:, 1], line[:, 0], ".-", color=COLOURS[label], markersize=3, linewidth=1.2, alpha=alpha)
        left, right, low, high = extent(self.grid)
        axis.set_xlim(left, right)
        axis.set_ylim(low, high)


def _parts(shape: BaseGeometry) -> list[BaseGeometry]:
    """Return the lines of a line, ring or collection, without points; lines that touch at their ends are joined."""
    if shape.geom_type in ("GeometryCollection", "MultiLineString"):
        shape = shapely.line_merge(shapely.MultiLineString([g for g in shape.geoms if g.geom_type == "LineString"]))
    parts = list(getattr(shape, "geoms", [shape]))
    return [part for part in parts if part.geom_type in ("LineString", "LinearRing") and part.length > 0]


def resample(line: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return ``count`` points at equal distances along a line [n, 2], including its ends.

    >>> resample(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]]), 3).tolist()
    [[0.0, 0.0], [1.0, 1.0], [1.0, 3.0]]
    """
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    lengths = np.concatenate([[0.0], np.cumsum(steps)])  # from the first point, [n]
    wanted = np.linspace(0.0, lengths[-1], count)
    return np.stack([np.interp(wanted, lengths, line[:, axis]) for axis in (0, 1)], axis=-1)


def _orders(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a line's points in every equivalent order, [ORDERS, POINTS, 2].

    An open line starts at either end; a closed one at any point, in either direction.
    """
    if not np.allclose(line[0], line[-1]):
        return np.tile(np.stack([line, line[::-1]]), (POINTS - 1, 1, 1))
    shifted = [np.roll(line[:-1], -k, axis=0) for k in range(POINTS - 1)]
    whole = np.stack([np.concatenate([ring, ring[:1]]) for ring in shifted])
    return np.concatenate([whole, whole[:, ::-1]])


def typical(lines: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Choose lines [count, P, 2] that represent many lines [L, P, 2].

    They are the means of clusters, like the anchor boxes of YOLO9000 (arXiv 1612.08242, section 2). Fewer lines than
    ``count`` are repeated with random offsets.
    """
    means = np.unique(lines, axis=0) if len(lines) else np.full((1, *lines.shape[1:]), 0.5)
    if len(means) > count:
        means = vq.kmeans2(means.reshape(len(means), -1), count, minit="++", seed=0)[0]
    offsets = np.random.default_rng(0).normal(0.0, 0.05, (count, 1, 2))
    offsets[: len(means)] = 0.0
    return np.resize(means, (count, *lines.shape[1:])) + offsets


def _focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the focal loss (arXiv 1708.02002, eq. 5) of each logit, with alpha = 0.25 and gamma = 2."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    error = truth + probability - 2 * truth * probability  # 1 - p where true, p elsewhere
    return (0.25 * truth + 0.75 * (1 - truth)) * error**2 * entropy


def _focal_cost(logits: Tensor) -> Tensor:
    """Return the focal loss of each logit if it is true, minus that if it is not (Deformable DETR's cost)."""
    return _focal(logits, torch.ones_like(logits)) - _focal(logits, torch.zeros_like(logits))


class MapScores:
    """Collects predicted and true lines."""

    def __init__(self, task: HDMap) -> None:
        self._task = task
        self._average = ChamferAP(len(NAMES))

    def add(self, output: Any, truths: list[Lines], tokens: list[str]) -> None:
        """Add a batch of the head's output."""
        for sample, truth in enumerate(truths):
            self._average.add(*self._task.predictions(output, sample), self._task.lines(truth, BEVAugmentation.none()))

    def result(self, out: Path) -> Figures:
        """Return average precisions, 0 to 1; None for a class without lines.

        ``map_AP``: the mean over classes and thresholds; ``map_AP_<class>``; ``map_AP_<class>_<threshold>``.
        """
        table = self._average.result()
        figures: Figures = {}
        for name, values in zip(NAMES, table, strict=True):
            figures[f"map_AP_{name}"] = None if np.isnan(values).any() else float(values.mean())
            for threshold, value in zip(THRESHOLDS, values, strict=True):
                figures[f"map_AP_{name}_{threshold}"] = None if np.isnan(value) else float(value)
        known = [figures[f"map_AP_{name}"] for name in NAMES if figures[f"map_AP_{name}"] is not None]
        return {"map_AP": float(np.mean(known)) if known else None, **figures}


class ChamferAP:
    """Average precision of lines by Chamfer distance.

    In descending order of scores, each predicted line is matched to the nearest true line, if that is within the
    threshold and not matched yet.
    """

    def __init__(self, classes: int) -> None:
        self._true = np.zeros(classes, dtype=np.int64)
        self._scores: list[list[float]] = [[] for _ in range(classes)]
        self._found: list[list[list[bool]]] = [[] for _ in range(classes)]

    def add(self, lines: Lines, scores: NDArray[np.float64], truth: Lines) -> None:
        """Add a sample.

        Args:
            lines: Predicted lines.
            scores: [len(lines)].
            truth: True lines.
        """
        order = np.argsort(-scores, kind="stable")
        for label in range(len(self._true)):
            own = [i for i in order if lines[i][0] == label]
            true = [line for of, line in truth if of == label]
            self._true[label] += len(true)
            distance = chamfer([lines[i][1] for i in own], true)  # [predicted, true]
            matched = np.zeros((len(true), len(THRESHOLDS)), dtype=bool)
            for row, i in enumerate(own):
                hits = [False] * len(THRESHOLDS)
                if true:
                    nearest = int(distance[row].argmin())
                    hits = [distance[row, nearest] <= t and not matched[nearest, k] for k, t in enumerate(THRESHOLDS)]
                    matched[nearest] |= hits
                self._scores[label].append(float(scores[i]))
                self._found[label].append([bool(hit) for hit in hits])

    def result(self) -> NDArray[np.float64]:
        """Return the area under the upper envelope of the precision, [classes, thresholds]; NaN without true lines."""
        table = np.full((len(self._true), len(THRESHOLDS)), np.nan)
        for label, true in enumerate(self._true):
            if true:
                order = np.argsort(-np.array(self._scores[label]), kind="stable")
                found = np.array(self._found[label], dtype=np.float64).reshape(-1, len(THRESHOLDS))[order]
                table[label] = [_area(found[:, k], int(true)) for k in range(len(THRESHOLDS))]
        return table


def _area(found: NDArray[np.float64], true: int) -> float:
    """Return the average precision of hits (1) and misses (0) in order of scores, for ``true`` true lines."""
    hits = np.cumsum(found)
    precision = hits / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(np.concatenate([[0.0], hits / true])) * envelope).sum())


def chamfer(lines: list[NDArray[np.float64]], others: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the Chamfer distances [len(lines), len(others)], metres.

    Each is the mean over both directions of the mean distance to the nearest point, with DENSE points per line.
    """
    if not lines or not others:
        return np.zeros((len(lines), len(others)))
    a, b = (torch.from_numpy(np.stack([resample(line, DENSE) for line in x])) for x in (lines, others))
    distances = torch.cdist(a.flatten(0, 1), b.flatten(0, 1))  # [lines * DENSE, others * DENSE]
    distances = distances.unflatten(1, (-1, DENSE)).unflatten(0, (-1, DENSE))  # [lines, DENSE, others, DENSE]
    return 0.5 * (distances.amin(3).mean(1) + distances.amin(1).mean(2)).numpy()
