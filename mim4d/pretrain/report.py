"""Write ``report.html``: a whole run on one page that needs no server, no network and no other file."""

import base64
import io
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from ..io.files import write_file
from .config import PretrainConfig, to_dict
from .folder import RunFolder
from .logs import Row, read_metrics, speed

State = Literal["running", "stopped", "finished"]
"""State of a run when its page was written."""

MAX_POINTS = 400
"""Largest number of points per curve; a screen shows no more."""
MARKED = 20
"""Curves of at most this many points get a dot at each."""
MAX_PICTURES = 12
"""Pictures on the page, the first and the newest among them; each takes about 0.3 MB."""
REFRESH = 30
"""Seconds between two reloads of the page during the run."""


class Series(NamedTuple):
    """One measure of a chart."""

    name: str
    """Its key in ``metrics.jsonl``."""
    label: str
    colour: int
    """0 to 3. A measure and its held-out twin share one."""


def _twins(name: str, label: str, colour: int) -> tuple[Series, Series]:
    return Series(name, label, colour), Series(f"val_{name}", f"{label}, held out", colour)


def _baselines(measure: str) -> tuple[Series, ...]:
    """Series of the temporal decoder and of its baselines."""
    return (
        Series(f"val_temporal_{measure}", "temporal decoder", 1),
        Series(f"val_mean_{measure}", "mean of the other frames", 2),
        Series(f"val_zero_{measure}", "no features", 3),
    )


CHARTS: tuple[tuple[str, tuple[Series, ...]], ...] = (
    ("Loss", (Series("loss", "training", 0),)),
    (
        "Colour error (L1, 0 to 1)",
        (
            *_twins("direct_rgb", "direct", 0),
            *_twins("temporal_rgb", "temporal", 1),
            *_twins("other_rgb", "direct, rays of another frame", 2),
        ),
    ),
    (
        "Colour error on hidden and visible patches",
        (*_twins("direct_rgb_hidden", "hidden", 0), *_twins("direct_rgb_visible", "visible", 1)),
    ),
    (
        "Depth error (L1, m)",
        (
            *_twins("direct_depth", "direct", 0),
            *_twins("temporal_depth", "temporal", 1),
            *_twins("other_depth", "direct, rays of another frame", 2),
        ),
    ),
    (
        "Depths within a factor of 1.25 (fraction)",
        (*_twins("direct_delta", "direct", 0), *_twins("temporal_delta", "temporal", 1)),
    ),
    ("Photometric consistency of the lift's depth", _twins("consistency", "lift", 0)),
    (
        "Photometric error of the BEV flow",
        (*_twins("flow", "flow", 0), Series("val_zero_flow", "no flow", 2)),
    ),
    ("Depth error of the lift (L1, m)", _twins("lift_depth", "lift", 0)),
    ("Depths of the lift within a factor of 1.25 (fraction)", _twins("lift_delta", "lift", 0)),
    ("Held-out colour error vs. baselines", _baselines("rgb")),
    ("Held-out depth error vs. baselines (m)", _baselines("depth")),
    (
        "Ridge probes of the encoder, held out (0 to 1)",
        (
            Series("probe_depth_r2", "depth R2", 0),
            Series("probe_vehicle_ap", "vehicle AP", 1),
            Series("probe_drivable_ap", "drivable AP", 2),
            Series("probe_bev_vehicle_ap", "vehicle AP in BEV", 3),
        ),
    ),
    (
        "Encoder's gradient norm by loss term",
        (
            Series("grad_encoder_direct_rgb", "direct colour", 0),
            Series("grad_encoder_temporal_rgb", "temporal colour", 1),
            Series("grad_encoder_direct_depth", "direct depth", 2),
            Series("grad_encoder_temporal_depth", "temporal depth", 3),
            Series("grad_encoder_other_rgb", "colour, rays of another frame", 0),
            Series("grad_encoder_other_depth", "depth, rays of another frame", 2),
            Series("grad_encoder_consistency", "consistency", 0),
            Series("grad_encoder_lift_depth", "depth of the lift", 2),
        ),
    ),
    ("Gradient norm", (Series("grad_norm", "all parameters, before clipping", 0),)),
    ("Learning rate", (Series("lr", "schedule of --optim.lr", 0),)),
    ("Clips per second", (Series("clips_per_s", "training", 0),)),
)
"""Title of each chart and its curves; curves without measurements are left out."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    colour: int
    held_out: bool
    points: list[tuple[float, float]]
    """(step, value) by increasing step, at most :data:`MAX_POINTS`."""


@dataclass(frozen=True)
class Chart:
    """Curves over steps that share their axes. :meth:`x` and :meth:`y` are pixels from the top left."""

    title: str
    curves: list[Curve]
    steps: int
    """The step at the right end of the horizontal axis: the newest one, so that the curves fill the chart."""

    WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 220, 52, 8, 8, 24

    @cached_property
    def ticks(self) -> list[float]:
        """Round values that span the vertical axis."""
        return round_ticks(value for curve in self.curves for _, value in curve.points)

    def x(self, step: float) -> float:
        """Return the horizontal position of a step."""
        return round(self.LEFT + (self.WIDTH - self.LEFT - self.RIGHT) * step / max(1, self.steps), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        return round(self.TOP + (self.HEIGHT - self.TOP - self.BOTTOM) * (high - value) / (high - low), 1)

    def path(self, curve: Curve) -> str:
        """Return a curve as the ``points`` of an SVG polyline."""
        return " ".join(f"{self.x(step)},{self.y(value)}" for step, value in curve.points)


def write_report(
    folder: RunFolder, config: PretrainConfig, *, state: State, held_out: bool = True, reason: str = ""
) -> Path:
    """Write ``report.html`` from the files of a run folder, without missing or damaged ones.

    Args:
        folder: The run folder.
        config: The settings of the run.
        state: A browser reloads the page of a running run every :data:`REFRESH` seconds. The page of a finished run has
            the line for timm and the animation.
        held_out: Whether the pictures show a clip that the run does not train on.
        reason: Why the run has stopped, and what to do.

    Returns:
        The file.

    Raises:
        UserError: If it cannot be written.
    """
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    finished = state == "finished"
    page = _template().render(
        name=folder.root.resolve().name,
        settings=yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
        model=config.model,
        steps=config.steps,
        step=int(rows[-1]["step"]) if rows else 0,
        state=state,
        reason=reason,
        refresh=REFRESH,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        figures=newest_figures(rows),
        charts=make_charts(rows),
        marked=MARKED,
        held_out=held_out,
        animation=_animation(folder.animation) if finished else None,
        pictures=list(_pictures(folder.pictures)),
        timm_line=RunFolder(folder.root.resolve()).timm_line() if finished else None,
    )
    # A file name that is not UTF-8 cannot be shown, and must not stop the run.
    write_file(folder.report, lambda partial: partial.write_text(page, encoding="utf-8", errors="replace"))
    return folder.report


def make_charts(rows: Sequence[Row]) -> list[Chart]:
    """Make the charts of the rows of a ``metrics.jsonl``, by increasing step; charts without a curve are left out."""
    charts = []
    for title, chosen in CHARTS:
        curves = []
        for name, label, colour in chosen:
            points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
            if points:
                curves.append(Curve(label, colour, name.startswith("val_"), thin(points)))
        if curves:
            charts.append(Chart(title, curves, int(rows[-1]["step"])))
    return charts


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbouring points until at most :data:`MAX_POINTS` are left, each at the last step of its group.

    >>> thin([(1, 0.5), (2, 0.25)])
    [(1, 0.5), (2, 0.25)]
    >>> len(thin([(step, 1.0) for step in range(1000)]))
    334
    """
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def round_ticks(values: Iterable[float], count: int = 4) -> list[float]:
    """Choose evenly spaced round numbers, about ``count`` + 1 of them, that span all values.

    >>> round_ticks([0.3, 1.7])
    [0.0, 0.5, 1.0, 1.5, 2.0]
    >>> round_ticks([7.0])
    [6.0, 8.0]
    """
    low, high = min(values := list(values)), max(values)
    rough = (high - low or abs(high) or 1.0) / count
    exponent = math.floor(math.log10(rough))
    step = next(f * 10.0**exponent for f in (1, 2, 2.5, 5, 10) if f * 10.0**exponent >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 2 - exponent) for number in range(first, max(last, first + 1) + 1)]


