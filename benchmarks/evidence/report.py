"""From the comparison's results to what people read: means and spreads, tables, a plot.

A table can be made at any time: what was not measured is a dash or is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mim4d.downstream.labels import write_json
from mim4d.errors import UserError

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


@dataclass(frozen=True)
class Task:
    """How a task is shown."""

    title: str
    headline: Column
    others: tuple[Column, ...]


MAIN = {"random": "random", "pixels": "2D pixels", "single": "single frame", "mim4d": "MIM4D"}
RECIPES = {"pixels": " (SparK's recipe)", "single": " (UniPAD's recipe)"}
ABLATIONS = {
    "no_colour": "no colour loss",
    "no_depth": "no depth loss",
    "no_warp": "no ego-motion warp",
    "no_time": "no continuous time",
    "mask_0": "nothing masked",
    "mask_60": "60 % masked",
    "frames_2": "2 frames",
    "frames_4": "4 frames",
}
NAMES = MAIN | ABLATIONS
MODES = {"frozen": "frozen", "full": "fine-tuned"}
TASKS = {
    "bev-seg": Task(
        "BEV segmentation",
        Column("iou_vehicle", "vehicle IoU"),
        (
            Column("ap_vehicle", "vehicle AP"),
            Column("iou_drivable", "drivable IoU"),
            Column("iou_divider", "divider IoU"),
            Column("iou_crossing", "crossing IoU"),
        ),
    ),
    "det3d": Task(
        "3D detection",
        Column("mAP", "mAP"),
        (
            Column("NDS", "NDS"),
            Column("mATE", "mATE ↓, m", 1, 2),
            Column("mASE", "mASE ↓"),
            Column("mAOE", "mAOE ↓, rad", 1, 2),
            Column("mAVE", "mAVE ↓, m/s", 1, 2),
            Column("mAAE", "mAAE ↓"),
        ),
    ),
    "hd-map": Task(
        "HD map",
        Column("map_AP", "map AP"),
        (
            Column("map_AP_divider", "divider AP"),
            Column("map_AP_boundary", "boundary AP"),
            Column("map_AP_crossing", "crossing AP"),
        ),
    ),
}
HEADLINES = [(name, mode, task.headline) for name, task in TASKS.items() for mode in MODES]
"""The columns of every overview."""
_COLUMNS = [column for _, _, column in HEADLINES]
_TITLES = [f"{column.title}, {MODES[mode]}" for _, mode, column in HEADLINES]
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
SHARE = 0.1
"""Of the labels, in the main table."""
GAINS = (("mim4d", "random"), ("mim4d", "pixels"), ("mim4d", "single"), ("single", "pixels"), ("pixels", "random"))
ENOUGH_SEEDS = 3
"""To call a gain more than chance: the spread of two says next to nothing."""
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


def beyond_chance(summary: Summary) -> bool:
    """Whether a gain is above twice its spread, over enough seeds to know the spread."""
    spread = summary["spread"]
    return spread is not None and len(summary["seeds"]) >= ENOUGH_SEEDS and summary["mean"] > 2 * spread


def table(results: Results) -> str:
    """The README's table, in markdown: the headline figures at 10 % of the labels, what MIM4D gains over a random
    start, and how all of it was made."""
    rows, counts = [], set()
    for init, title in MAIN.items():
        found = [find(results, init, task, mode, SHARE, column.figure) for task, mode, column in HEADLINES]
        counts |= _counts(found)
        rows.append([title + RECIPES.get(init, ""), *_shown(found, _COLUMNS)])
    gains = _overview(results, "mim4d", "random", SHARE)
    rows.append(["MIM4D - random", *_shown(gains, _COLUMNS, difference=True)])
    return "\n\n".join(
        [
            _markdown(["initialisation", *_TITLES], rows),
            f"At {_percent(SHARE)} of the labels, in percent points: mean ± sample standard deviation over "
            f"{_seeds(counts) or 'no seeds yet'}. Last row: the same of the differences seed by seed (the same labels "
            f"and first weights of the head for both); bold where the mean is above twice that standard deviation, "
            f"of {ENOUGH_SEEDS} seeds or more.",
            _made(results),
        ]
    )


def details(results: Results) -> str:
    """Everything else, in markdown, for the documentation: gains between all pairs, ablations, every figure at every
    share of the labels, and what is known without labels."""
    parts = [
        "Figures are percent points where no unit is said, mean ± sample standard deviation over the seeds in the "
        "column of that name (no ± where there is one); ↓: lower is better. Differences are taken seed by seed; bold: "
        f"above twice their standard deviation, of {ENOUGH_SEEDS} seeds or more.",
        *_section("Gains", _gains(results)),
        *_section("Ablations at " + _percent(SHARE) + " of the labels", _ablations(results)),
    ]
    for name, task in TASKS.items():
        parts += _section(task.title, _cells(results, name, (task.headline, *task.others)))
    parts += _section("Without labels", _unlabelled(results))
    return "\n\n".join([*parts, _made(results)])


def _section(title: str, text: str | None) -> list[str]:
    return [f"### {title}", text] if text else []


def _gains(results: Results) -> str | None:
    rows = []
    for labels in _shares(results):
        for init, over in GAINS:
            rows += _difference(results, f"{NAMES[init]} - {NAMES[over]}", init, over, labels)
    return _markdown(["difference", "seeds", "labels", *_TITLES], rows) if rows else None


def _ablations(results: Results) -> str | None:
    rows = []
    for init, title in ABLATIONS.items():
        rows += _difference(results, title, init, "mim4d", SHARE)
    told = (
        "What changes when MIM4D (30 % masked, 3 frames) is pretrained without one part, or with another setting: "
        "differences to MIM4D, less than 0 where it is worse. One seed alone does not tell effect from chance."
    )
    return f"{told}\n\n{_markdown(['ablation', 'seeds', 'labels', *_TITLES], rows)}" if rows else None


def _difference(results: Results, title: str, init: str, over: str, labels: float) -> list[list[str]]:
    """A row of paired gains in every headline figure, or none where there is nothing to say."""
    gains = _overview(results, init, over, labels)
    if not any(gains):
        return []
    return [[title, _numbers(_counts(gains)), _percent(labels), *_shown(gains, _COLUMNS, difference=True)]]


def _overview(results: Results, init: str, over: str, labels: float) -> list[Summary | None]:
    return [gain(results, init, over, task, mode, labels, column.figure) for task, mode, column in HEADLINES]


def _cells(results: Results, task: str, columns: Sequence[Column]) -> str | None:
    rows = []
    for mode, shown in MODES.items():
        for labels in _shares(results):
            for init, title in NAMES.items():
                found = [find(results, init, task, mode, labels, column.figure) for column in columns]
                if any(found):
                    rows.append([title, _numbers(_counts(found)), _percent(labels), shown, *_shown(found, columns)])
    head = ["initialisation", "seeds", "labels", "backbone", *[column.title for column in columns]]
    return _markdown(head, rows) if rows else None


def _unlabelled(results: Results) -> str | None:
    figures = {row["init"]: row["figures"] for row in results["unlabelled"]}
    rows = []
    for init, title in NAMES.items():
        found = [figures.get(init, {}).get(column.figure) for column in UNLABELLED]
        if any(found):
            rows.append([title, _numbers(_counts(found)), *_shown(found, UNLABELLED)])
    told = (
        "Held-out scenes, against the world's truth. A dropped frame's colour (mean absolute error, 100 is black "
        "against white) and depth rendered from what the temporal path rebuilt, beside the same from the mean of the "
        "other frames' warped features and from no features; flow on moving vehicles, beside no flow at all."
    )
    head = ["pretraining", "seeds", *[column.title for column in UNLABELLED]]
    return f"{told}\n\n{_markdown(head, rows)}" if rows else None


def _shares(results: Results) -> list[float]:
    return sorted({cell["labels"] for cell in results["cells"]})


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _counts(summaries: Sequence[Summary | None]) -> set[int]:
    return {len(summary["seeds"]) for summary in summaries if summary}


def _numbers(counts: set[int]) -> str:
    """Such as 3, or 1 to 3 where a row's figures differ."""
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _seeds(counts: set[int]) -> str:
    return f"{_numbers(counts)} seed{'s' if max(counts) > 1 else ''}" if counts else ""


