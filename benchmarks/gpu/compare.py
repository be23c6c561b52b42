"""Agreement with the CPU: every stage and whole steps, values and gradients, in float32 and bfloat16.

The bounds are computed on the CPU. Two correct float32 programs differ by rounding, which acts like a random relative
change of weights and inputs: one unit roundoff (2^-24) per term of a sequential sum, growing with the square root of
the number of terms. So the CPU runs the stage again with weights, inputs and geometry changed by 2^-24 x sqrt(4096)
(the longest sums of the forward pass have 2,304 to 4,096 terms). The change of the result is the uncertainty of
float32, including discontinuities (a point that falls into the next voxel, a ray into the next pixel); it is taken to
be at least the change of the inputs. For bfloat16, the distance of the CPU's own autocast from float32 is added. The
device passes if its distance from the CPU's float32 result is at most 4 times the uncertainty: a factor of 2 because
both sides round, and another 2 because one random change is not the worst case.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mim4d.clip import Clip
from mim4d.method.model import MIM4D
from mim4d.pretrain.config import PretrainConfig

from .cases import TOY_POINTS, Case, make_generic_model, medium, synthetic_clip
from .stages import STAGES, Inputs, autocast, map_tensors, record, run_stage

ROUNDOFF = 2.0**-24 * math.sqrt(4096)
"""Relative change of weights and inputs that models float32's rounding."""
FACTOR = 4.0
"""Largest allowed distance between device and CPU, in units of the CPU's uncertainty."""
SMALL = 0.01
"""Least reference size of a tensor, as a fraction of the root mean square of all: some gradients are 0 up to rounding,
such as that of a bias before a norm."""
TINY = 1e-30
"""Least denominator, so that quotients stay finite."""
PRECISIONS = ("fp32", "bf16")
STEP = "step"
"""Name of the whole forward pass as a stage."""
ENCODERS = ("mim4d_convnext_atto", "mim4d_convnext_tiny", "mim4d_convnextv2_atto", "mim4d_resnet18", "mim4d_resnet50")
"""These cover both forms of ConvNeXt's MLP, V2's response norm, and both kinds of ResNet block."""
TOY_ENCODERS = ("mim4d_convnextv2_atto", "mim4d_resnet18")


class Result(NamedTuple):
    """Results of a stage, in float64 on the CPU."""

    values: list[Tensor]
    gradients: list[Tensor]


class Distance(NamedTuple):
    """Distance between two results."""

    rms: float
    """Root mean square of the difference over that of the reference, all tensors as one vector."""
    largest: float
    """Largest difference relative to the largest absolute value of its tensor, for the worst tensor."""


def compare_encoders(device: str, toy: bool) -> dict[str, Any]:
    """Compare the masked forward pass of every family of encoders."""
    rows = []
    for encoder in TOY_ENCODERS if toy else ENCODERS:
        config = _config(Case(preset="demo" if not toy else "gpu24", encoder=encoder, toy=toy))
        rows += compare(config, ("encoder",), device, title=encoder)
    return {"rows": rows}


def compare_stages(device: str, toy: bool) -> dict[str, Any]:
    """Compare every other stage at the sizes of gpu24's volume and layers."""
    return {"rows": compare(_config(Case(preset="gpu24", toy=toy)), STAGES[1:], device)}


def compare_steps(device: str, toy: bool) -> dict[str, Any]:
    """Compare whole steps of a ConvNeXt and a ResNet."""
    rows = []
    for encoder in ("mim4d_convnext_atto", "mim4d_resnet18")[: 1 if toy else 2]:
        config = _config(Case(preset="gpu24", encoder=encoder, toy=toy))
        rows += compare(config, (STEP,), device, title=f"whole step, {encoder}")
    return {"rows": rows}


def _config(case: Case) -> PretrainConfig:
    config = case.config()
    return config if case.toy else medium(config)


