"""HD maps as vectorised lines, by a query decoder.

MapTR's protocol (arXiv 2208.14437, section 4.1): dividers, road boundaries and pedestrian crossings within 30 m ahead
and behind and 15 m to either side; average precision at Chamfer distances of 0.5, 1.0 and 1.5 m. Its modelling of a
line (section 3.2): 20 points of which every equivalent order is right, two for an open line, 38 for a closed one.
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
"""Of a line."""
LINES = 30
"""The most that can be found in a sample."""
ORDERS = 2 * (POINTS - 1)
"""Equivalent orders of a closed line's points."""
THRESHOLDS = (0.5, 1.0, 1.5)
"""Chamfer distances within which a line is found, metres."""
DENSE = 100
"""Points along a line that distances are taken between."""
REACH = 40.0
"""Half the side of the square that is kept of the map, so that it can be turned, metres."""

Lines = list[tuple[int, NDArray[np.float64]]]
"""Number of the class and points [n, 2] in metres."""


@dataclass(frozen=True)
class MapTarget:
    """Of one sample with M lines."""

    labels: Tensor
    """[M] int64."""
    points: Tensor
    """[M, ORDERS, POINTS, 2], 0 to 1 over the grid, in every order that is right."""


class HDMap:
    """The task; a kept sample is its :data:`Lines` in a square wider than the grid."""

    name = "hd-map"
    grid = VoxelGrid(x=(-30.0, 30.0), y=(-15.0, 15.0), z=(-3.2, 4.8), voxel=(0.375, 0.375, 8.0))

    def read(self, annotations: Annotations, token: str) -> Lines:
        """The lines."""
        layers = annotations.map_layers(token, ("divider", "crossing", "road"), REACH)
        shapes = [(0, line) for line in layers["divider"]]
        for label, name in ((1, "road"), (2, "crossing")):
            if layers[name]:
                shapes.append((label, shapely.union_all(layers[name]).boundary))
        return [(label, np.array(part.coords)) for label, shape in shapes for part in _parts(shape)]

    def lines(self, kept: Lines, augmentation: BEVAugmentation) -> Lines:
        """What of the lines lies in the grid."""
        square = shapely.box(self.grid.x[0], self.grid.y[0], self.grid.x[1], self.grid.y[1])
        moved = [(label, shapely.LineString(augmentation.points(line))) for label, line in kept]
        cut = [(label, shapely.intersection(line, square)) for label, line in moved]
        return [(label, np.array(part.coords)) for label, shape in cut for part in _parts(shape)]

    def target(self, kept: Lines, augmentation: BEVAugmentation) -> MapTarget:
        """The lines in the grid as POINTS points at equal distances, in every order."""
        lines = self.lines(kept, augmentation)
        points = np.array([_orders(resample(line, POINTS)) for _, line in lines]).reshape(-1, ORDERS, POINTS, 2)
        low, high = np.array([self.grid.x[0], self.grid.y[0]]), np.array([self.grid.x[1], self.grid.y[1]])
        labels = torch.tensor([label for label, _ in lines], dtype=torch.int64)
        return MapTarget(labels, torch.from_numpy((points - low) / (high - low)).float())

    def head(self, channels: int, up: int, examples: Iterable[Lines]) -> nn.Module:
        """A decoder of queries that start from typical lines."""
        orders = [orders for kept in examples for orders in self.target(kept, BEVAugmentation.none()).points.tolist()]
        # One order of each line, the same for the same line, or the middle of a cluster would be nowhere.
        lines = np.array([min(of_a_line) for of_a_line in orders]).reshape(-1, POINTS, 2)
        return VectorDecoder(channels, len(NAMES), torch.from_numpy(typical(lines, LINES)).float())

    def loss(self, output: list[tuple[Tensor, Tensor]], targets: list[MapTarget]) -> Tensor:
        """Each layer's, after the best assignment of its lines to true ones (DETR, arXiv 2005.12872, section 3.1)."""
        lines = max(1, sum(len(target.labels) for target in targets))
        losses = [
            self._layer_loss(logits[b].float(), points[b].float(), target)
            for logits, points in output
            for b, target in enumerate(targets)
        ]
        return torch.stack(losses).sum() / lines

    def _layer_loss(self, logits: Tensor, points: Tensor, target: MapTarget) -> Tensor:
        """One layer, one sample, summed over lines.

        Args:
            logits: [N, classes].
            points: [N, POINTS, 2].
            target: M lines.
        """
        labels, wanted = target.labels.to(logits.device), target.points.to(logits.device)
        truth = torch.zeros_like(logits)
        apart = points.new_zeros(())
        if len(labels):
            with torch.no_grad():
                far = torch.cdist(points.flatten(1), wanted.flatten(2).flatten(0, 1), p=1)  # [N, M*ORDERS]
                nearest, order = far.unflatten(1, (len(labels), ORDERS)).min(-1)  # [N, M]
                cost = 2 * _focal_cost(logits)[:, labels] + 5 * nearest
                finite = cost.nan_to_num().cpu().numpy()  # or it refuses before anybody is told of the loss
                rows, columns = (torch.as_tensor(i) for i in linear_sum_assignment(finite))
                rows, columns = rows.to(logits.device), columns.to(logits.device)
            truth[rows, labels[columns]] = 1
            apart = (points[rows] - wanted[columns, order[rows, columns]]).abs().sum()
        return 2 * _focal(logits, truth).sum() + 5 * apart

    def predictions(self, output: list[tuple[Tensor, Tensor]], sample: int) -> tuple[Lines, NDArray[np.float64]]:
        """A sample's lines in metres, each of its likeliest class, and how sure the model is of them, 0 to 1."""
        logits, points = (values[sample].float().cpu() for values in output[-1])
        low, high = np.array([self.grid.x[0], self.grid.y[0]]), np.array([self.grid.x[1], self.grid.y[1]])
        metres = points.double().numpy() * (high - low) + low
        scores, labels = logits.sigmoid().max(-1)
        return list(zip(labels.tolist(), metres, strict=True)), scores.double().numpy()

    def scores(self, annotations: Annotations, split: str) -> "MapScores":
        """An empty collection."""
        return MapScores(self)

    def draw(self, axis: Axes, kept: Lines, output: Any | None) -> None:
        """Lines from above; predicted ones if the model is more sure of them than 0.3."""
        lines, scores = self.lines(kept, BEVAugmentation.none()), None
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
    """The lines of a line, ring, or collection; ones that touch at their ends are joined, points are left out."""
    if shape.geom_type in ("GeometryCollection", "MultiLineString"):
        shape = shapely.line_merge(shapely.MultiLineString([g for g in shape.geoms if g.geom_type == "LineString"]))
    parts = list(getattr(shape, "geoms", [shape]))
    return [part for part in parts if part.geom_type in ("LineString", "LinearRing") and part.length > 0]


