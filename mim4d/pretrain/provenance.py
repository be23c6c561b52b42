"""What an exported encoder says of its making, fit to be shown to everybody."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from ..hub.card import DEPTH
from ..hub.licensing import license_of_data, strictest
from ..hub.sources import has_form_of_path
from .config import SCRATCH, PretrainConfig, to_dict
from .weights import license_of

_OF_THIS_MACHINE = ("dataroot", "out", "workers")
"""Settings that say where a run ran, not what it was."""


def provenance(config: PretrainConfig, rows: list[dict[str, float]], clips_per_step: int) -> dict[str, Any]:
    """How weights were made, fit for JSON.

    Args:
        config: The run's complete settings.
        rows: Of its ``metrics.jsonl``, oldest first.
        clips_per_step: Of all processes together.

    Returns:
        ``init``, ``data``, ``dataset`` and ``split``, ``steps``, ``clips_per_step``, ``settings`` that ``--config``
        reads, and the first and last logged losses and measures. No path of this machine is in it.
    """
    init = _nameable(config.init)
    settings = {name: value for name, value in to_dict(config).items() if name not in _OF_THIS_MACHINE}
    measures = partial(_measures, supervision=config.supervision)
    return {
        "init": init,
        "data": config.data,
        "dataset": config.version,
        "split": config.split,
        "steps": config.steps,
        "clips_per_step": clips_per_step,
        "settings": {**settings, "init": init},
        "measured": {"first": measures(rows[0]), "last": measures(rows[-1])} if rows else {},
    }


def license_of_run(config: PretrainConfig) -> str | None:
    """The licence of the weights that a run makes; None if it is not known."""
    of_data = license_of_data(config.data, config.version)
    return of_data if config.init == SCRATCH else strictest(of_data, license_of(config.init))


def _nameable(source: str) -> str:
    """First weights by their name; a path by its last part, as folders' names are nobody's business.

    A path may be gone when the run ends, so that its form counts too.
    """
    path = Path(source).expanduser()
    return path.name if has_form_of_path(source) or path.exists() else source


def _measures(row: dict[str, float], supervision: str) -> dict[str, float]:
    """The losses and measures of quality in a logged row, to four digits.

    Rows of older versions have zeros for what was never measured: depth without LiDAR, everything without a ray.
    """
    kinds: tuple[str, ...] = ("loss", "_rgb", "_psnr", "_rgb_hidden", "_rgb_visible")
    if supervision == "rgbd":
        kinds += DEPTH
    if row.get("rays") == 0:
        kinds = ()
    return {
        name: float(f"{value:.4g}")
        for name, value in row.items()
        if name == "step" or (name.endswith(kinds) and not name.startswith("grad_") and math.isfinite(value))
    }
