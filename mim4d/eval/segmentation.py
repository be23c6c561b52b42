"""BEV segmentation of vehicles and map layers.

The protocol of Lift-Splat-Shoot (arXiv 2008.05711, section 5) and Cross-View Transformers (arXiv 2205.02833, section
4): 100 x 100 m round the car in cells of 0.5 m; all of nuScenes' ``vehicle.*``; IoU over all cells of the held-out
samples at a probability of 0.5. Vehicles of which the cameras see less than ``min_visibility`` says are left out of the
loss and of the score, as by the latter; 1 counts all, as the former does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor, nn

from ..geometry import VoxelGrid
from .augmentation import BEVAugmentation
from .labels import Annotations, footprints, rasterise
from .task import Figures, as_image, extent, upsampled

NAMES = ("vehicle", "drivable", "divider", "crossing")
COLOURS = ("tab:blue", "lightgrey", "tab:orange", "tab:green")
DRAWN = (1, 3, 2, 0)
"""Classes in drawing order."""
HIDDEN = 1 << len(NAMES)
"""The bit of cells under a vehicle that is hardly seen."""
LINE_WIDTH = 1.0
"""Of dividers, metres: two cells, as the devkit draws them."""


def bev_grid(reach: float, cell: float) -> VoxelGrid:
    """A square of ``reach`` metres to each side in cells of ``cell`` metres."""
    return VoxelGrid(x=(-reach, reach), y=(-reach, reach), z=(-3.2, 4.8), voxel=(cell, cell, 8.0))


@dataclass(frozen=True)
class SegmentationTarget:
    """Of one sample."""

    truth: Tensor
    """[classes, Y, X] bool."""
    counts: Tensor
    """[classes, Y, X] bool: which cells are trained on and scored."""


class Segmentation:
    """The task; its ground truth is a canvas [Y', X'] uint8 with one bit per class, wide enough to be rotated."""

    name = "bev-seg"
    grid = bev_grid(50.0, 0.5)
    canvas = bev_grid(72.0, 0.5)

    def __init__(self, min_visibility: int = 2) -> None:
        """Score vehicles of nuScenes' visibility ``min_visibility`` (1 to 4) and up."""
        self.min_visibility = min_visibility

    def read(self, annotations: Annotations, token: str) -> NDArray[np.uint8]:
        """The canvas."""
        boxes = annotations.boxes(token)
        boxes = boxes[boxes["vehicle"]]
        seen = boxes["visibility"] >= self.min_visibility
        layers = annotations.map_layers(token, ("drivable", "divider", "crossing"), self.canvas.x[1] + 1)
        masks = [
            rasterise(footprints(boxes[seen]), self.canvas),
            rasterise(layers["drivable"], self.canvas),
            rasterise([line.buffer(LINE_WIDTH / 2) for line in layers["divider"]], self.canvas),
            rasterise(layers["crossing"], self.canvas),
        ]
        hidden = rasterise(footprints(boxes[~seen]), self.canvas) & ~masks[0]
        return np.packbits([*masks, hidden], axis=0, bitorder="little")[0]

    def target(self, kept: NDArray[np.uint8], augmentation: BEVAugmentation) -> SegmentationTarget:
        """Return the canvas in the grid, one map per class."""
        bits = torch.from_numpy(augmentation.raster(kept, self.canvas, self.grid))
        truth = torch.stack([(bits & (1 << bit)) > 0 for bit in range(len(NAMES))])
        counts = torch.ones_like(truth)
        counts[0] = (bits & HIDDEN) == 0
        return SegmentationTarget(truth, counts)

    def head(self, channels: int, up: int, examples: Iterable[Any]) -> nn.Module:
        """Return logits [B, classes, Y, X]."""
        return upsampled(channels, up, torch.full((len(NAMES),), -2.0))  # most cells are empty

    def loss(self, output: Tensor, targets: list[SegmentationTarget]) -> Tensor:
        """Binary cross-entropy, and Dice (arXiv 1606.04797, section 3), which keeps rare classes from vanishing."""
        truth, counts = _stacked(targets, output.device)
        logits = output.float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
        weights = counts.float()
        share, wanted = logits.sigmoid() * weights, truth.float() * weights
        over = (0, 2, 3)
        dice = 1 - (2 * (share * wanted).sum(over) + 1) / (share.sum(over) + wanted.sum(over) + 1)
        return (entropy * weights).sum() / weights.sum() + dice.mean()

    def scores(self, annotations: Annotations, split: str) -> "SegmentationScores":
        """An empty collection."""
        return SegmentationScores(self)

    def draw(self, axis: Axes, kept: NDArray[np.uint8], output: Tensor | None) -> None:
        """Classes as colours."""
        target = self.target(kept, BEVAugmentation.none())
        masks = target.truth if output is None else output[0].float().cpu() > 0
        picture = np.ones((*as_image(masks[0]).shape, 3))
        for index in DRAWN:
            picture[as_image(masks[index])] = to_rgb(COLOURS[index])
        axis.imshow(picture, origin="lower", extent=extent(self.grid), interpolation="nearest")


