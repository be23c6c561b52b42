"""A run on one page: ``report.html`` needs no server, no network and no other file."""

import base64
import io
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..files import write_file
from .folder import RunFolder
from .logs import Row, read_metrics

MAX_POINTS = 400
"""Points per curve: what a screen can show."""
MAX_PICTURES = 12
"""Pictures on the page, the first and the newest among them: each takes about 0.3 MB."""
REFRESH = 30
"""Seconds after which a browser reads the page of a run that goes on again."""

CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", (("loss", "training"), ("val_loss", "held out"))),
    (
        "Colour error (L1, 0 to 1)",
        (
            ("direct_rgb", "direct"),
            ("temporal_rgb", "temporal"),
            ("val_direct_rgb", "direct, held out"),
            ("val_temporal_rgb", "temporal, held out"),
        ),
    ),
    (
        "Depth error (L1, metres)",
        (
            ("direct_depth", "direct"),
            ("temporal_depth", "temporal"),
            ("val_direct_depth", "direct, held out"),
            ("val_temporal_depth", "temporal, held out"),
        ),
    ),
    (
        "Depths within a factor of 1.25 (fraction)",
        (
            ("direct_delta", "direct"),
            ("temporal_delta", "temporal"),
            ("val_direct_delta", "direct, held out"),
            ("val_temporal_delta", "temporal, held out"),
        ),
    ),
    ("Gradient norm", (("grad_norm", "all parameters"),)),
    ("Learning rate", (("lr", "peak group"),)),
    ("Clips per second", (("clips_per_s", "training"),)),
)
"""Title of each chart, and its curves: name in ``metrics.jsonl``, label."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    held_out: bool
    points: list[tuple[float, float]]
    """(step, value), steps increasing; at most :data:`MAX_POINTS`."""


@dataclass(frozen=True)
class Chart:
    """Curves over steps that share an axis of values."""

    title: str
    curves: list[Curve]
    steps: int
    """The last step on the horizontal axis."""

    WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520, 220, 52, 24, 8

    @property
    def ticks(self) -> list[float]:
        """Round values on the vertical axis; the first and last hold all values between them."""
        return round_ticks([value for curve in self.curves for _, value in curve.points])

    def x(self, step: float) -> float:
        """Horizontal place of a step, pixels."""
        return round(self.LEFT + (self.WIDTH - self.LEFT - 8) * step / max(1, self.steps), 1)

    def y(self, value: float) -> float:
        """Vertical place of a value, pixels."""
        low, high = self.ticks[0], self.ticks[-1]
        return round(self.TOP + (self.HEIGHT - self.TOP - self.BOTTOM) * (high - value) / (high - low), 1)

    def path(self, curve: Curve) -> str:
        """The curve as the ``points`` of an SVG polyline."""
        return " ".join(f"{self.x(step)},{self.y(value)}" for step, value in curve.points)


def write_report(folder: RunFolder, *, finished: bool) -> Path:
    """Write ``report.html`` of a run from what its folder holds.

    Args:
        folder: With ``config.yaml`` and ``metrics.jsonl``.
        finished: Whether the run has ended; until then the page reads itself again every :data:`REFRESH` seconds.

    Returns:
        The file.

    Raises:
        UserError: If it cannot be written.
    """
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    page = _template().render(
        name=folder.root.resolve().name,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        model=settings["model"],
        steps=settings["steps"],
        step=int(rows[-1]["step"]) if rows else 0,
        finished=finished,
        refresh=REFRESH,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        figures=newest_figures(rows),
        charts=make_charts(rows, settings["steps"]),
        pictures=[(int(path.stem.rpartition("_")[2]), _as_data(path)) for path in _some_pictures(folder.pictures)],
        line=f'timm.create_model("local-dir:{folder.encoder}", pretrained=True, features_only=True).eval()',
    )
    path = folder.root / "report.html"
    write_file(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def make_charts(rows: Sequence[Row], steps: int) -> list[Chart]:
    """The charts for which there are values.

    Args:
        rows: Of ``metrics.jsonl``, steps increasing.
        steps: The run's last step.
    """
    charts = []
    for title, names in CHARTS:
        curves = [
            Curve(label, name.startswith("val_"), thin([(row["step"], row[name]) for row in rows if name in row]))
            for name, label in names
            if any(name in row for row in rows)
        ]
        if curves:
            charts.append(Chart(title, curves, steps))
    return charts


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`MAX_POINTS` points: means of equal runs of neighbours, each at its last step.

    >>> len(thin([(step, 1.0) for step in range(1000)]))
    334
    """
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), max(1, size))]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def round_ticks(values: Iterable[float], count: int = 4) -> list[float]:
    """About ``count`` + 1 round numbers, evenly spaced, of which the first and last hold all values between them.

    >>> round_ticks([0.3, 1.7])
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    low, high = min(values := list(values)), max(values)
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def newest_figures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The newest headline figures, held out where they were measured there: (what, value with its unit)."""
    wanted = (
        ("loss", "loss", ".3f", ""),
        ("direct_rgb", "colour error, direct", ".3f", ""),
        ("temporal_rgb", "colour error, temporal", ".3f", ""),
        ("direct_abs_rel", "relative depth error, direct", ".0%", ""),
        ("temporal_abs_rel", "relative depth error, temporal", ".0%", ""),
        ("clips_per_s", "clips per second", ".2g", ""),
    )
    figures = []
    for name, label, form, unit in wanted:
        for key, where in ((f"val_{name}", ", held out"), (name, "")):
            found = next((row[key] for row in reversed(rows) if key in row), None)
            if found is not None:
                figures.append((label + where, format(found, form) + unit))
                break
    return figures


def _some_pictures(folder: Path) -> list[Path]:
    """At most :data:`MAX_PICTURES` of the pictures, evenly chosen, the first and the newest among them."""
    paths = sorted(folder.glob("step_*.png"))
    count = min(len(paths), MAX_PICTURES)
    return [paths[round(place * (len(paths) - 1) / max(1, count - 1))] for place in range(count)]


def _as_data(path: Path) -> str:
    """A picture as the address of itself: JPEG, a quarter of the PNG's size."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _template() -> Any:
    page = Environment(
        loader=PackageLoader("mim4d.pretrain", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page.filters["json"] = json.dumps
    return page.get_template("report.html.jinja")