@contextmanager
def exact_products() -> Iterator[None]:
    """Switch TensorFloat-32 off: it keeps only 10 of float32's 23 mantissa bits in every product."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@exact_products()
def compare(
    config: PretrainConfig,
    stages: tuple[str, ...],
    device: str,
    *,
    title: str = "",
    on_device: Callable[[MIM4D], None] = lambda model: None,
) -> list[dict[str, Any]]:
    """Compare stages of a model on a device with the CPU.

    Args:
        config: The model's settings, without stochastic depth.
        stages: Which to compare: those of :data:`STAGES`, or :data:`STEP`.
        device: The device under test.
        title: Name of a single stage in the table.
        on_device: Called with the model under test before it runs.

    Returns:
        One row per stage, precision and kind (values, gradients), with distances, bounds and ``passed``.
    """
    model = make_generic_model(config)
    tested = copy_of(model).to(device)
    on_device(tested)
    clip = synthetic_clip(config, 1, points=TOY_POINTS if config.image_size[1] <= 128 else 5000)
    with unchanged(model):
        inputs: Inputs = {STEP: (clip,)} if stages == (STEP,) else record(model, clip)
    rows = []
    for stage in stages:
        args = inputs[stage]
        reference = evaluate(model, stage, args, "fp32")
        rounding = distances(reference, evaluate(_perturbed(model), stage, _perturb_args(args), "fp32"))
        for precision in PRECISIONS:
            allowed = rounding
            if precision == "bf16":
                own = distances(reference, evaluate(model, stage, args, "bf16"))
                allowed = {k: Distance(*(sum(p) for p in zip(rounding[k], own[k], strict=True))) for k in own}
            got = evaluate(tested, stage, args, precision)
            for kind, found in distances(reference, got).items():
                bound = Distance(*(FACTOR * max(x, ROUNDOFF) for x in allowed[kind]))
                rows.append(
                    {
                        "stage": title or stage,
                        "precision": precision,
                        "kind": kind,
                        "rms": found.rms,
                        "rms_bound": bound.rms,
                        "largest": found.largest,
                        "largest_bound": bound.largest,
                        "passed": found.rms <= bound.rms and found.largest <= bound.largest,  # NaN does not pass
                    }
                )
    return rows


def evaluate(model: MIM4D, stage: str, args: tuple[Any, ...], precision: str) -> Result:
    """Run a stage on the model's device, forward and backward.

    The backward pass starts from random numbers, the same on every device, so that no gradients cancel.
    """
    with unchanged(model):
        return _evaluate(model, stage, args, precision)


def _evaluate(model: MIM4D, stage: str, args: tuple[Any, ...], precision: str) -> Result:
    device = next(model.parameters()).device
    inputs: list[Tensor] = []

    def place(x: Tensor) -> Tensor:
        x = x.detach().to(device)
        if x.is_floating_point():
            x = x.clone().requires_grad_()
            inputs.append(x)
        return x

    # Clips stay constant: no gradient by the calibration is needed.
    placed = tuple(a.to(device) if isinstance(a, Clip) else map_tensors(a, place) for a in args)
    with autocast(device.type, precision):
        values = [model(*placed)["loss"]] if stage == STEP else run_stage(model, stage, placed)
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(v.shape, generator=generator).to(device, v.dtype) for v in values]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(values, [*inputs, *trained], starts, allow_unused=True)
    return Result(
        [v.detach().double().cpu() for v in values],
        [g.double().cpu() for g in gradients if g is not None],
    )


@contextmanager
def unchanged(model: MIM4D) -> Iterator[None]:
    """Restore BatchNorm's running statistics after the block, so that every run starts from the same state."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)


def distances(reference: Result, got: Result) -> dict[str, Distance]:
    """Return the distances of values and of gradients; infinite if the number of tensors differs."""
    return {kind: _distance(getattr(reference, kind), getattr(got, kind)) for kind in Result._fields}


def _distance(reference: list[Tensor], got: list[Tensor]) -> Distance:
    if len(reference) != len(got) or not reference:
        return Distance(math.inf, math.inf)
    whole, difference = (
        torch.cat([x.flatten() for x in part])
        for part in (reference, [g - r for g, r in zip(got, reference, strict=True)])
    )
    overall = float(whole.square().mean().sqrt())
    rms = float(difference.square().mean().sqrt()) / max(overall, TINY)
    largest = [
        float((g - r).abs().max()) / max(float(r.abs().max()), SMALL * overall, TINY)
        for r, g in zip(reference, got, strict=True)
    ]
    return Distance(rms, math.nan if any(map(math.isnan, largest)) else max(largest))


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x * (1 + ROUNDOFF * torch.randn(x.shape, generator=generator, dtype=x.dtype))


def _perturbed(model: MIM4D) -> MIM4D:
    """Return a copy of a CPU model with weights changed by about the rounding error."""
    other = copy_of(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(_noisy(parameter, generator))
    return other


def copy_of(model: MIM4D) -> MIM4D:
    """Return a model with the same settings and weights."""
    other = MIM4D(model.config)
    other.load_state_dict(model.state_dict())
    return other


def _perturb_args(args: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)

    def change(x: Tensor) -> Tensor:
        return _noisy(x, generator) if x.is_floating_point() else x

    def of_clip(clip: Clip) -> Clip:
        names = ("intrinsics", "ego_from_camera", "current_from_ego", "points")
        changed: dict[str, Any] = {name: change(getattr(clip, name)) for name in names}
        return replace(clip, **changed)

    return tuple(of_clip(a) if isinstance(a, Clip) else map_tensors(a, change) for a in args)