def _stacked(targets: list[SegmentationTarget], device: torch.device) -> tuple[Tensor, Tensor]:
    truth = torch.stack([target.truth for target in targets]).to(device)
    return truth, torch.stack([target.counts for target in targets]).to(device)


class SegmentationScores:
    """Cells by class, truth and logit."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._pixels = PixelScores(len(NAMES))

    def add(self, output: Tensor, kept: list[Any], tokens: list[str]) -> None:
        """Add a batch of logits [B, classes, Y, X]."""
        truth, counts = _stacked([self._task.target(k, BEVAugmentation.none()) for k in kept], output.device)
        self._pixels.add(output, truth, counts)

    def result(self, out: Path) -> Figures:
        """``iou_<class>`` at a probability of 0.5; ``iou_best_<class>`` at the best one; ``ap_<class>``, the average
        precision over all."""
        figures = self._pixels.result()
        return {f"{what}_{name}": values[i] for what, values in figures.items() for i, name in enumerate(NAMES)}


class PixelScores:
    """A histogram of logits for each class and truth, from which IoU and precision follow at every threshold."""

    STEP, REACH = 0.01, 15.0
    """Width of a bin, and the logit beyond which all are one."""

    def __init__(self, classes: int) -> None:
        self._bins = 2 * round(self.REACH / self.STEP)
        self._counts = torch.zeros(classes, 2, self._bins, dtype=torch.int64)

    def add(self, logits: Tensor, truth: Tensor, counts: Tensor) -> None:
        """Take in cells.

        Args:
            logits: [B, classes, Y, X].
            truth: The same, bool.
            counts: The same, bool: which of them count.
        """
        bins = ((logits.float() + self.REACH) / self.STEP).floor().long().clamp(0, self._bins - 1)
        classes = torch.arange(len(self._counts), device=logits.device)[:, None, None]
        places = ((classes * 2 + truth.long()) * self._bins + bins)[counts]
        found = torch.bincount(places, minlength=self._counts.numel()).view_as(self._counts)
        self._counts += found.cpu()

    def result(self) -> dict[str, list[float | None]]:
        """``iou`` at logit 0, ``iou_best``, ``ap``: one value per class, None where no cell is positive."""
        negatives, positives = self._counts.double().flip(-1).cumsum(-1).unbind(1)  # with this logit or more, [C, bins]
        whole = positives[:, -1:]
        iou = positives / (negatives + whole).clamp(min=1)
        precision = positives / (positives + negatives).clamp(min=1)
        recall = torch.cat([torch.zeros_like(whole), positives], dim=1) / whole.clamp(min=1)
        found = {
            "iou": iou[:, self._bins // 2 - 1],
            "iou_best": iou.amax(1),
            "ap": (recall.diff(dim=1) * precision).sum(1),
        }
        return {
            name: [float(v) if n else None for v, n in zip(values, whole.squeeze(1), strict=True)]
            for name, values in found.items()
        }
