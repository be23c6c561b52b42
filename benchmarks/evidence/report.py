"""From the comparison's results to what people read: means and spreads, tables, a plot.

A table can be made at any time: what was not measured is a dash or is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student_t

from mim4d.eval.labels import write_json
from mim4d.io.files import make_folder, write_file

Results = Mapping[str, Any]
"""What ``results.json`` holds: ``cells`` (by initialisation, task, mode and share of labels), ``unlabelled`` (by
initialisation), ``protocol``, ``command``, ``machine`` and ``hours``."""


class Summary(TypedDict):
    """A figure over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation (n - 1); None of one seed."""
    seeds: dict[str, float]
    """The figure by the seed's number, as text: as JSON has it."""


@dataclass(frozen=True)
class Column:
    """How a figure is shown."""

    figure: str
    title: str
    scale: float = 100.0  # shares of 0 to 1, as percent points
    digits: int = 1


MAIN = {"random": "random", "pixels": "2D pixels", "single": "single frame", "mim4d": "MIM4D"}
RECIPES = {"pixels": " (SparK's recipe)", "single": " (UniPAD's recipe)"}
ABLATIONS = {
    "no_temporal": "no temporal path",
    "no_colour": "no colour loss",
    "no_depth": "no depth loss",
    "no_warp": "no ego-motion warp",
    "no_time": "no continuous time",
    "mask_0": "nothing masked",
    "mask_60": "60 % masked",
    "frames_2": "2 frames",
    "frames_4": "4 frames",
}
WHOLE = "whole"
NAMES = MAIN | {WHOLE: "MIM4D, as briefly as those below"} | ABLATIONS
MODES = {"frozen": "frozen", "full": "fine-tuned"}
TASKS = {
    "bev-seg": "BEV segmentation",
    "det3d": "3D detection",
    "hd-map": "HD map",
}
HEADLINES = {
    "bev-seg": (
        Column("iou_vehicle", "vehicle IoU"),
        Column("ap_vehicle", "vehicle AP"),
        Column("iou_drivable", "drivable IoU"),
    ),
    "det3d": (Column("NDS", "NDS"), Column("mAP", "mAP"), Column("mAP_uncut", "uncut mAP", digits=2)),
    "hd-map": (Column("map_AP", "map AP"),),
}
OTHERS = {
    "bev-seg": (
        Column("iou_best_vehicle", "best vehicle IoU"),
        Column("iou_crossing", "crossing IoU"),
        Column("iou_divider", "divider IoU"),
        Column("ap_drivable", "drivable AP"),
        Column("ap_divider", "divider AP"),
        Column("ap_crossing", "crossing AP"),
    ),
    "det3d": (
        Column("mATE", "mATE ↓, m", 1, 2),
        Column("mASE", "mASE ↓"),
        Column("mAOE", "mAOE ↓, rad", 1, 2),
        Column("mAVE", "mAVE ↓, m/s", 1, 2),
        Column("mAAE", "mAAE ↓"),
    ),
    "hd-map": (
        Column("map_AP_divider", "divider AP"),
        Column("map_AP_boundary", "boundary AP"),
        Column("map_AP_crossing", "crossing AP"),
    ),
}
DRAWN = ("ap_vehicle", "iou_drivable", "mAP_uncut", "map_AP")
"""What of HEADLINES is plotted."""
UNLABELLED = (
    Column("depth_abs_rel", "depth error ↓, %"),
    Column("depth_delta", "depth within 1.25, %"),
    Column("temporal_rgb", "dropped frame: colour ↓"),
    Column("mean_rgb", "from the mean"),
    Column("zero_rgb", "from nothing"),
    Column("temporal_depth", "dropped frame: depth ↓, m", 1, 2),
    Column("mean_depth", "from the mean, m", 1, 2),
    Column("zero_depth", "from nothing, m", 1, 2),
    Column("flow_epe", "flow error ↓, m/s", 1, 2),
    Column("zero_flow_epe", "of zero flow, m/s", 1, 2),
    Column("moving_vehicles", "moving vehicles", 1, 0),
)
GAIN = ("mim4d", "random")
"""The difference shown in the table of headline figures."""
VERDICTS = (GAIN, ("mim4d", "single"))
"""The differences shown in the summary."""
SHORT = {
    "bev-seg": Column("iou_vehicle", "vehicle IoU"),
    "det3d": Column("mAP", "mAP", digits=2),
    "hd-map": Column("map_AP", "map AP"),
}
"""The figure of each task in the summary: the one that papers report first."""
SHORT_LABELS = 0.1
CAVEATS = {
    "0.1.0": "These figures were made with BatchNorm statistics over all frames, which mixed the dropped frame into "
    "the others. This is fixed; until they are made anew, they describe the old behaviour.",
}
"""Known faults of published figures, by the version that made them."""
GAINS = (GAIN, ("single", "random"), ("pixels", "random"), ("mim4d", "single"), ("single", "pixels"))
ENOUGH_SEEDS = 3
"""For a confidence interval: the spread of two seeds says next to nothing."""
CONFIDENCE = 0.95
NOTHING = "\N{EN DASH}"