def resample(line: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """``count`` points at equal distances along a line [n, 2], its ends among them."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.linspace(0.0, way[-1], count)
    return np.stack([np.interp(places, way, line[:, axis]) for axis in (0, 1)], axis=-1)


def _orders(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """[ORDERS, POINTS, 2]: a line's points from either end; a closed line's from every point, both ways round."""
    if not np.allclose(line[0], line[-1]):
        return np.tile(np.stack([line, line[::-1]]), (POINTS - 1, 1, 1))
    shifted = [np.roll(line[:-1], -k, axis=0) for k in range(POINTS - 1)]
    whole = np.stack([np.concatenate([ring, ring[:1]]) for ring in shifted])
    return np.concatenate([whole, whole[:, ::-1]])


def typical(lines: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Lines [count, P, 2] that stand for many [M, P, 2]: the means of clusters, as YOLO9000's first boxes are (arXiv
    1612.08242, section 2). Fewer lines than ``count`` are taken again, put aside a little."""
    means = np.unique(lines, axis=0) if len(lines) else np.full((1, *lines.shape[1:]), 0.5)
    if len(means) > count:
        means = vq.kmeans2(means.reshape(len(means), -1), count, minit="++", seed=0)[0]
    aside = np.random.default_rng(0).normal(0.0, 0.05, (count, 1, 2))
    aside[: len(means)] = 0.0
    return np.resize(means, (count, *lines.shape[1:])) + aside


def _focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002, eq. 5), alpha 0.25 and gamma 2, one value per logit."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    share = logits.sigmoid()
    off = truth + share - 2 * truth * share  # 1 - p of what is true
    return (0.25 * truth + 0.75 * (1 - truth)) * off**2 * entropy


