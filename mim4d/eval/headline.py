"""The figures that a run ends with, beside those of random weights where a run beside it has them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..flags import installed
from .model import PRETRAINED, RANDOM

HEADLINES = {
    "bev-seg": {"iou_vehicle": "vehicle IoU", "iou_drivable": "drivable IoU", "iou_divider": "divider IoU"},
    "det3d": {"NDS": "NDS", "mAP": "mAP", "AP_car": "car AP"},
    "probe": {
        "depth_r2": "depth R2",
        "vehicle_ap": "vehicle AP",
        "drivable_ap": "drivable AP",
        "bev_vehicle_ap": "BEV vehicle AP",
        "bev_vehicle_iou": "BEV vehicle IoU",
    },
    "hd-map": {"map_AP": "map AP", "map_AP_divider": "divider AP", "map_AP_boundary": "boundary AP"},
}
"""Of each task, by name in metrics.json."""
FREE = ("init", "out", "workers")
"""Settings in which a run and its baseline may differ."""


def headline(figures: dict[str, Any], out: Path, arguments: Sequence[str]) -> list[str]:
    """Two lines: the main figures in percent, and the baseline or the whole command that makes one.

    Args:
        figures: What ``metrics.json`` holds.
        out: The run's folder.
        arguments: Of the command that made it.
    """
    settings = figures["settings"]
    init = settings["init"]
    lines = [f"{listed(figures)} ({f'{init} weights' if init in (RANDOM, PRETRAINED) else f'weights of {init}'})"]
    if init == RANDOM:
        return lines
    for file in sorted(out.parent.glob("*/metrics.json")):
        other = _read(file)
        if other and _alike(settings, other["settings"]) and other["settings"]["init"] == RANDOM:
            return [*lines, f"{listed(other)} (random weights, {file.parent})"]
    command = [installed("mim4d-eval"), *_without(arguments, "--init", "--out"), "--init", RANDOM]
    return [*lines, f"baseline: {shlex.join([*command, '--out', _beside(out)])}"]


def _without(arguments: Sequence[str], *flags: str) -> Iterator[str]:
    """Arguments without some flags and their values."""
    value_follows = False
    for argument in arguments:
        if not value_follows and argument not in flags and argument.partition("=")[0] not in flags:
            yield argument
        value_follows = argument in flags and not value_follows


def _beside(out: Path) -> str:
    """A folder of the baseline, which is not there yet or holds no result."""
    names = (f"{out}-random{number}" for number in ("", *(f"-{n}" for n in range(2, 100))))
    return next(name for name in names if not (Path(name) / "metrics.json").exists())


def listed(figures: dict[str, Any]) -> str:
    """The main figures of a run in percent, with their names."""
    named = HEADLINES[figures["settings"]["task"]]
    return ", ".join(
        f"{text} {100 * figures[name]:.1f} %" for name, text in named.items() if figures.get(name) is not None
    )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(figures, dict) and isinstance(figures.get("settings"), dict)
    return figures if known and "init" in figures["settings"] else None


def _alike(settings: dict[str, Any], other: dict[str, Any]) -> bool:
    # As JSON: what was read back has no tuples.
    return all(
        json.dumps(settings.get(name)) == json.dumps(other.get(name))
        for name in settings.keys() | other.keys()
        if name not in FREE
    )
