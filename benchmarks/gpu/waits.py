"""Count host waits in a training step: places where the host waits until the device has finished."""

import warnings
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mim4d.clip import Clip

from .cases import Case, make_model
from .stages import Step

OPERATORS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh")
"""Operators that copy a number between device and host, on any device."""
RUNTIME = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""CUDA runtime calls that wait; cudaDeviceSynchronize is not counted because the profiler itself calls it."""
ENCODERS = ("mim4d_convnext_atto", "mim4d_resnet18")


def count_waits(device: str, toy: bool) -> dict[str, Any]:
    """Count the waits in a step of a ConvNeXt and of a ResNet.

    Forward and backward pass are counted on every device. The copy of the clip, gradient clipping and the optimiser's
    step are counted on a GPU only: on a CPU, the same code reads numbers where it does not on a GPU.
    """
    rows = []
    for encoder in ENCODERS:
        case = Case(preset="demo", encoder=encoder, toy=toy)
        config = case.config()
        step = Step(make_model(config, device), config)
        clip = case.clip(1)
        rows.append({"encoder": encoder, **(on_gpu if device == "cuda" else on_cpu)(step, clip)})
    return {"rows": rows}


def on_cpu(step: Step, clip: Clip) -> dict[str, Any]:
    """Count operators in a forward and a backward pass."""
    step.loss(clip).backward()  # creates constants
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step.loss(clip).backward()
    found = Counter(event.name for event in profiled.events() if event.name in OPERATORS)
    return {"waits": found.total(), "operators": dict(found), "places": []}


def on_gpu(step: Step, clip: Clip) -> dict[str, Any]:
    """Count the warnings of CUDA's debug mode in whole steps, and operators and runtime calls by the profiler.

    The copy of the clip from page-locked memory is part of the step.
    """
    pinned = clip.pin_memory()

    def run() -> None:
        step(pinned.to("cuda", non_blocking=True))

    for _ in range(3):  # creates constants, loads libraries, fills the optimiser's state
        run()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{w.filename.rpartition('site-packages/')[2].rpartition('/mim4d/')[2]}:{w.lineno}"
        for w in caught
        if "synchroniz" in str(w.message).lower()
    )
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    found = Counter(event.name for event in profiled.events() if event.name in (*OPERATORS, *RUNTIME))
    return {
        "waits": max(places.total(), sum(found[name] for name in OPERATORS)),
        "operators": dict(found),
        "places": [f"{place} ({times})" for place, times in places.most_common()],
    }
