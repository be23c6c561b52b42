"""BEV segmentation of vehicles and map layers.

The protocol of Lift-Splat-Shoot (arXiv 2008.05711, section 5) and Cross-View Transformers (arXiv 2205.02833, section
4): 100 x 100 m around the car in cells of 0.5 m; all of nuScenes' ``vehicle.*``; IoU over all cells of the held-out
samples at a probability of 0.5. Vehicles of a visibility below ``min_visibility`` count in neither loss nor score, as
in the latter; with 1 all of them count, as in the former.
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
"""Bit of the cells under a vehicle of too low a visibility."""
LINE_WIDTH = 1.0
"""Width of dividers, metres: two cells, as in the devkit."""


def bev_grid(reach: float, cell: float) -> VoxelGrid:
    """Return a square grid of ``reach`` metres to each side in cells of ``cell`` metres."""
    return VoxelGrid(x=(-reach, reach), y=(-reach, reach), z=(-3.2, 4.8), voxel=(cell, cell, 8.0))


@dataclass(frozen=True)
class SegmentationTarget:
    """Target of one sample."""

    truth: Tensor
    """[classes, Y, X] bool."""
    counts: Tensor
    """[classes, Y, X] bool: the cells that count in loss and score."""


class Segmentation:
    """The task. Its ground truth is a canvas [Y', X'] uint8 with one bit per class, large enough to be rotated."""

    name = "bev-seg"
    grid = bev_grid(50.0, 0.5)
    canvas = bev_grid(72.0, 0.5)

    def __init__(self, min_visibility: int = 2) -> None:
        """Count vehicles of at least nuScenes' visibility ``min_visibility`` (1 to 4)."""
        self.min_visibility = min_visibility

    def read(self, annotations: Annotations, token: str) -> NDArray[np.uint8]:
        """Rasterise the canvas of a sample."""
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

    def target(self, truth: NDArray[np.uint8], augmentation: BEVAugmentation) -> SegmentationTarget:
        """Sample the canvas in the augmented grid, one map per class."""
        bits = torch.from_numpy(augmentation.raster(truth, self.canvas, self.grid))
        masks = torch.stack([(bits & (1 << bit)) > 0 for bit in range(len(NAMES))])
        counts = torch.ones_like(masks)
        counts[0] = (bits & HIDDEN) == 0
        return SegmentationTarget(masks, counts)

    def head(self, channels: int, up: int, examples: Iterable[Any]) -> nn.Module:
        """Build a head that returns logits [B, classes, Y, X]."""
        return upsampled(channels, up, torch.full((len(NAMES),), -2.0))  # most cells are empty

    def loss(self, output: Tensor, targets: list[SegmentationTarget]) -> Tensor:
        """Return binary cross-entropy plus the Dice loss (arXiv 1606.04797, section 3), which balances rare classes.

        Per class, with probabilities p and truth y over the cells that count: ``dice = 1 - (2 sum(p y) + 1) / (sum(p)
        + sum(y) + 1)``.

        Args:
            output: Logits [B, classes, Y, X].
            targets: B targets.
        """
        truth, counts = _stacked(targets, output.device)  # [B, classes, Y, X] each
        logits, weights = output.float(), counts.float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")  # [B, classes, Y, X]
        probability, positive = logits.sigmoid() * weights, truth.float() * weights
        over = (0, 2, 3)
        overlap = (probability * positive).sum(over)  # [classes]
        dice = 1 - (2 * overlap + 1) / (probability.sum(over) + positive.sum(over) + 1)
        return (entropy * weights).sum() / weights.sum() + dice.mean()

    def scores(self, annotations: Annotations, split: str) -> "SegmentationScores":
        """Return an empty score; every split can be scored."""
        return SegmentationScores(self)

    def draw(self, axis: Axes, truth: NDArray[np.uint8], output: Tensor | None) -> None:
        """Draw the classes as colours."""
        target = self.target(truth, BEVAugmentation.none())
        masks = target.truth if output is None else output[0].float().cpu() > 0  # [classes, Y, X]
        picture = np.ones((*as_image(masks[0]).shape, 3))
        for index in DRAWN:
            picture[as_image(masks[index])] = to_rgb(COLOURS[index])
        axis.imshow(picture, origin="lower", extent=extent(self.grid), interpolation="nearest")


def _stacked(targets: list[SegmentationTarget], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack the fields of targets, [B, classes, Y, X] each."""
    truth = torch.stack([target.truth for target in targets]).to(device)
    return truth, torch.stack([target.counts for target in targets]).to(device)


class SegmentationScores:
    """Collects the logits of all cells."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._pixels = PixelScores(len(NAMES))

    def add(self, output: Tensor, truths: list[Any], tokens: list[str]) -> None:
        """Add a batch of logits [B, classes, Y, X]."""
        truth, counts = _stacked([self._task.target(t, BEVAugmentation.none()) for t in truths], output.device)
        self._pixels.add(output, truth, counts)

    def result(self, out: Path) -> Figures:
        """Return three metrics per class, 0 to 1.

        ``iou_<class>``: IoU at a probability of 0.5; ``iou_best_<class>``: IoU at the best threshold; ``ap_<class>``:
        average precision. None for a class without a positive cell.
        """
        figures = self._pixels.result()
        return {f"{what}_{name}": values[i] for what, values in figures.items() for i, name in enumerate(NAMES)}


class PixelScores:
    """Histograms of logits per class and truth, from which IoU and precision follow at every threshold."""

    STEP, REACH = 0.01, 15.0
    """Width of a bin, and the largest logit that has a bin of its own."""

    def __init__(self, classes: int) -> None:
        self._bins = 2 * round(self.REACH / self.STEP)
        self._counts = torch.zeros(classes, 2, self._bins, dtype=torch.int64)

    def add(self, logits: Tensor, truth: Tensor, counts: Tensor) -> None:
        """Add cells.

        Args:
            logits: [B, classes, Y, X].
            truth: [B, classes, Y, X] bool.
            counts: [B, classes, Y, X] bool: the cells that count.
        """
        bins = ((logits.float() + self.REACH) / self.STEP).floor().long()  # [B, classes, Y, X]
        classes = torch.arange(len(self._counts), device=logits.device)[:, None, None]  # [classes, 1, 1]
        flat = (classes * 2 + truth.long()) * self._bins + bins.clamp(0, self._bins - 1)
        added = torch.bincount(flat[counts], minlength=self._counts.numel())
        self._counts += added.view_as(self._counts).cpu()  # [classes, truth, bins]

    def result(self) -> dict[str, list[float | None]]:
        """Return ``iou`` at logit 0, ``iou_best`` and ``ap``: one value per class, None without a positive cell."""
        at_least = self._counts.double().flip(-1).cumsum(-1)  # cells of this logit or more, [classes, truth, bins]
        false, true = at_least.unbind(1)  # positives, [classes, bins] each
        total = true[:, -1:]  # [classes, 1]
        iou = true / (false + total).clamp(min=1)
        precision = true / (true + false).clamp(min=1)
        recall = torch.cat([torch.zeros_like(total), true], dim=1) / total.clamp(min=1)  # [classes, 1 + bins]
        metrics = {
            "iou": iou[:, self._bins // 2 - 1],
            "iou_best": iou.amax(1),
            "ap": (recall.diff(dim=1) * precision).sum(1),
        }
        return {
            name: [float(v) if n else None for v, n in zip(values, total.squeeze(1), strict=True)]
            for name, values in metrics.items()
        }
