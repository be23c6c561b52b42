"""The interface of a task."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ..geometry import VoxelGrid
from ..method.neck import group_norm
from .augmentation import BEVAugmentation
from .labels import Annotations

Figures = dict[str, Any]
"""Metrics of a task by name: fractions of 0 to 1, errors of detection in their units, and tables of these. None if
there was nothing to score."""


class Scores(Protocol):
    """Collects a model's predictions on held-out samples."""

    def add(self, output: Any, truths: list[Any], tokens: list[str]) -> None:
        """Add a batch: the head's output, and the ground truth that :meth:`Task.read` returned for each sample."""

    def result(self, out: Path) -> Figures:
        """Return the metrics; their files are written into the folder ``out``."""


class Reader(Protocol):
    """Reader of the ground truth of samples; each has its own type of ground truth."""

    name: str

    def read(self, annotations: Annotations, token: str) -> Any:
        """Read the ground truth of a sample."""


class Task(Reader, Protocol):
    """A downstream task with a trained head. Each has its own types of ground truth and head output."""

    grid: VoxelGrid
    """Grid of the labels, with the published range and cell size."""

    def target(self, truth: Any, augmentation: BEVAugmentation) -> Any:
        """Build the target of one augmented sample."""

    def head(self, channels: int, up: int, examples: Iterable[Any]) -> nn.Module:
        """Build the head that follows the trunk.

        Args:
            channels: Channels of the trunk's features [B, channels, Y / up, X / up].
            up: Width of a feature cell in label cells.
            examples: Ground truth of some training samples, from which the head may initialise its output.
        """

    def loss(self, output: Any, targets: list[Any]) -> Tensor:
        """Return the scalar loss of a batch."""

    def scores(self, annotations: Annotations, split: str) -> Scores:
        """Return an empty score for the samples of a split.

        Raises:
            UserError: If the split cannot be scored.
        """

    def draw(self, axis: Axes, truth: Any, output: Any | None) -> None:
        """Draw the ground truth of a sample, or the first prediction in ``output`` if there is one.

        The axes are y (to the left) and x (forward), in metres.
        """


def upsampled(channels: int, up: int, bias: Tensor) -> nn.Sequential:
    """Build a convolutional head, [B, channels, y, x] -> [B, out, y*up, x*up].

    It computes at the resolution of the features; each feature predicts all of its up * up label cells.

    Args:
        channels: Channels of the features.
        up: Width of a feature cell in label cells.
        bias: [out], approximately the output before training.
    """
    mid = max(16, channels // 2)
    last = nn.Conv2d(mid, len(bias) * up**2, 1)
    last.bias = nn.Parameter(bias.repeat_interleave(up**2))
    return nn.Sequential(
        nn.Conv2d(channels, mid, 3, padding=1, bias=False), group_norm(mid), nn.ReLU(), last, nn.PixelShuffle(up)
    )


def as_image(mask: Tensor) -> Any:
    """Convert a map [Y, X] for ``imshow(origin="lower")``; the picture's horizontal axis is the ego frame's -y."""
    return torch.as_tensor(mask).T.flip(1).numpy()


def extent(grid: VoxelGrid) -> tuple[float, float, float, float]:
    """Return the ``extent`` for ``imshow`` that belongs to :func:`as_image`."""
    return grid.y[1], grid.y[0], grid.x[0], grid.x[1]
