"""Provenance of an exported encoder, without anything private."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from ..backbones.weights import license_of
from ..hub.card import DEPTH_SUFFIXES
from ..hub.licensing import license_of_data, strictest
from ..hub.sources import looks_like_path
from .config import SCRATCH, PretrainConfig, to_dict

_OF_THIS_MACHINE = ("dataroot", "out", "workers", "log_with")
"""Settings that describe the machine of a run, not its result."""


def provenance(config: PretrainConfig, rows: list[dict[str, float]], clips_per_step: int) -> dict[str, Any]:
    """Describe how weights were made, as JSON values.

    Args:
        config: The run's complete settings.
        rows: Rows of ``metrics.jsonl``, oldest first.
        clips_per_step: Clips per step of all processes together.

    Returns:
        ``init``, ``data``, ``dataset`` and ``split``, ``steps``, ``clips_per_step``, ``settings`` that ``--config``
        reads, and the first and last logged losses and measurements; no path of this machine.
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
    """Return the licence of the weights that a run produces; None if unknown."""
    of_data = license_of_data(config.data, config.version)
    return of_data if config.init == SCRATCH else strictest(of_data, license_of(config.init))


def _nameable(source: str) -> str:
    """Name the initial weights; a path is reduced to its last part, because folder names are private.

    The path may no longer exist at the end of a run, so text that looks like a path counts as one.
    """
    path = Path(source).expanduser()
    return path.name if looks_like_path(source) or path.exists() else source


def _measures(row: dict[str, float], supervision: str) -> dict[str, float]:
    """Return the losses and errors in a logged row, to four digits.

    Rows of older versions have zeros where nothing was measured: depth without LiDAR, everything without a ray.
    """
    kinds: tuple[str, ...] = ("loss", "_rgb", "_psnr", "_rgb_hidden", "_rgb_visible")
    if supervision == "rgbd":
        kinds += DEPTH_SUFFIXES
    if row.get("rays") == 0:
        kinds = ()
    return {
        name: float(f"{value:.4g}")
        for name, value in row.items()
        if name == "step" or (name.endswith(kinds) and not name.startswith("grad_") and math.isfinite(value))
    }
