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

from mim4d.eval.labels import write_json
from mim4d.eval.paired import estimate
from mim4d.io.files import make_folder, write_file

Results = Mapping[str, Any]
"""The content of ``results.json``: ``cells`` (by start, task, mode and share of labels), ``depth`` and ``curves`` (by
start), ``gates``, ``protocol``, ``command``, ``machine`` and ``hours``."""


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


WEIGHTS = {"imagenet": "ImageNet", "scratch": "random"}
"""Weights before the pretraining."""
NONE = ""
COLOUR, DECODER, CAMERA, LIDAR = "colour", "decoder", "camera", "lidar"
PRETRAININGS = {
    NONE: "before",
    COLOUR: "colour of single frames",
    DECODER: "colour and temporal decoder",
    CAMERA: "cameras alone",
    LIDAR: "LiDAR",
}
ABLATIONS = {
    "both": "with rendering of colour that trains the backbone",
    "rendered": "with rendering of colour that does not",
    "other": "with the first, also along rays of another frame",
    "plain": "without augmentation",
    "frames_2": "2 frames",
    "frames_4": "4 frames",
    "gap_10": "0.1 s between frames",
    "gap_50": "0.5 s between frames",
    "mask_0": "nothing masked",
    "mask_60": "60 % masked",
    "rate_3": "rate 0.03 at all layers of the backbone",
    "rate_10": "rate 0.1 at all layers of the backbone",
    "frozen_2": "stem and first stage fixed",
    "rate_0": "backbone fixed",
}
MODES = {"frozen": "frozen", "full": "fine-tuned"}
TASKS = {
    "probe": "Probes",
    "bev-seg": "BEV segmentation",
    "det3d": "3D detection",
    "hd-map": "HD map",
}
HEADLINES = {
    "probe": (
        Column("depth_r2", "depth R2"),
        Column("vehicle_ap", "image vehicle AP"),
        Column("bev_vehicle_ap", "BEV vehicle AP"),
    ),
    "bev-seg": (Column("iou_vehicle", "vehicle IoU"), Column("iou_drivable", "drivable IoU")),
    "det3d": (Column("NDS", "NDS"), Column("mAP", "mAP", digits=2), Column("mAP_uncut", "uncut mAP", digits=2)),
    "hd-map": (Column("map_AP", "map AP"),),
}
OTHERS = {
    "probe": (
        Column("depth_abs_rel", "depth error ↓"),
        Column("drivable_ap", "image drivable AP"),
        Column("bev_vehicle_iou", "BEV vehicle IoU"),
        Column("bev_drivable_iou", "BEV drivable IoU"),
    ),
    "bev-seg": (
        Column("ap_vehicle", "vehicle AP"),
        Column("iou_crossing", "crossing IoU"),
        Column("iou_divider", "divider IoU"),
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
PROBE = ("probe", "frozen", 1.0)
"""The evaluation that the summary, the gates and the plot show."""
PROBED = HEADLINES["probe"]
DEPTH = (
    Column("lift_delta", "lift within 1.25"),
    Column("lift_abs_rel", "lift error ↓"),
    Column("direct_delta", "rendered within 1.25"),
    Column("direct_abs_rel", "rendered error ↓"),
)
"""Depth on held-out clips, against LiDAR."""
GAINS = ((CAMERA, NONE), (LIDAR, NONE), (CAMERA, COLOUR), (CAMERA, DECODER))
"""The differences shown in the tables, each of the same first weights."""
ENOUGH_SEEDS = 3
"""Least number of seeds for a confidence interval."""
NOTHING = "\N{EN DASH}"


class Gate(TypedDict):
    """A result that the project set itself as an aim, whichever way it comes out."""

    value: float | None
    """None if it was not measured."""
    aim: float
    spread: float | None
    """Sample standard deviation over seeds; None for fewer than two."""
    held: bool | None
    """Whether the value reaches the aim, and a difference also twice its spread; None if it was not measured."""


def name_of(weights: str, pretraining: str) -> str:
    """Name of a start in the results."""
    return f"{weights}-{pretraining}" if pretraining else weights


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
    """Return the 95 % confidence interval of a mean difference over the seeds; None for fewer than three seeds."""
    if len(summary["seeds"]) < ENOUGH_SEEDS:
        return None
    mean, half = estimate(list(summary["seeds"].values()))
    assert half is not None
    return mean - half, mean + half


def sign(summary: Summary) -> int:
    """Return 1 or -1 where the confidence interval of a difference lies above or below 0, and 0 elsewhere."""
    found = interval(summary)
    if found is None or found[0] <= 0 <= found[1]:
        return 0
    return 1 if summary["mean"] > 0 else -1


def gates(results: Results) -> dict[str, Gate]:
    """Return the gates by name; differences are between figures of the same first weights, paired by seed."""
    found: dict[str, Gate] = {}
    for name, figure, aim in (("lift", "lift_delta", 0.85), ("rendered", "direct_delta", 0.85)):
        start = name_of("imagenet", CAMERA if name == "lift" else "rendered")
        found[f"depth_of_cameras_alone_{name}_within_1.25"] = _gate(_depth(results, start, figure), aim)
    aims = {"imagenet": {"depth_r2": 0.03, "vehicle_ap": 0.02, "bev_vehicle_ap": 0.02}}
    aims["scratch"] = {"depth_r2": 0.40, "vehicle_ap": 0.25}
    for weights, figures in aims.items():
        for figure, aim in figures.items():
            gained = gain(results, name_of(weights, CAMERA), weights, *PROBE, figure)
            found[f"{weights}_{figure}_of_cameras_alone_over_before"] = _gate(gained, aim, difference=True)
    camera, lidar = (
        gain(results, name_of("imagenet", each), "imagenet", *PROBE, "depth_r2") for each in (CAMERA, LIDAR)
    )
    share = camera["mean"] / lidar["mean"] if camera and lidar and lidar["mean"] > 0 else None
    found["imagenet_depth_r2_share_of_lidars_gain"] = {
        "value": share,
        "aim": 0.9,
        "spread": None,
        "held": None if share is None else share >= 0.9,
    }
    for task, figure, aim in (("bev-seg", "iou_vehicle", 0.087), ("det3d", "mAP", 0.035), ("hd-map", "map_AP", 0.014)):
        gained = gain(results, name_of("scratch", CAMERA), "scratch", task, "frozen", 1.0, figure)
        found[f"scratch_{task}_{figure}_of_cameras_alone_over_before"] = _gate(gained, aim, difference=True)
    return found


def _gate(summary: Summary | None, aim: float, *, difference: bool = False) -> Gate:
    if summary is None:
        return {"value": None, "aim": aim, "spread": None, "held": None}
    value, spread = summary["mean"], summary["spread"]
    held = value >= aim and (not difference or (spread is not None and value > 2 * spread))
    return {"value": value, "aim": aim, "spread": spread, "held": held}


def _depth(results: Results, start: str, figure: str) -> Summary | None:
    return next((row["figures"].get(figure) for row in results["depth"] if row["init"] == start), None)


def verdict(results: Results) -> str:
    """Return one sentence: how pretraining from cameras alone changes the probes of each of the first weights."""
    parts = []
    for weights, title in WEIGHTS.items():
        gained = [
            (column, difference)
            for column in PROBED
            if (difference := gain(results, name_of(weights, CAMERA), weights, *PROBE, column.figure))
        ]
        if gained:
            said = [f"{column.title} by {_with_interval(change, column).strip('*')}" for column, change in gained]
            seeds = _seeds({len(change["seeds"]) for _, change in gained})
            parts.append(f"from {title} weights, {', '.join(said[:-1])} and {said[-1]} points ({seeds})")
    if not parts:
        return "Nothing has been measured yet."
    return f"On held-out synthetic video, pretraining from cameras alone changes probes as follows: {'; '.join(parts)}."


def summary(results: Results) -> str:
    """Return the summary in Markdown: the verdict, and a table of three probes from both first weights."""
    measured = {cell["init"] for cell in results["cells"]}
    shown = [each for each in PRETRAININGS if measured & {name_of(weights, each) for weights in WEIGHTS}]
    rows = []
    for weights in _compared(results):
        for column in PROBED:
            cell = (*PROBE, column.figure)
            means = [find(results, name_of(weights, each), *cell) for each in shown]
            if any(means):
                values = [f"{column.scale * m['mean']:.{column.digits}f}" if m else NOTHING for m in means]
                difference = gain(results, name_of(weights, CAMERA), weights, *cell)
                title = f"{column.title}, from {WEIGHTS[weights]} weights"
                rows.append([title, *values, _with_interval(difference, column)])
    head = ["probe of the frozen backbone", *(PRETRAININGS[each] for each in shown), _minus(GAINS[0])]
    about = results["protocol"]
    read = (
        "In percent. Depth R2: explained variance of log depth at LiDAR points; AP: vehicle cells in the image and in "
        "bird's-eye view; all by ridge regression on the frozen maps, which trains nothing. Cameras alone: "
        "neighbouring frames and cameras supervise the depth. Difference: mean over seeds; if there are "
        f"{ENOUGH_SEEDS} or more, with its 95 % confidence interval, bold if that excludes 0. "
        f"{about['pretraining_steps']} steps on images of {about['images']} pixels; produced by "
        f"`{results['command']}`, mim4d {results['mim4d']}."
    )
    return "\n\n".join([f"**{verdict(results)}**", _markdown(head, rows), read])


def _compared(results: Results) -> list[str]:
    """Return the first weights from which a pretraining was scored; all of them if there are none."""
    measured = {cell["init"] for cell in results["cells"]}
    pretrained = [each for each in PRETRAININGS if each != NONE]
    found = [weights for weights in WEIGHTS if any(name_of(weights, each) in measured for each in pretrained)]
    return found or list(WEIGHTS)


def _with_interval(difference: Summary | None, column: Column) -> str:
    if difference is None:
        return NOTHING
    text, found = f"{column.scale * difference['mean']:+.{column.digits}f}", interval(difference)
    if found:
        low, high = (f"{column.scale * bound:+.{column.digits}f}" for bound in found)
        text += f" [{low}, {high}]"
    return f"**{text}**" if sign(difference) else text


def table(results: Results) -> str:
    """Return all headline figures by pretraining in Markdown, with the gain of cameras alone, and the gates."""
    rows = [
        row
        for weights in WEIGHTS
        for task in TASKS
        for row in _rows(results, weights, task, HEADLINES[task], GAINS[:1])
    ]
    head = [*HEAD, *PRETRAININGS.values(), _minus(GAINS[0])]
    return "\n\n".join([_markdown(head, rows), _read(results), _gates(results), _made(results)])


def details(results: Results) -> str:
    """Return all figures in Markdown: scores with their differences, depth, ablations, curves over steps."""
    parts = [_read(results)]
    head = [*HEAD, *PRETRAININGS.values(), *map(_minus, GAINS)]
    for task, title in TASKS.items():
        columns = (*HEADLINES[task], *OTHERS[task])
        rows = [row for weights in WEIGHTS for row in _rows(results, weights, task, columns, GAINS)]
        parts += _section(title, _markdown(head, rows) if rows else None)
    parts += _section("Depth of held-out clips", _depths(results))
    parts += _section("Ablations", _ablations(results))
    parts += _section("Over steps", _curves(results))
    return "\n\n".join([*parts, _made(results)])


HEAD = ("score", "first weights", "backbone", "labels")


def _rows(
    results: Results, weights: str, task: str, columns: Sequence[Column], gains: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Return a row per figure, mode and fraction of labels that was measured from these first weights."""
    starts = [name_of(weights, pretraining) for pretraining in PRETRAININGS]
    rows = []
    for column in columns:
        for mode, labels in _measured(results, task, starts):
            cell = (task, mode, labels, column.figure)
            found = [find(results, start, *cell) for start in starts]
            differences = [gain(results, name_of(weights, a), name_of(weights, b), *cell) for a, b in gains]
            if any(found):
                shown = [_number(summary, column, difference=False) for summary in found]
                shown += [_number(summary, column, difference=True) for summary in differences]
                rows.append([column.title, WEIGHTS[weights], MODES[mode], _percent(labels), *shown])
    return rows


def _measured(results: Results, task: str, inits: Iterable[str]) -> list[tuple[str, float]]:
    """Return the modes and fractions of labels at which one of ``inits`` was scored."""
    there = {(c["mode"], c["labels"]) for c in results["cells"] if c["task"] == task and c["init"] in inits}
    return sorted(there, key=lambda pair: (list(MODES).index(pair[0]), pair[1]))


def _minus(pair: tuple[str, str]) -> str:
    return f"{PRETRAININGS[pair[0]]} - {PRETRAININGS[pair[1]]}"


def _read(results: Results) -> str:
    counts = {len(f["seeds"]) for c in results["cells"] for f in c["figures"].values()}
    return (
        f"Percent unless a unit is given: mean ± sample standard deviation over {_seeds(counts) or 'no seeds yet'}; ↓: "
        "lower is better. IoU uses a threshold of 0.5; AP needs none. nuScenes' mAP ignores precision and recall below "
        "10 %; uncut mAP does not. Differences are paired by seed: same labelled samples, same initial head. Bold: the "
        f"95 % confidence interval of the difference (Student's t, at least {ENOUGH_SEEDS} seeds) excludes 0, which "
        "happens by chance in 1 of 20."
    )


def _gates(results: Results) -> str:
    """Return the aims that the project set itself, and what was measured."""
    words = {True: "yes", False: "no", None: NOTHING}
    rows = []
    for name, gate in results["gates"].items():
        value, spread = (NOTHING if each is None else f"{each:.3f}" for each in (gate["value"], gate["spread"]))
        rows.append([name.replace("_", " "), value, f"{gate['aim']:g}", spread, words[gate["held"]]])
    return _markdown(["gate", "measured", "aim", "spread", "held"], rows)


def _section(title: str, text: str | None) -> list[str]:
    return [f"### {title}", text] if text else []


def _ablations(results: Results) -> str | None:
    whole = name_of("imagenet", CAMERA)
    starts = {name_of("imagenet", each): title for each, title in ABLATIONS.items()}
    cells = [
        (("probe", mode, labels, c.figure), c) for mode, labels in _measured(results, "probe", starts) for c in PROBED
    ]
    rows = []
    for start, title in starts.items():
        gains = [gain(results, start, whole, *cell) for cell, _ in cells]
        if any(gains):
            shown = [_number(g, column, difference=True) for g, (_, column) in zip(gains, cells, strict=True)]
            rows.append([title, _numbers(_counts(gains)), *shown])
    text = (
        "Differences to cameras alone (3 frames, 30 % masked, no rendering) from ImageNet weights when one part is "
        "changed, with the same seeds. One seed cannot separate an effect from chance."
    )
    head = ["change", "seeds", *(f"{column.title}, {_percent(cell[2])} of labels" for cell, column in cells)]
    return f"{text}\n\n{_markdown(head, rows)}" if rows else None


def _titles() -> dict[str, str]:
    """Titles of all starts with a pretraining."""
    titles = {
        name_of(weights, each): f"{PRETRAININGS[each]}, from {title} weights"
        for weights, title in WEIGHTS.items()
        for each in PRETRAININGS
        if each
    }
    return titles | {name_of("imagenet", each): f"cameras alone, {title}" for each, title in ABLATIONS.items()}


def _depths(results: Results) -> str | None:
    rows = []
    for start, title in _titles().items():
        found = [_depth(results, start, column.figure) for column in DEPTH]
        if any(found):
            shown = [_number(f, column, difference=False) for f, column in zip(found, DEPTH, strict=True)]
            rows.append([title, _numbers(_counts(found)), *shown])
    text = (
        "Depth of the lift and of rendering at LiDAR points, with the same share of patches hidden as in training: the "
        "fraction within a factor of 1.25, and the mean absolute relative error."
    )
    return f"{text}\n\n{_markdown(['pretraining', 'seeds', *(c.title for c in DEPTH)], rows)}" if rows else None


def _curves(results: Results) -> str | None:
    steps = sorted({int(step) for found in results["curves"] for step in found["steps"]})
    columns = {column.figure: column for column in PROBED}
    rows = []
    for found in results["curves"]:
        column = columns[found["figure"]]
        shown = [_number(found["steps"].get(str(step)), column, difference=False) for step in steps]
        rows.append([_titles()[found["init"]], column.title, *shown])
    text = "Probes in training, on 24 labelled and 12 held-out samples: their levels differ from those above."
    return f"{text}\n\n{_markdown(['pretraining', 'probe', *map(str, steps)], rows)}" if rows else None


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
COLOURS = {NONE: "#5f5f5f", COLOUR: "#D55E00", DECODER: "#CC79A7", CAMERA: "#0072B2", LIDAR: "#009E73"}
MARKERS = {NONE: "o", COLOUR: "s", DECODER: "v", CAMERA: "D", LIDAR: "^"}
SEEDS = "#9a9a9a"
LEAST_RANGE = 2.0
"""Least range of an axis in percentage points, so that noise does not look like a gain."""


def plot(results: Results, file: Path) -> None:
    """Plot the probes of every pretraining and seed, a row of panels for each of the first weights.

    Args:
        results: May be incomplete.
        file: The PNG, 1600 pixels wide.

    Raises:
        UserError: If the file cannot be written.
    """
    shown = _compared(results)
    figure = Figure(figsize=(8, 1.9 * len(shown) + 0.9), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots(len(shown), len(PROBED), squeeze=False)
    for weights, line in zip(shown, axes, strict=True):
        for axis, column in zip(line, PROBED, strict=True):
            _draw(axis, results, weights, column.figure)
        line[0].set_ylabel(f"from {WEIGHTS[weights]} weights\npercent", fontsize=7.5)
    for axis, column in zip(axes[0], PROBED, strict=True):
        axis.set_title(column.title, fontsize=9)
    figure.align_ylabels(axes[:, 0])
    figure.supxlabel("Large: mean over seeds. Small: each seed. Dotted: before.", fontsize=7.5, color="#404040")
    write_file(file, lambda partial: figure.savefig(partial, format="png"))


def _draw(axis: Axes, results: Results, weights: str, figure: str) -> None:
    values = []
    for place, pretraining in enumerate(PRETRAININGS):
        found = find(results, name_of(weights, pretraining), *PROBE, figure)
        if found:
            seeds = [100 * value for value in found["seeds"].values()]
            values += seeds
            mean = 100 * found["mean"]
            if not pretraining:
                axis.axhline(mean, color=COLOURS[pretraining], linewidth=0.8, linestyle=":")
            axis.plot([place + 0.25] * len(seeds), seeds, "o", color=SEEDS, markersize=2.5)
            axis.plot([place], [mean], MARKERS[pretraining], color=COLOURS[pretraining], markersize=6)
    axis.set_xlim(-0.5, len(PRETRAININGS) - 0.25)
    axis.set_xticks(range(len(PRETRAININGS)), list(SHORT.values()))
    for label, pretraining in zip(axis.get_xticklabels(), PRETRAININGS, strict=True):
        label.set_color(COLOURS[pretraining])
    _finish(axis, values)


SHORT = {NONE: "before", COLOUR: "colour", DECODER: "decoder", CAMERA: "cameras", LIDAR: "LiDAR"}


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
