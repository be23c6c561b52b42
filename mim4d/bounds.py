"""Bounds of settings: beyond them a run would hang, or take memory until the system kills it."""

from collections.abc import Mapping
from typing import Any


def check_bounds(config: Any, bounds: Mapping[str, tuple[float, float]], section: str = "") -> None:
    """Compare fields with their bounds.

    Args:
        config: A dataclass of settings.
        bounds: The smallest and the largest value allowed, by field.
        section: What the field's name begins with in the whole settings, such as ``render.``.

    Raises:
        ValueError: Naming the first field that is out of its bounds.
    """
    for name, (least, most) in bounds.items():
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{section}{name} = {value} must be at least {least}")
        if not value <= most:
            raise ValueError(f"{section}{name} = {value} must be at most {most}")
