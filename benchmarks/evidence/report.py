"""The comparison's report: means and spreads over seeds, tables, a plot.

A report can be written at any time: values that were not measured are a dash or left out.
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
"""The content of ``results.json``: ``cells`` (by initialisation, task, mode and share of labels), ``unlabelled`` (by
initialisation), ``protocol``, ``command``, ``machine`` and ``hours``."""


class Summary(TypedDict):
    """Statistics of a figure over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation (n - 1); None for one seed."""
    seeds: dict[str, float]
    """The figure of each seed; keys are text, as in JSON."""


@dataclass(frozen=True)
class Column:
    """The format of a figure in a table."""

    figure: str
    title: str
    scale: float = 100.0  # fractions as percent
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
NAMES = MAIN | {WHOLE: "MIM4D, same short pretraining"} | ABLATIONS
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
"""The figures of HEADLINES that are plotted."""
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
    "det3d": Column("mAP", "detection mAP", digits=2),
    "hd-map": Column("map_AP", "HD-map AP"),
}
"""The figure of each task in the summary: the one that papers lead with."""
SHORT_LABELS = 0.1
CAVEATS = {
    "0.1.0": "These figures were measured before a fault was fixed. During MIM4D's pretraining, BatchNorm took its "
    "mean and variance from all frames together, the dropped frame included. So the features of the other frames "
    "held information about the frame that is rebuilt from them, and the task was easier than intended. No label and "
    "no held-out image leaked. Only MIM4D drops a frame: its scores may rise or fall when they are measured again.",
}
"""Known faults of published figures, by the version that produced them."""
GAINS = (GAIN, ("single", "random"), ("pixels", "random"), ("mim4d", "single"), ("single", "pixels"))
ENOUGH_SEEDS = 3
"""Least number of seeds for a confidence interval."""
CONFIDENCE = 0.95
NOTHING = "\N{EN DASH}"


def summarise(figures_by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Summary]:
    """Return the mean and spread of each figure over the seeds that have it.

    Args:
        figures_by_seed: A task's figures by seed. Values that are not finite numbers are left out.
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
    """Return a cell's figure, or None if it was not measured."""
    wanted = {"init": init, "task": task, "mode": mode, "labels": labels}
    for cell in results["cells"]:
        if wanted.items() <= cell.items():
            return cell["figures"].get(figure)
    return None


def gain(results: Results, init: str, over: str, task: str, mode: str, labels: float, figure: str) -> Summary | None:
    """Return the differences of a figure between two initialisations, ``init`` minus ``over``, paired by seed.

    Returns:
        Mean, spread and differences over the seeds that both have; None if there are none.
    """
    one = find(results, init, task, mode, labels, figure)
    other = find(results, over, task, mode, labels, figure)
    if one is None or other is None:
        return None
    # A seed fixes the labelled samples and the head's initial weights for every initialisation. Its effect on both
    # cancels in the difference; the spread of two independent means would include it.
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
    """Return one sentence: in how many headline scores MIM4D differs from random weights and from single frames."""
    counts = {over: [which for _, which in _headline_differences(results, over)] for over in ("random", "single")}
    parts = []
    if signs := counts["random"]:
        parts.append(f"MIM4D pretraining is {_counted(signs, 'random weights')}")
    if signs := counts["single"]:
        part = f"it is {_counted(signs, 'single-frame pretraining')}"
        if signs.count(1) <= math.ceil((1 - CONFIDENCE) * len(signs) - 1e-9):
            part += ", which chance alone explains: the temporal part shows no gain yet"
        parts.append(part)
    if not parts:
        return "Nothing has been measured with enough seeds yet."
    return f"On held-out synthetic video, {'; '.join(parts)}."


def _counted(signs: Sequence[int], other: str) -> str:
    return f"better than {other} in {signs.count(1)} of {len(signs)} scores and worse in {signs.count(-1) or 'none'}"


