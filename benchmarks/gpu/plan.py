"""The parts of a run, in order of importance, each with its time limit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .batches import largest_batch
from .cases import PRESET_NAMES, Case
from .compare import compare_encoders, compare_stages, compare_steps
from .loading import time_loading
from .speed import time_stages, time_steps
from .waits import count_waits

ENCODERS = ("mim4d_convnext_tiny", "mim4d_convnext_base", "mim4d_resnet50")
"""Further encoders to time gpu24 with."""


@dataclass(frozen=True)
class Part:
    """One measurement, which is run, stored and skipped as a whole."""

    name: str
    """Name of the part and of its file."""
    seconds: float
    """Time limit."""
    run: Callable[[], dict[str, Any]]
    """The measurement; it runs in another process, so it must be picklable."""


def parts(device: str, world: Path, toy: bool) -> list[Part]:
    """Return all parts of a run; ``world`` is the folder of the synthetic world."""
    cases = [Case(preset=name, toy=toy) for name in PRESET_NAMES]
    others = [Case(preset="gpu24", encoder=encoder) for encoder in ENCODERS] if not toy else []
    few = cases[:1] if toy else cases
    found = [
        Part("waits", 60, partial(count_waits, device, toy)),
        Part("compare-encoders", 60, partial(compare_encoders, device, toy)),
        Part("compare-stages", 90, partial(compare_stages, device, toy)),
        Part("compare-steps", 90, partial(compare_steps, device, toy)),
        *(Part(f"steps-{case.name}", 45, partial(time_steps, case, device)) for case in cases),
        *(Part(f"stages-{case.name}", 60, partial(time_stages, case, device)) for case in few),
        *(Part(f"batch-{case.name}", 75, partial(largest_batch, case, device)) for case in few),
        *(Part(f"steps-{case.name}", 45, partial(time_steps, case, device)) for case in others),
        Part("loading-gpu24", 90, partial(time_loading, cases[0], device, world)),
        *(Part(f"compiled-stages-{case.name}", 150, partial(time_stages, case, device, True)) for case in few),
    ]
    if not toy:  # a whole step takes a CPU core minutes to compile
        order = sorted(cases, key=lambda case: case.preset != "demo")  # the smallest first
        found += [Part(f"compiled-steps-{c.name}", 240, partial(time_steps, c, device, True)) for c in order]
    # A toy run may share its core with other processes.
    return [replace(part, seconds=5 * part.seconds) for part in found] if toy else found