def _focal_cost(logits: Tensor) -> Tensor:
    """What the focal loss of each logit would gain by being true (Deformable DETR's cost)."""
    return _focal(logits, torch.ones_like(logits)) - _focal(logits, torch.zeros_like(logits))


class MapScores:
    """Collects lines."""

    def __init__(self, task: HDMap) -> None:
        self._task = task
        self._average = ChamferAP(len(NAMES))

    def add(self, output: Any, kept: list[Lines], tokens: list[str]) -> None:
        """Add a batch."""
        for sample, truth in enumerate(kept):
            self._average.add(*self._task.predictions(output, sample), self._task.lines(truth, BEVAugmentation.none()))

    def result(self, out: Path) -> Figures:
        """``map_AP``, the mean over classes and thresholds; ``map_AP_<class>``; ``map_AP_<class>_<threshold>``."""
        table = self._average.result()
        figures: Figures = {}
        for name, values in zip(NAMES, table, strict=True):
            figures[f"map_AP_{name}"] = None if np.isnan(values).any() else float(values.mean())
            for threshold, value in zip(THRESHOLDS, values, strict=True):
                figures[f"map_AP_{name}_{threshold}"] = None if np.isnan(value) else float(value)
        there = [figures[f"map_AP_{name}"] for name in NAMES if figures[f"map_AP_{name}"] is not None]
        return {"map_AP": float(np.mean(there)) if there else None, **figures}


class ChamferAP:
    """Average precision of lines: each predicted one, surest first, may claim the true one that is nearest to it."""

    def __init__(self, classes: int) -> None:
        self._true = np.zeros(classes, dtype=np.int64)
        self._scores: list[list[float]] = [[] for _ in range(classes)]
        self._found: list[list[list[bool]]] = [[] for _ in range(classes)]

    def add(self, lines: Lines, scores: NDArray[np.float64], truth: Lines) -> None:
        """Take in a sample: predicted lines, how sure the model is of each, and the true lines."""
        surest = np.argsort(-scores, kind="stable")
        for label in range(len(self._true)):
            own = [i for i in surest if lines[i][0] == label]
            true = [line for of, line in truth if of == label]
            self._true[label] += len(true)
            apart = chamfer([lines[i][1] for i in own], true)  # [predicted, true]
            taken = np.zeros((len(true), len(THRESHOLDS)), dtype=bool)
            for row, i in enumerate(own):
                hits = [False] * len(THRESHOLDS)
                if true:
                    nearest = int(apart[row].argmin())
                    hits = [apart[row, nearest] <= t and not taken[nearest, k] for k, t in enumerate(THRESHOLDS)]
                    taken[nearest] |= hits
                self._scores[label].append(float(scores[i]))
                self._found[label].append([bool(hit) for hit in hits])

    def result(self) -> NDArray[np.float64]:
        """[classes, thresholds]: area under the precision's upper envelope; NaN for a class that is nowhere."""
        table = np.full((len(self._true), len(THRESHOLDS)), np.nan)
        for label, true in enumerate(self._true):
            if true:
                order = np.argsort(-np.array(self._scores[label]), kind="stable")
                found = np.array(self._found[label], dtype=np.float64).reshape(-1, len(THRESHOLDS))[order]
                table[label] = [_area(found[:, k], int(true)) for k in range(len(THRESHOLDS))]
        return table


def _area(found: NDArray[np.float64], true: int) -> float:
    """Average precision of hits (1) and misses (0) in order, of ``true`` that could be found."""
    hits = np.cumsum(found)
    precision = hits / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(np.concatenate([[0.0], hits / true])) * envelope).sum())


def chamfer(lines: list[NDArray[np.float64]], others: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Chamfer distances [len(lines), len(others)], metres: the mean of both mean distances to the nearest point, of
    DENSE points along each."""
    if not lines or not others:
        return np.zeros((len(lines), len(others)))
    a, b = (torch.from_numpy(np.stack([resample(line, DENSE) for line in x])) for x in (lines, others))
    apart = torch.cdist(a.flatten(0, 1), b.flatten(0, 1)).unflatten(1, (-1, DENSE)).unflatten(0, (-1, DENSE))
    return 0.5 * (apart.amin(3).mean(1) + apart.amin(1).mean(2)).numpy()