def newest_figures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Find the newest headline figures, the held-out ones where there are any.

    Returns:
        Labels, and values with units.
    """
    wanted = (
        ("loss", "loss", "{:.3f}".format),
        ("direct_rgb", "colour error, direct", "{:.3f}".format),
        ("temporal_rgb", "colour error, temporal", "{:.3f}".format),
        ("direct_abs_rel", "relative depth error, direct", "{:.0%}".format),
        ("temporal_abs_rel", "relative depth error, temporal", "{:.0%}".format),
        ("clips_per_s", "training speed", speed),
    )
    figures = []
    for name, label, form in wanted:
        for key, where in ((f"val_{name}", ", held out"), (name, "")):
            found = next((row[key] for row in reversed(rows) if key in row), None)
            if found is not None:
                figures.append((label + where, form(found)))
                break
    return figures


def choose_pictures(folder: Path) -> list[Path]:
    """Choose at most :data:`MAX_PICTURES` of the pictures, evenly spaced, the first and the newest among them."""
    paths = sorted(folder.glob(f"step_{'[0-9]' * 8}.png"))
    count = min(len(paths), MAX_PICTURES)
    return [paths[round(place * (len(paths) - 1) / max(1, count - 1))] for place in range(count)]


def _pictures(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield step and data URL of each chosen picture that can be read, as JPEG: a quarter of a PNG's size."""
    for path in choose_pictures(folder):
        buffer = io.BytesIO()
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:  # what Pillow raises
            image.convert("RGB").save(buffer, "JPEG", quality=85)
            yield int(path.stem.removeprefix("step_")), _data_url(buffer.getvalue(), "jpeg")


def _animation(path: Path) -> str | None:
    return _data_url(path.read_bytes(), "webp") if path.is_file() else None


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _template() -> Template:
    pages = Environment(
        loader=PackageLoader("mim4d.pretrain", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template("report.html.jinja")