def summarise(figures_by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Summary]:
    """The mean and spread of each figure over the seeds that have it.

    Args:
        figures_by_seed: What a task was scored by, by seed. What is not a finite number is left out.
    """
    seeds_by_name: dict[str, dict[str, float]] = {}
    for seed, figures in sorted(figures_by_seed.items()):
        for name, value in figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                seeds_by_name.setdefault(name, {})[str(seed)] = float(value)
    return {name: _summary(seeds) for name, seeds in seeds_by_name.items()}


def _summary(seeds: dict[str, float]) -> Summary:
    values = list(seeds.values())
    return {"mean": fmean(values), "spread": stdev(values) if len(values) > 1 else None, "seeds": seeds}


def find(results: Results, init: str, task: str, mode: str, labels: float, figure: str) -> Summary | None:
    """A cell's figure; None where it was not measured."""
    wanted = {"init": init, "task": task, "mode": mode, "labels": labels}
    for cell in results["cells"]:
        if wanted.items() <= cell.items():
            return cell["figures"].get(figure)
    return None


def gain(results: Results, init: str, over: str, task: str, mode: str, labels: float, figure: str) -> Summary | None:
    """How much higher a figure is from ``init`` than from ``over``: the differences of the seeds that both have.

    Returns:
        Their mean, their spread and themselves; None where no seed has both.
    """
    one = find(results, init, task, mode, labels, figure)
    other = find(results, over, task, mode, labels, figure)
    if one is None or other is None:
        return None
    # A seed draws the labelled samples and the head's first weights, the same ones for every initialisation. What it
    # adds to both is no part of the gain and leaves the difference; the spread of two independent means would count it.
    both = {seed: value - other["seeds"][seed] for seed, value in one["seeds"].items() if seed in other["seeds"]}
    return _summary(both) if both else None


