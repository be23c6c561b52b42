"""Truth and prediction from above, beside what the cameras saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from ..files import write_file

if TYPE_CHECKING:
    from .run import Run


ROWS = 3
"""Samples of a picture, at most."""
CAMERAS = 6
"""Cameras of a sample that are shown, at most."""


def save_picture(run: Run, path: Path) -> None:
    """Draw some held-out samples, evenly spaced: cameras, truth, prediction; and write a PNG.

    Args:
        run: Its best weights predict.
        path: The file to write.

    Raises:
        UserError: If the file cannot be written.
    """
    samples = run.data.val
    rows = min(ROWS, len(samples))
    numbers = [int((row + 0.5) * len(samples) / rows) for row in range(rows)]
    model = run.best.eval()
    with matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(15, 3.7 * rows), dpi=90, layout="constrained")
        sheet = figure.add_gridspec(2 * rows, 5, width_ratios=[1.25, 1.25, 1.25, 1.4, 1.4])
        for row, number in enumerate(numbers):
            clip = samples.clip(number)
            for camera, name in enumerate(clip.cameras[:CAMERAS]):
                axis = figure.add_subplot(sheet[2 * row + camera // 3, camera % 3])
                axis.imshow(clip.images[0, -1, camera].permute(1, 2, 0).numpy())
                axis.set_title(name, fontsize=7)
                axis.set_axis_off()
            kept = run.truth(samples, number)
            with_output = (None, run.predict(model, "val", [number]))
            for column, (what, output) in enumerate(zip(("truth", "prediction"), with_output, strict=True)):
                axis = figure.add_subplot(sheet[2 * row : 2 * row + 2, 3 + column])
                run.task.draw(axis, kept, output)
                axis.plot([0.0], [0.0], marker="^", color="black", markersize=6)
                axis.set_aspect("equal")
                axis.set_title(f"{what}   {clip.names[0]}", fontsize=8)
                axis.set_xlabel("left  <-  y, m", fontsize=7)
                axis.tick_params(labelsize=6)
    write_file(path, lambda partial: figure.savefig(partial, format="png"))
