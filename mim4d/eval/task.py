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
"""What a task is scored by, by name: shares of 0 to 1, the detector's errors in their units, tables of them; None
where there was nothing to score."""


class Scores(Protocol):
    """Collects a model's predictions on held-out samples."""

    def add(self, output: Any, kept: list[Any], tokens: list[str]) -> None:
        """Add a batch: the head's output, and the ground truth that :meth:`Task.read` returned for each sample."""

    def result(self, out: Path) -> Figures:
        """Return the metrics; their files are written into the folder ``out``."""


class Reader(Protocol):
    """What reads the ground truth of samples, of a type of its own."""

    name: str

    def read(self, annotations: Annotations, token: str) -> Any:
        """Read the ground truth of a sample."""


class Task(Reader, Protocol):
    """One downstream task with a trained head. The types of its ground truth and of its head's output are its own."""

    grid: VoxelGrid
    """Of the labels; the published range and cell."""

    def target(self, kept: Any, augmentation: BEVAugmentation) -> Any:
        """Build the target of one augmented sample."""

    def head(self, channels: int, up: int, examples: Iterable[Any]) -> nn.Module:
        """Build the head that follows the trunk.

        Args:
            channels: Of the trunk's features [B, channels, Y / up, X / up].
            up: How many label cells a feature cell is wide.
            examples: What is kept of some of the samples to learn from, for what the head says at first.
        """

    def loss(self, output: Any, targets: list[Any]) -> Tensor:
        """Return the scalar loss of a batch."""

    def scores(self, annotations: Annotations, split: str) -> Scores:
        """Return an empty score for the samples of a split.

        Raises:
            UserError: If it cannot be scored.
        """

    def draw(self, axis: Axes, kept: Any, output: Any | None) -> None:
        """Draw one sample into axes of y (to the left) and x (forward), metres: the truth, or where there is an output,
        what the first sample of its batch says."""


def upsampled(channels: int, up: int, bias: Tensor) -> nn.Sequential:
    """A head of convolutions that says about ``bias`` [out] at first: [B, channels, y, x] -> [B, out, y*up, x*up].

    All its work is done at the features' resolution; a feature then says what stands in each of its label cells.
    """
    mid = max(16, channels // 2)
    last = nn.Conv2d(mid, len(bias) * up**2, 1)
    last.bias = nn.Parameter(bias.repeat_interleave(up**2))
    return nn.Sequential(
        nn.Conv2d(channels, mid, 3, padding=1, bias=False), group_norm(mid), nn.ReLU(), last, nn.PixelShuffle(up)
    )


def as_image(mask: Tensor) -> Any:
    """A map [Y, X] for ``imshow(origin="lower")`` in axes whose x is the ego frame's y, growing to the left."""
    return torch.as_tensor(mask).T.flip(1).numpy()


def extent(grid: VoxelGrid) -> tuple[float, float, float, float]:
    """The ``extent`` that belongs to :func:`as_image`."""
    return grid.y[1], grid.y[0], grid.x[0], grid.x[1]