def _shown(summaries: Sequence[Summary | None], columns: Sequence[Column], *, difference: bool = False) -> list[str]:
    return [_number(s, c, difference) if s else NOTHING for s, c in zip(summaries, columns, strict=True)]


def _number(summary: Summary, column: Column, difference: bool) -> str:
    sign, spread = "+" if difference else "", summary["spread"]
    text = f"{column.scale * summary['mean']:{sign}.{column.digits}f}"
    if spread is not None:
        text += f" ± {column.scale * spread:.{column.digits}f}"
    return f"**{text}**" if difference and beyond_chance(summary) else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _made(results: Results) -> str:
    """How the results came about, in one line."""
    told = []
    for name, value in results["protocol"].items():
        if name in ("scenes", "samples"):
            value = f"{value[0]} to learn from, {value[1]} held out"
        elif isinstance(value, Mapping):
            value = ", ".join(f"{part} {number}" for part, number in value.items())
        told.append(f"{name.replace('_', ' ')}: {value}")
    return (
        f"Made by `{results['command']}` (mim4d {results['mim4d']}, {results['machine']}, {results['hours']:.3g} "
        f"hours). {'; '.join(told)}."
    )


# Okabe and Ito's colours, told apart by the colour-blind; the shapes tell them apart without any.
COLOURS = {"random": "#5f5f5f", "pixels": "#D55E00", "single": "#009E73", "mim4d": "#0072B2"}
MARKERS = {"random": "o", "pixels": "s", "single": "^", "mim4d": "D"}
SEEDS = "#9a9a9a"
LEAST_RANGE = 2.0
"""Points that an axis spans at least, so that noise does not look like a gain."""