def interval(summary: Summary) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a mean difference, by Student's t over the seeds.

    The half-width is t(0.975, n - 1) s / sqrt(n), with s the sample standard deviation of n seeds.

    Returns:
        None for fewer than three seeds.
    """
    n, spread = len(summary["seeds"]), summary["spread"]
    if spread is None or n < ENOUGH_SEEDS:
        return None
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
    return summary["mean"] - half, summary["mean"] + half


def sign(summary: Summary) -> int:
    """Return 1 or -1 where the confidence interval of a difference lies above or below 0, and 0 elsewhere."""
    found = interval(summary)
    if found is None or found[0] <= 0 <= found[1]:
        return 0
    return 1 if summary["mean"] > 0 else -1


def verdict(results: Results) -> str:
    """Return one sentence: how many headline scores MIM4D raises and lowers over random weights and single frames."""
    parts = []
    for init, over in VERDICTS:
        signs = [
            (f"{column.title}, {MODES[mode]}, {_percent(labels)} of labels", sign(found))
            for task in TASKS
            for column in HEADLINES[task]
            for mode, labels in _measured(results, task, MAIN)
            if (found := gain(results, init, over, task, mode, labels, column.figure)) and interval(found)
        ]
        if signs:
            higher, lower = ([name for name, which in signs if which == wanted] for wanted in (1, -1))
            other = {"random": "random weights", "single": "single-frame pretraining"}[over]
            parts.append(f"beats {other} in {_some(higher, len(signs))} and loses in {_some(lower)}")
    if not parts:
        return "Nothing has been measured with enough seeds yet."
    return f"On held-out synthetic video, MIM4D pretraining {'; it '.join(parts)}."


def _some(names: Sequence[str], of: int | None = None) -> str:
    """Such as: 1 of 20 scores (NDS, frozen, 10 % of the labels)."""
    count = str(len(names)) if names else "none"
    among = f" of {of} scores" if of else ""
    which = f" ({'; '.join(names)})" if names else ""
    return f"{count}{among}{which}"


def summary(results: Results) -> str:
    """Return the README's table, in Markdown: the verdict, and one score per task, frozen and fine-tuned."""
    rows = []
    for task, title in TASKS.items():
        column = SHORT[task]
        for mode in MODES:
            cell = (task, mode, SHORT_LABELS, column.figure)
            means = [find(results, init, *cell) for init in ("random", "single", "mim4d")]
            if any(means):
                shown = [f"{column.scale * m['mean']:.{column.digits}f}" if m else NOTHING for m in means]
                differences = [_with_interval(gain(results, init, over, *cell), column) for init, over in VERDICTS]
                rows.append([f"{title}: {column.title}", MODES[mode], *shown, *differences])
    head = ["score", "backbone", *(MAIN[init] for init in ("random", "single", "mim4d")), *map(_minus, VERDICTS)]
    about = results["protocol"]
    read = (
        f"Percent points with {_percent(SHORT_LABELS)} of the labels; single frame{RECIPES['single']}. Differences: "
        "mean over seeds and its 95 % confidence interval; bold (above: beats, loses): the interval excludes 0, as it "
        "does by chance in 1 of 20. "
        f"Backbone {about['backbone']}; figures of `{results['command']}`, mim4d {results['mim4d']}."
    )
    caveat = CAVEATS.get(results["mim4d"])
    return "\n\n".join([f"**{verdict(results)}**", _markdown(head, rows), read, *([caveat] if caveat else [])])


def _with_interval(difference: Summary | None, column: Column) -> str:
    if difference is None:
        return NOTHING
    text, found = f"{column.scale * difference['mean']:+.{column.digits}f}", interval(difference)
    if found:
        low, high = (f"{column.scale * bound:+.{column.digits}f}" for bound in found)
        text += f" ({low} to {high})"
    return f"**{text}**" if sign(difference) else text


def table(results: Results) -> str:
    """Return the headline figures by first weights, in Markdown, with what MIM4D gains over random ones."""
    rows = [row for task in TASKS for row in _rows(results, task, HEADLINES[task], (GAIN,))]
    return "\n\n".join([_markdown([*HEAD, *MAIN.values(), _minus(GAIN)], rows), _read(results), _made(results)])


def details(results: Results) -> str:
    """Everything, in markdown, for the documentation: every figure with the differences between all pairs, ablations,
    and what is known without labels."""
    parts = [_read(results), "Best IoU counts cells surer than the threshold at which it is highest."]
    for task, title in TASKS.items():
        rows = _rows(results, task, (*HEADLINES[task], *OTHERS[task]), GAINS)
        head = [*HEAD, *(title + RECIPES.get(init, "") for init, title in MAIN.items()), *map(_minus, GAINS)]
        parts += _section(title, _markdown(head, rows) if rows else None)
    parts += _section("Ablations", _ablations(results))
    parts += _section("Without labels", _unlabelled(results))
    return "\n\n".join([*parts, _made(results)])


HEAD = ("score", "backbone", "labels")


def _rows(results: Results, task: str, columns: Sequence[Column], gains: Sequence[tuple[str, str]]) -> list[list[str]]:
    """A line for each figure, mode and share of the labels that was measured."""
    rows = []
    for column in columns:
        for mode, labels in _measured(results, task, MAIN):
            cell = (task, mode, labels, column.figure)
            found = [find(results, init, *cell) for init in MAIN]
            differences = [gain(results, init, over, *cell) for init, over in gains]
            if any(found):
                shown = [_number(summary, column, difference=False) for summary in found]
                shown += [_number(summary, column, difference=True) for summary in differences]
                rows.append([column.title, MODES[mode], _percent(labels), *shown])
    return rows


def _measured(results: Results, task: str, inits: Iterable[str]) -> list[tuple[str, float]]:
    """Modes and shares of the labels that one of ``inits`` was scored at."""
    there = {(c["mode"], c["labels"]) for c in results["cells"] if c["task"] == task and c["init"] in inits}
    return sorted(there, key=lambda pair: (list(MODES).index(pair[0]), pair[1]))


