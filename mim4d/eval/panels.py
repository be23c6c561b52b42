"""The plot of a comparison: a panel for each score, a line of dots for each backbone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..io.files import write_file
from .headline import HEADLINES
from .paired import Score, estimate, fractions, percent


def save_panels(scores: Sequence[Score], task: str, path: Path) -> None:
    """Draw the mean, the 95 % interval and the single seeds of every score, and write a PNG.

    Columns are scores and share their axis; rows are fractions of the labels. A dashed line continues the mean of the
    first backbone.

    Args:
        scores: See :func:`mim4d.eval.paired.scores_of`.
        task: Name of the task.
        path: The file to write.

    Raises:
        UserError: If the file cannot be written.
    """
    names = list(dict.fromkeys(score.row for score in scores))
    shares, figures = fractions(scores), HEADLINES[task]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        size = (2.5 + 2.4 * len(figures), 0.7 + (0.8 + 0.34 * len(names)) * len(shares))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        axes = figure.subplots(len(shares), len(figures), sharex="col", sharey=True, squeeze=False)
        for score in scores:
            if not score.over_seeds:
                continue
            axis = axes[shares.index(score.labels), list(figures).index(score.figure)]
            place = names.index(score.row)
            values = [100 * value for value in score.over_seeds]
            mean, half = estimate(values)
            colour = f"C{place % 10}"
            axis.errorbar(mean, place, xerr=half, fmt="o", color=colour, markersize=5, capsize=3)
            axis.scatter(values, [place + 0.22] * len(values), s=7, color=colour, alpha=0.6, linewidths=0)
            if place == 0:
                axis.axvline(mean, color=colour, linestyle="--", linewidth=0.8, alpha=0.6, zorder=0)
        for row, share in enumerate(shares):
            axes[row, 0].set_yticks(range(len(names)), names)
            axes[row, 0].set_ylim(len(names) - 0.5, -0.5)  # the first at the top
            axes[row, 0].set_ylabel(f"{percent(share)} of the labels")
        for column, title in enumerate(figures.values()):
            axes[0, column].set_title(title, fontsize=10)
            axes[-1, column].set_xlabel("%")
        for axis in axes.flat:
            axis.grid(axis="x", color="0.9", linewidth=0.6)
            axis.set_axisbelow(True)
        legend = "large dots: mean with its 95 % interval; small dots: single seeds; dashed: mean of the first backbone"
        figure.supxlabel(legend, fontsize=8, color="0.4")
        write_file(path, lambda partial: figure.savefig(partial, format="png"))
