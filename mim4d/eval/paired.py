"""Scores of several backbones over seeds: means with 95 % intervals, and differences paired by seed, as a table.

A seed fixes the labelled samples and the initial weights of the head for every backbone. Its effect on two backbones
cancels in their difference, so differences are known better than the scores themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student_t

from .config import PROBE
from .headline import HEADLINES
from .task import Figures

CONFIDENCE = 0.95
SEEDED = {PROBE: "A probe trains nothing: a seed selects the labelled samples and sets the weights of scratch rows."}
"""What a seed changes, by task."""
SEEDED_HEAD = "A seed selects the labelled samples and sets the head's initial weights and the order of samples."


class Estimate(NamedTuple):
    """A mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float | None
    """None for a single seed."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean by Student's t: the half-width is t(0.975, n - 1) s / sqrt(n), s the sample standard deviation.

    >>> mean, half = estimate([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)  # 4.303 * 1 / sqrt(3)
    (2.0, 2.484)
    """
    n = len(values)
    if n < 2:
        return Estimate(fmean(values), None)
    return Estimate(fmean(values), float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / math.sqrt(n))


@dataclass(frozen=True)
class Score:
    """One figure of one backbone at one fraction of the labels."""

    row: str
    """Name of the backbone in the table."""
    labels: float
    samples: int
    """Labelled samples that were used."""
    held_out: int
    """Samples that were scored."""
    figure: str
    """Its name in ``metrics.json``."""
    by_seed: Mapping[int, float | None] = field(default_factory=dict)
    """0 to 1; None where there was nothing to score."""

    @property
    def over_seeds(self) -> list[float]:
        """The values of all seeds; empty unless every seed has one."""
        values = [value for value in self.by_seed.values() if value is not None]
        return values if len(values) == len(self.by_seed) else []

    def minus(self, other: "Score") -> list[float]:
        """The differences to another backbone, seed by seed, over the seeds that both have."""
        if not self.over_seeds or not other.over_seeds:
            return []
        pairs = ((value, other.by_seed.get(seed)) for seed, value in self.by_seed.items())
        return [a - b for a, b in pairs if a is not None and b is not None]


def scores_of(cells: Sequence[tuple[str, Figures]]) -> list[Score]:
    """Collect the main scores of the cells: the name of the row, and what ``metrics.json`` holds, for each."""
    found: dict[tuple[str, float, str], dict[int, float | None]] = {}
    about: dict[float, tuple[int, int]] = {}
    for row, figures in cells:
        settings = figures["settings"]
        about[settings["labels"]] = figures["samples"], figures["val_samples"]
        for figure in HEADLINES[settings["task"]]:
            found.setdefault((row, settings["labels"], figure), {})[settings["seed"]] = figures[figure]
    return [Score(row, labels, *about[labels], figure, seeds) for (row, labels, figure), seeds in found.items()]


def table(scores: Sequence[Score], task: str) -> str:
    """Return a table in Markdown, aligned for a terminal, per fraction of the labels.

    Every backbone has a row of scores, and below it, if it is not the first, a row of differences to the first.

    Args:
        scores: See :func:`scores_of`.
        task: Name of the task.
    """
    parts = [_block([score for score in scores if score.labels == labels], task) for labels in fractions(scores)]
    seeds = max(len(score.by_seed) for score in scores)
    legend = f"Percent. {SEEDED.get(task, SEEDED_HEAD)}"
    if seeds > 1:
        legend = (
            f"Percent: mean ± half of the 95 % interval over {seeds} seeds (Student's t). Differences are paired by "
            f"seed; * means that the interval excludes 0. {SEEDED.get(task, SEEDED_HEAD)}"
        )
    return "\n\n".join([*parts, legend])


def fractions(scores: Sequence[Score]) -> list[float]:
    """The fractions of the labels, rising."""
    return sorted({score.labels for score in scores})


def _block(scores: Sequence[Score], task: str) -> str:
    """The table of one fraction of the labels."""
    names = list(dict.fromkeys(score.row for score in scores))
    known = {(score.row, score.figure): score for score in scores}
    lines = [[f"{task}", *HEADLINES[task].values()]]
    for name in names:
        row = [known[name, figure] for figure in HEADLINES[task]]
        lines.append([name, *(_text(score.over_seeds) for score in row)])
        if name != names[0]:
            first = [known[names[0], figure] for figure in HEADLINES[task]]
            differences = [score.minus(other) for score, other in zip(row, first, strict=True)]
            lines.append(["- minus the first", *(_text(values, difference=True) for values in differences)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    aligned = (
        " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in [lines[0], rule, *lines[1:]]
    )
    about = f"{percent(scores[0].labels)} of the labels ({scores[0].samples} samples), {scores[0].held_out} held out:"
    return "\n".join([about, "", *(f"| {line} |" for line in aligned)])


def percent(share: float) -> str:
    """``10 %`` of 0.1."""
    return f"{100 * share:.3g} %"


def _text(values: Sequence[float], *, difference: bool = False) -> str:
    if not values:
        return "-"
    mean, half = found = estimate([100 * value for value in values])
    text = f"{mean:+.1f}" if difference else f"{mean:.1f}"
    if half is not None:
        text += f" ± {half:.1f}"
    return f"{text}{'*' if found.excludes_zero else ' '}" if difference else f"{text} "