def plot(results: Results, file: Path) -> None:
    """Draw the headline figures: every initialisation with its seeds and, where there are several shares of the labels,
    what is gained over a random start at each.

    Args:
        results: Need not be complete.
        file: The PNG, 1600 pixels wide.

    Raises:
        UserError: If the file cannot be written.
    """
    curves = [mode for mode in MODES if len({c["labels"] for c in results["cells"] if c["mode"] == mode}) > 1]
    panels = [(_draw_inits, mode) for mode in MODES] + [(_draw_gains, mode) for mode in curves]
    figure = Figure(figsize=(8, 2.1 * len(panels) + 0.4), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), len(TASKS), squeeze=False)
    for row, (draw, mode) in zip(axes, panels, strict=True):
        for axis, (name, task) in zip(row, TASKS.items(), strict=True):
            draw(axis, results, name, mode, task.headline.figure)
            axis.set_title(f"{task.headline.title}, {MODES[mode]}", fontsize=8.5)
        what = f"points, {_percent(SHARE)} of labels" if draw is _draw_inits else "gain over random, points"
        row[0].set_ylabel(what, fontsize=7.5)
    for axis, task in zip(axes[0], TASKS.values(), strict=True):
        axis.set_title(f"{task.title}\n{axis.get_title()}", fontsize=8.5)
    figure.align_ylabels(axes[:, 0])
    note = "Large: mean over seeds. Small: each seed. Dotted: random."
    if curves:
        note += " Lower rows: differences seed by seed, over the share of labels."
    figure.supxlabel(note, fontsize=7.5, color="#404040")
    _write(file, lambda partial: figure.savefig(partial, format="png"))


def _draw_inits(axis: Axes, results: Results, task: str, mode: str, figure: str) -> None:
    values = []
    for place, init in enumerate(MAIN):
        found = find(results, init, task, mode, SHARE, figure)
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


def _draw_gains(axis: Axes, results: Results, task: str, mode: str, figure: str) -> None:
    shares = _shares(results)
    values, ends = [], [(0.0, "random")]
    for init in MAIN:
        gains = [(share, gain(results, init, "random", task, mode, share, figure)) for share in shares]
        known = [(share, summary) for share, summary in gains if summary]
        if not known or init == "random":
            continue
        means = [100 * summary["mean"] for _, summary in known]
        axis.plot([share for share, _ in known], means, color=COLOURS[init], linewidth=1.2)
        axis.plot([share for share, _ in known], means, MARKERS[init], color=COLOURS[init], markersize=4.5)
        for share, summary in known:
            seeds = [100 * value for value in summary["seeds"].values()]
            values += seeds
            axis.plot([1.15 * share] * len(seeds), seeds, MARKERS[init], color=COLOURS[init], markersize=2, alpha=0.5)
        ends.append((means[-1], init))
    axis.set_xscale("log")
    axis.set_xticks(shares, [_percent(share) for share in shares])
    axis.minorticks_off()
    axis.set_xlim(shares[0] / 1.5, shares[-1] * 12)  # with room for the names
    if not values:
        _finish(axis, values)
        return
    axis.plot([shares[0] / 1.5, shares[-1] * 1.3], [0.0, 0.0], color=COLOURS["random"], linewidth=0.8, linestyle=":")
    _finish(axis, [0.0, *values])
    low, high = axis.get_ylim()
    apart = 0.11 * (high - low)
    ends.sort()
    places = [mean for mean, _ in ends]
    for i in range(1, len(places)):  # one name above the other
        places[i] = max(places[i], places[i - 1] + apart)
    places = [place - max(0.0, places[-1] - (high - apart / 2)) for place in places]
    for place, (_, init) in zip(places, ends, strict=True):
        axis.text(shares[-1] * 1.5, place, MAIN[init], color=COLOURS[init], fontsize=7, va="center")


def _finish(axis: Axes, values: Sequence[float]) -> None:
    """Limits from what is drawn, and a plain frame."""
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if not values:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "not measured yet", transform=axis.transAxes, ha="center", fontsize=8, color="#5f5f5f")
        return
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    axis.set_ylim(low - margin, high + margin)
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)


def write_report(results: Results, out: Path) -> None:
    """Leave ``results.json``, ``table.md``, ``details.md`` and ``plot.png`` in a folder, each whole or not at all.

    Raises:
        UserError: If the disk refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    write_json(out / "results.json", results, indent=1)
    _write(out / "table.md", lambda partial: partial.write_text(table(results) + "\n", encoding="utf-8"))
    _write(out / "details.md", lambda partial: partial.write_text(details(results) + "\n", encoding="utf-8"))
    plot(results, out / "plot.png")


def _write(path: Path, fill: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        fill(partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