def _headline_differences(results: Results, over: str) -> list[tuple[str, int]]:
    """Names and signs of the differences of all headline scores between MIM4D and another initialisation."""
    return [
        (f"{column.title} ({MODES[mode]}, {_percent(labels)} of labels)", sign(found))
        for task in TASKS
        for column in HEADLINES[task]
        for mode, labels in _measured(results, task, MAIN)
        if (found := gain(results, "mim4d", over, task, mode, labels, column.figure)) and interval(found)
    ]


def _significant(results: Results) -> str:
    """Name the headline scores whose interval excludes 0, such as: Better than random: NDS (frozen, 10 % of labels)."""
    text = ""
    for over in ("random", "single"):
        for word, wanted in (("Better", 1), ("Worse", -1)):
            names = [name for name, which in _headline_differences(results, over) if which == wanted]
            if names:
                text += f" {word} than {MAIN[over]}: {', '.join(names)}."
    return text


def summary(results: Results) -> str:
    """Return the summary in Markdown: the verdict, and a table of one score per task, frozen and fine-tuned."""
    rows = []
    for task, column in SHORT.items():
        for mode in MODES:
            cell = (task, mode, SHORT_LABELS, column.figure)
            means = [find(results, init, *cell) for init in ("random", "single", "mim4d")]
            if any(means):
                shown = [f"{column.scale * m['mean']:.{column.digits}f}" if m else NOTHING for m in means]
                differences = [_with_interval(gain(results, init, over, *cell), column) for init, over in VERDICTS]
                rows.append([f"{column.title}, {MODES[mode]}", *shown, *differences])
    head = ["score, backbone", *(MAIN[init] for init in ("random", "single", "mim4d")), *map(_minus, VERDICTS)]
    about = results["protocol"]
    headline_scores = sum(len(_rows(results, task, HEADLINES[task], (GAIN,))) for task in TASKS)
    read = (
        f"The table shows {len(rows)} of the {headline_scores} headline scores; docs/evidence.md lists all of them. "
        f"Scores in percent, with {_percent(SHORT_LABELS)} of the labels. Random: no pretraining; single frame: "
        "UniPAD's recipe, without a temporal part. Frozen: only a small head trains; fine-tuned: the backbone too. "
        "Differences: mean over seeds [95 % confidence interval], bold if the interval excludes "
        f"0.{_significant(results)} Backbone {about['backbone']}; produced by `{results['command']}`, "
        f"mim4d {results['mim4d']}."
    )
    caveat = CAVEATS.get(results["mim4d"])
    return "\n\n".join([f"**{verdict(results)}**", _markdown(head, rows), read, *([caveat] if caveat else [])])


def _with_interval(difference: Summary | None, column: Column) -> str:
    if difference is None:
        return NOTHING
    text, found = f"{column.scale * difference['mean']:+.{column.digits}f}", interval(difference)
    if found:
        low, high = (f"{column.scale * bound:+.{column.digits}f}" for bound in found)
        text += f" [{low}, {high}]"
    return f"**{text}**" if sign(difference) else text


def table(results: Results) -> str:
    """Return all headline figures by initialisation in Markdown, with MIM4D's difference to random weights."""
    rows = [row for task in TASKS for row in _rows(results, task, HEADLINES[task], (GAIN,))]
    return "\n\n".join([_markdown([*HEAD, *MAIN.values(), _minus(GAIN)], rows), _read(results), _made(results)])


def details(results: Results) -> str:
    """Return all figures in Markdown: scores with their differences, ablations, and figures that need no labels."""
    parts = [_read(results), "Best IoU uses the threshold at which IoU is highest."]
    for task, title in TASKS.items():
        rows = _rows(results, task, (*HEADLINES[task], *OTHERS[task]), GAINS)
        head = [*HEAD, *(title + RECIPES.get(init, "") for init, title in MAIN.items()), *map(_minus, GAINS)]
        parts += _section(title, _markdown(head, rows) if rows else None)
    parts += _section("Ablations", _ablations(results))
    parts += _section("Without labels", _unlabelled(results))
    return "\n\n".join([*parts, _made(results)])


