"""The stages of a training step, which can run alone on inputs recorded from a real forward pass."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mim4d.clip import Clip
from mim4d.method.model import MIM4D
from mim4d.optim import make_optimizer

STAGES = ("encoder", "neck", "depth", "lift", "warp", "temporal", "render", "losses")
"""Stages in forward order. ``encoder`` includes the sampling of the mask, ``losses`` that of the rays."""
COMPILED = ("encoder", "neck", "depth", "lift", "warp", "temporal", "render")
"""Stages that are also compiled alone."""

Inputs = dict[str, tuple[Any, ...]]
"""The arguments of each stage."""


class _StopError(Exception):
    """Raised to end a forward pass at the neck."""


def record(model: MIM4D, clip: Clip) -> Inputs:
    """Run one forward pass and return the detached arguments of each stage."""
    inputs: Inputs = {"encoder": (clip,)}
    rendered: list[Any] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(name, map_tensors(args, Tensor.detach))

        return hook

    def keep_method(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            inputs.setdefault(name, map_tensors(args, Tensor.detach))
            return method(*args)

        return run

    modules = {"neck": model.neck, "lift": model.lift, "temporal": model.temporal, "render": model.renderer}
    handles = [m.register_forward_pre_hook(keep(name)) for name, m in modules.items() if m is not None]
    handles.append(model.renderer.register_forward_hook(lambda module, args, out: rendered.append(out)))
    try:
        with (
            replaced(model.lift, "depth", keep_method("depth", model.lift.depth)),
            replaced(model, "warp_others", keep_method("warp", model.warp_others)),
            replaced(model, "score", keep_method("losses", model.score)),
        ):
            model(clip)
    finally:
        for handle in handles:
            handle.remove()
    inputs["losses"] = (map_tensors(tuple(rendered), Tensor.detach), *inputs["losses"])
    return inputs


def run_stage(model: MIM4D, name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """Run one stage.

    Args:
        model: On the device of ``args``.
        name: One of :data:`STAGES`.
        args: As returned by :func:`record`, on any device.

    Returns:
        The outputs that have a gradient.
    """
    if name == "encoder":
        out = _encoder(model, *args)
    elif name == "depth":
        out = model.lift.depth(*args)
    elif name == "warp":
        out = model.warp_others(*args)
    elif name == "losses":
        rendered, *rest = args
        results = iter(rendered)
        with replaced(model.renderer, "forward", lambda *_: next(results)):
            out = list(model.score(*rest)[0].values())
    else:
        module = {"neck": model.neck, "lift": model.lift, "temporal": model.temporal, "render": model.renderer}[name]
        assert module is not None
        out = module(*args)
    return [x for x in tensors(out) if x.requires_grad]


def _encoder(model: MIM4D, clip: Clip) -> Any:
    """Return the encoder's maps: run steps 1 and 2, up to the call of the neck."""
    found: list[Any] = []

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.extend(args)
        raise _StopError

    handle = model.neck.register_forward_pre_hook(stop)
    try:
        model.encode(clip)
    except _StopError:
        return found
    finally:
        handle.remove()
    raise RuntimeError("MIM4D.encode did not call the neck")


def compile_stage(model: MIM4D, name: str, compiler: Callable[[Any], Any]) -> None:
    """Replace one stage of a model by its compiled form.

    Args:
        model: Changed in place.
        name: One of :data:`COMPILED`.
        compiler: Such as ``torch.compile``.
    """
    owner, method = {
        "encoder": (model.encoder, "forward_masked"),
        "neck": (model.neck, "forward"),
        "depth": (model.lift, "depth"),
        "lift": (model.lift, "forward"),
        "warp": (model, "warp_others"),
        "temporal": (model.temporal, "forward"),
        "render": (model.renderer, "forward"),
    }[name]
    setattr(owner, method, compiler(getattr(owner, method)))


class Step:
    """One training step: forward, backward, gradient clipping, AdamW. The learning rate is 0: weights stay the same."""

    def __init__(self, model: MIM4D, config: Any) -> None:
        """Create the optimiser of a :class:`mim4d.pretrain.config.PretrainConfig`."""
        self.model, self.config = model, config
        self.optimizer = make_optimizer(model, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.forward: Callable[[Clip], dict[str, Tensor]] = model
        self.device = str(next(model.parameters()).device.type)

    def loss(self, clip: Clip) -> Tensor:
        """Run the forward pass in the preset's precision and return the loss."""
        with autocast(self.device, self.config.precision):
            return self.forward(clip)["loss"]

    def __call__(self, clip: Clip) -> None:
        """Run the step, without waiting for the device."""
        self.loss(clip).backward()
        self.update()

    def update(self) -> None:
        """Clip the gradients and step the optimiser."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast context of a run with ``--precision fp32`` or ``bf16``."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute of one object for the block."""
    missing = name not in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(map_tensors(x, change) for x in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(x, change) for x in value)
    if isinstance(value, dict):
        return {key: map_tensors(x, change) for key, x in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{name: map_tensors(getattr(value, name), change) for name in fields})
    return value


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists, dicts and dataclasses, in order."""
    found: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(value, add)
    return found
