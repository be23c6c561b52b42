"""Measure time and peak memory of whole steps and of each stage, eager and compiled."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mim4d.clip import Clip

from .cases import Case, make_model
from .stages import COMPILED, STAGES, Step, autocast, compile_stage, map_tensors, record, run_stage

SECONDS, TOY_SECONDS = 4.0, 0.1
"""Time spent on one measurement after the warm-up."""
LEAST, MOST = 2, 30
"""Bounds on the repetitions of one measurement."""
WARM_UP = {"cuda": 3, "cpu": 1}
"""Repetitions before the measurement."""


def time_steps(case: Case, device: str, compiled: bool = False) -> dict[str, Any]:
    """Time whole steps of a preset with its own batch.

    Returns:
        Milliseconds per step, clips/s, peak memory in GB; for a compiled model also the time of its first two steps and
        its graph breaks, or ``error``, the first line of the error.
    """
    config = case.config()
    step = Step(make_model(config, device), config)
    clip = case.clip(config.batch_size).to(device)
    row: dict[str, Any] = {"preset": case.preset, "encoder": config.model, "precision": config.precision}
    row |= {"batch": config.batch_size, "compiled": compiled}
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        step.forward = torch.compile(step.model, dynamic=False)
        start = time.perf_counter()
        try:
            for _ in range(2):
                step(clip)
            synchronize(device)
        except Exception as error:
            return row | {"error": first_line(error)}
        row["compile_s"] = time.perf_counter() - start
        row["graph_breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
    row |= measure(lambda: step(clip), device, TOY_SECONDS if case.toy else SECONDS)
    if compiled:
        row["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return row | {"clips_per_s": 1e3 * config.batch_size / row["ms"]}


def time_stages(case: Case, device: str, compiled: bool = False) -> dict[str, Any]:
    """Time the forward pass, and forward and backward pass, of each stage of a preset's step with its own batch."""
    config = case.config()
    model = make_model(config, device)
    clip = case.clip(config.batch_size).to(device)
    with autocast(device, config.precision):
        inputs = record(model, clip)
    names: tuple[str, ...] = STAGES
    if compiled:
        names = ("neck",) if case.toy else COMPILED  # each takes minutes on a CPU core
    seconds = (TOY_SECONDS if case.toy else SECONDS) / 4
    return {"rows": [_time_stage(case, model, name, inputs[name], device, seconds, compiled) for name in names]}


def _time_stage(
    case: Case, model: Any, name: str, args: tuple[Any, ...], device: str, seconds: float, compiled: bool
) -> dict[str, Any]:
    precision = case.config().precision
    row: dict[str, Any] = {"preset": case.preset, "stage": name, "compiled": compiled}

    def learn(x: torch.Tensor) -> torch.Tensor:
        # In a step, features and rendered rays have gradients; rays, gaps and the clip have none.
        return x.requires_grad_() if x.is_floating_point() and (x.dim() >= 4 or name == "losses") else x

    placed = tuple(a if isinstance(a, Clip) else map_tensors(a, learn) for a in args)

    def forward() -> list[torch.Tensor]:
        with autocast(device, precision):
            return run_stage(model, name, placed)

    def both() -> None:
        torch.autograd.backward([x.float().mean() for x in forward()])

    if compiled:
        torch._dynamo.reset()
        backend = "eager" if case.toy else "inductor"  # a test needs no C++ compiler
        compile_stage(model, name, lambda function: torch.compile(function, dynamic=False, backend=backend))
    try:
        row["forward_ms"] = measure(forward, device, seconds)["ms"]
        return row | measure(both, device, seconds)
    except Exception as error:
        if not compiled:
            raise
        return row | {"error": first_line(error)}


def measure(run: Callable[[], Any], device: str, seconds: float) -> dict[str, float]:
    """Repeat ``run`` and return its median, shortest and longest time in ms, and the peak memory in GB.

    On a GPU, events time each repetition and the host waits only after the last. ``host_ms`` is the time to issue one
    repetition: if it is close to ``ms``, the GPU waits for the host.
    """
    for _ in range(WARM_UP[device]):
        run()
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    count = max(LEAST, min(MOST, int(seconds / max(time.perf_counter() - start, 1e-6))))
    if device != "cuda":
        times = []
        for _ in range(count):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return {"ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times), "repeats": count}
    torch.cuda.reset_peak_memory_stats()
    before_gb = torch.cuda.memory_allocated() / 1e9
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    start = time.perf_counter()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
    return {
        "ms": statistics.median(times),
        "least_ms": min(times),
        "most_ms": max(times),
        "repeats": count,
        "host_ms": 1e3 * host / count,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "added_gb": torch.cuda.max_memory_allocated() / 1e9 - before_gb,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def synchronize(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