def _minus(pair: tuple[str, str]) -> str:
    return f"{NAMES[pair[0]]} - {NAMES[pair[1]]}"


def _read(results: Results) -> str:
    counts, of_random = (
        {len(f["seeds"]) for c in results["cells"] if c["init"] in inits for f in c["figures"].values()}
        for inits in (set(MAIN) - {"random"}, {"random"})
    )
    beside = f" ({_numbers(of_random)} of random weights)" if counts and of_random != counts else ""
    return (
        "Percent points unless a unit is given: mean ± sample standard deviation over "
        f"{_seeds(counts or of_random) or 'no seeds yet'}{beside}; ↓: lower is better. IoU uses a threshold of 0.5; AP "
        "needs none. nuScenes' mAP ignores precision and recall below 10 %; uncut mAP does not. Differences are paired "
        "by seed: same labelled samples, same initial head. Bold: the 95 % confidence interval of the difference "
        f"(Student's t, {ENOUGH_SEEDS} seeds or more) excludes 0, as it does by chance in 1 of 20."
    )


def _section(title: str, text: str | None) -> list[str]:
    return [f"### {title}", text] if text else []


def _ablations(results: Results) -> str | None:
    columns = [
        ((task, mode, labels, column.figure), column)
        for task in TASKS
        for mode, labels in _measured(results, task, ABLATIONS)
        for column in HEADLINES[task]
    ]
    columns = [(cell, column) for cell, column in columns if any(find(results, init, *cell) for init in ABLATIONS)]
    rows = []
    for init, title in ABLATIONS.items():
        gains = [gain(results, init, WHOLE, *cell) for cell, _ in columns]
        if any(gains):
            shown = [_number(g, column, difference=True) for g, (_, column) in zip(gains, columns, strict=True)]
            rows.append([title, _numbers(_counts(gains)), *shown])
    steps = results["protocol"]["pretraining_steps_of_ablations"]
    told = (
        "What changes when MIM4D (30 % masked, 3 frames) is pretrained without one part, or with another setting: "
        f"differences to MIM4D with the same seeds, all of them pretrained for {steps} steps. One seed alone does not "
        "tell effect from chance."
    )
    head = ["ablation", "seeds", *(f"{c.title}, {MODES[cell[1]]}, {_percent(cell[2])}" for cell, c in columns)]
    return f"{told}\n\n{_markdown(head, rows)}" if rows else None


def _unlabelled(results: Results) -> str | None:
    figures = {row["init"]: row["figures"] for row in results["unlabelled"]}
    rows = []
    for init, title in NAMES.items():
        found = [figures.get(init, {}).get(column.figure) for column in UNLABELLED]
        if init == "no_colour":  # nothing taught it any
            found = [None if c.figure.endswith("_rgb") else f for f, c in zip(found, UNLABELLED, strict=True)]
        if any(found):
            shown = [_number(f, column, difference=False) for f, column in zip(found, UNLABELLED, strict=True)]
            rows.append([title, _numbers(_counts(found)), *shown])
    told = (
        "Held-out scenes, against the world's truth. A dropped frame's colour (mean absolute error, 100 is black "
        "against white) and depth rendered from what the temporal path rebuilt, beside the same from the mean of the "
        "other frames' warped features and from no features; flow on moving vehicles, beside no flow at all."
    )
    head = ["pretraining", "seeds", *[column.title for column in UNLABELLED]]
    return f"{told}\n\n{_markdown(head, rows)}" if rows else None


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _counts(summaries: Sequence[Summary | None]) -> set[int]:
    return {len(summary["seeds"]) for summary in summaries if summary}


def _numbers(counts: set[int]) -> str:
    """Such as 3, or 1 to 3 where a row's figures differ."""
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _seeds(counts: set[int]) -> str:
    return f"{_numbers(counts)} seed{'s' if max(counts) > 1 else ''}" if counts else ""