HEAD = ("score", "backbone", "labels")


def _rows(results: Results, task: str, columns: Sequence[Column], gains: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return a row per figure, mode and fraction of labels that was measured."""
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
    """Return the modes and fractions of labels at which one of ``inits`` was scored."""
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
        "Percent unless a unit is given: mean ± sample standard deviation over "
        f"{_seeds(counts or of_random) or 'no seeds yet'}{beside}; ↓: lower is better. IoU uses a threshold of 0.5; AP "
        "needs none. nuScenes' mAP ignores precision and recall below 10 %; uncut mAP does not. Differences are paired "
        "by seed: same labelled samples, same initial head. Bold: the 95 % confidence interval of the difference "
        f"(Student's t, at least {ENOUGH_SEEDS} seeds) excludes 0, which happens by chance in 1 of 20."
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
    text = (
        "Differences to MIM4D (30 % masked, 3 frames) when one part is removed or one setting changed, with the same "
        f"seeds; all pretrained for {steps} steps. One seed cannot separate an effect from chance."
    )
    head = ["ablation", "seeds", *(f"{c.title}, {MODES[cell[1]]}, {_percent(cell[2])}" for cell, c in columns)]
    return f"{text}\n\n{_markdown(head, rows)}" if rows else None


def _unlabelled(results: Results) -> str | None:
    figures = {row["init"]: row["figures"] for row in results["unlabelled"]}
    rows = []
    for init, title in NAMES.items():
        found = [figures.get(init, {}).get(column.figure) for column in UNLABELLED]
        if init == "no_colour":  # its colours are untrained
            found = [None if c.figure.endswith("_rgb") else f for f, c in zip(found, UNLABELLED, strict=True)]
        if any(found):
            shown = [_number(f, column, difference=False) for f, column in zip(found, UNLABELLED, strict=True)]
            rows.append([title, _numbers(_counts(found)), *shown])
    text = (
        "Errors on held-out scenes against the world's exact geometry. Dropped frame: colour (mean absolute error; 100 "
        "is black for white) and depth, rendered from the rebuilt volume, from the mean of the warped other frames, "
        "and from empty features. Flow: error on moving vehicles, compared with predicting no motion."
    )
    head = ["pretraining", "seeds", *[column.title for column in UNLABELLED]]
    return f"{text}\n\n{_markdown(head, rows)}" if rows else None


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _counts(summaries: Sequence[Summary | None]) -> set[int]:
    return {len(summary["seeds"]) for summary in summaries if summary}


def _numbers(counts: set[int]) -> str:
    """Return a range as text: 3, or 1 to 3 if the figures of a row differ."""
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
    """Return the provenance of the results in one line."""
    settings = []
    for name, value in results["protocol"].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {number}" for part, number in value.items())
        settings.append(f"{name.replace('_', ' ')}: {value}")
    return (
        f"Produced by `{results['command']}` (mim4d {results['mim4d']}, {results['machine']}, {results['hours']:.3g} "
        f"process hours of training and scoring). {'; '.join(settings)}."
    )


# Okabe and Ito's colours, which colour-blind readers can distinguish; markers differ too.
COLOURS = {"random": "#5f5f5f", "pixels": "#D55E00", "single": "#009E73", "mim4d": "#0072B2"}
MARKERS = {"random": "o", "pixels": "s", "single": "^", "mim4d": "D"}
SEEDS = "#9a9a9a"
LEAST_RANGE = 2.0
"""Least range of an axis in percentage points, so that noise does not look like a gain."""


def plot(results: Results, file: Path) -> None:
    """Plot the headline figures of every initialisation and seed, one panel per score, mode and fraction of labels.

    Args:
        results: May be incomplete.
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
    """Set the axis limits from the values, and style the frame."""
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
        UserError: If a file cannot be written.
    """
    make_folder(out)
    write_json(out / "results.json", results, indent=1)
    for write in (summary, table, details):
        write_text(out / f"{write.__name__}.md", write(results) + "\n")
    plot(results, out / "plot.png")
