"""Pictures of ground truth and prediction in BEV, beside the camera images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from ..clip import Clip
from ..io.files import write_file
from .task import Task

ROWS = 3
"""Largest number of samples per picture."""
CAMERAS = 6
"""Largest number of cameras shown per sample."""


class Sample(NamedTuple):
    """One row of the picture."""

    clip: Clip
    truth: Any
    """Ground truth of the task."""
    output: Any
    """Output of the head."""


def pictured(count: int) -> list[int]:
    """Choose at most :data:`ROWS` of ``count`` samples, evenly spaced."""
    rows = min(ROWS, count)
    return [int((row + 0.5) * count / rows) for row in range(rows)]


def save_picture(task: Task, samples: Sequence[Sample], path: Path) -> None:
    """Draw samples, one per row: cameras, truth, prediction; and write a PNG.

    Args:
        task: It draws truth and prediction.
        samples: The rows.
        path: The file to write.

    Raises:
        UserError: If the file cannot be written.
    """
    rows = len(samples)
    with matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(15, 3.7 * rows), dpi=90, layout="constrained")
        sheet = figure.add_gridspec(2 * rows, 5, width_ratios=[1.25, 1.25, 1.25, 1.4, 1.4])
        for row, (clip, truth, output) in enumerate(samples):
            for camera, name in enumerate(clip.cameras[:CAMERAS]):
                axis = figure.add_subplot(sheet[2 * row + camera // 3, camera % 3])
                axis.imshow(clip.images[0, -1, camera].permute(1, 2, 0).numpy())
                axis.set_title(name, fontsize=7)
                axis.set_axis_off()
            for column, (what, drawn) in enumerate((("truth", None), ("prediction", output))):
                axis = figure.add_subplot(sheet[2 * row : 2 * row + 2, 3 + column])
                task.draw(axis, truth, drawn)
                axis.plot([0.0], [0.0], marker="^", color="black", markersize=6)
                axis.set_aspect("equal")
                axis.set_title(f"{what}   {clip.names[0]}", fontsize=8)
                axis.set_xlabel("left  <-  y, m", fontsize=7)
                axis.tick_params(labelsize=6)
    write_file(path, lambda partial: figure.savefig(partial, format="png"))
