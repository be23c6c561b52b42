"""The largest batch that fits into the GPU's memory."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from mim4d.clip import Clip

from .cases import Case, make_model
from .speed import first_line
from .stages import Step

MOST = 256
"""Largest batch to try."""
TOY_MEMORY = 1
"""Largest batch that a toy run pretends to have memory for."""


def largest_batch(case: Case, device: str) -> dict[str, Any]:
    """Find the largest batch with which two whole steps run; the second step also holds the optimiser's state."""
    config = case.config()
    row: dict[str, Any] = {"preset": case.preset, "encoder": config.model, "precision": config.precision}
    step, clip = Step(make_model(config, device), config), case.clip(1)
    stopped: list[str] = []

    def fits(batch: int) -> bool:
        reason = _try(case, step, clip, batch)
        # After the error is gone, and with it the tensors that its traceback holds.
        step.optimizer.zero_grad()
        free_memory(device)
        if reason and reason not in stopped:
            stopped.append(reason)
        return reason is None

    batch = search(fits, MOST)
    return row | {"batch": batch, "at_least": batch == MOST, "stopped_by": stopped}


def _try(case: Case, step: Step, clip: Clip, batch: int) -> str | None:
    """Run two steps. Return None if they fit, else the reason."""
    try:
        if case.toy and batch > TOY_MEMORY:
            raise torch.cuda.OutOfMemoryError("out of memory")
        clips = Clip.collate([clip] * batch).to(step.device)
        for _ in range(1 if case.toy else 2):
            step(clips)
        if step.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError as error:
        message = str(error)
        # cuBLAS and cuDNN have their own messages if their workspace does not fit. Tensors of more than 2^31 elements
        # stop some kernels before memory does; that limit is reported as it is.
        if isinstance(error, torch.cuda.OutOfMemoryError) or "ALLOC_FAILED" in message or "out of memory" in message:
            return "out of memory"
        return first_line(error)
    return None


def search(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest batch from 0 to ``most`` that fits, by doubling and then bisecting."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def free_memory(device: str) -> None:
    """Free all memory that is no longer referenced."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