def _number(summary: Summary | None, column: Column, *, difference: bool) -> str:
    if summary is None:
        return NOTHING
    plus, spread = "+" if difference else "", summary["spread"]
    text = f"{column.scale * summary['mean']:{plus}.{column.digits}f}"
    if spread is not None:
        text += f" ± {column.scale * spread:.{column.digits}f}"
    return f"**{text}**" if difference and sign(summary) else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _made(results: Results) -> str:
    """How the results came about, in one line."""
    told = []
    for name, value in results["protocol"].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {number}" for part, number in value.items())
        told.append(f"{name.replace('_', ' ')}: {value}")
    return (
        f"Made by `{results['command']}` (mim4d {results['mim4d']}, {results['machine']}, {results['hours']:.3g} "
        f"hours of training and scoring, all processes together). {'; '.join(told)}."
    )


# Okabe and Ito's colours, told apart by the colour-blind; the shapes tell them apart without any.
COLOURS = {"random": "#5f5f5f", "pixels": "#D55E00", "single": "#009E73", "mim4d": "#0072B2"}
MARKERS = {"random": "o", "pixels": "s", "single": "^", "mim4d": "D"}
SEEDS = "#9a9a9a"
LEAST_RANGE = 2.0
"""Points that an axis spans at least, so that noise does not look like a gain."""


def plot(results: Results, file: Path) -> None:
    """Draw the headline figures: every initialisation with its seeds, panels for each mode and share of labels.

    Args:
        results: Need not be complete.
        file: The PNG, 1600 pixels wide.

    Raises:
        UserError: If the file cannot be written.
    """
    tasks = [task for task in TASKS if _measured(results, task, MAIN)] or ["bev-seg"]
    columns = [(task, column) for task in tasks for column in HEADLINES[task] if column.figure in DRAWN]
    rows = sorted(
        {row for task in tasks for row in _measured(results, task, MAIN)} or {("frozen", 1.0)},
        key=lambda row: (list(MODES).index(row[0]), row[1]),
    )
    figure = Figure(figsize=(8, 1.9 * len(rows) + 0.5), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (mode, labels), line in zip(rows, axes, strict=True):
        for axis, (task, column) in zip(line, columns, strict=True):
            _draw(axis, results, task, mode, labels, column.figure)
        line[0].set_ylabel(f"{MODES[mode]}, {_percent(labels)} of labels\npercent points", fontsize=7.5)
    for axis, (_, column) in zip(axes[0], columns, strict=True):
        axis.set_title(column.title, fontsize=9)
    figure.align_ylabels(axes[:, 0])
    figure.supxlabel("Large: mean over seeds. Small: each seed. Dotted: random.", fontsize=7.5, color="#404040")
    write_file(file, lambda partial: figure.savefig(partial, format="png"))


def _draw(axis: Axes, results: Results, task: str, mode: str, labels: float, figure: str) -> None:
    values = []
    for place, init in enumerate(MAIN):
        found = find(results, init, task, mode, labels, figure)
        if found:
            seeds = [100 * value for value in found["seeds"].values()]
            values += seeds
            mean = 100 * found["mean"]
            if init == "random":
                axis.axhline(mean, color=COLOURS[init], linewidth=0.8, linestyle=":")
            axis.plot([place + 0.25] * len(seeds), seeds, "o", color=SEEDS, markersize=2.5)
            axis.plot([place], [mean], MARKERS[init], color=COLOURS[init], markersize=6)
    axis.set_xlim(-0.5, len(MAIN) - 0.25)
    axis.set_xticks(range(len(MAIN)), [title.replace(" ", "\n") for title in MAIN.values()])
    for label, init in zip(axis.get_xticklabels(), MAIN, strict=True):
        label.set_color(COLOURS[init])
    _finish(axis, values)


def _finish(axis: Axes, values: Sequence[float]) -> None:
    """Limits from what is drawn, and a plain frame."""
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if not values:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", fontsize=8, color="#5f5f5f")
        return
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    axis.set_ylim(max(0.0, low - margin), high + margin)
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    write_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_report(results: Results, out: Path) -> None:
    """Write ``results.json``, ``summary.md``, ``table.md``, ``details.md`` and ``plot.png`` into a folder, atomically.

    Raises:
        UserError: If the disk refuses.
    """
    make_folder(out)
    write_json(out / "results.json", results, indent=1)
    for write in (summary, table, details):
        write_text(out / f"{write.__name__}.md", write(results) + "\n")
    plot(results, out / "plot.png")
