"""Estimate the memory of a training step without a GPU.

    python -m benchmarks.memory --preset gpu24

Weights, gradients and AdamW's moments follow from the parameters. Activations are what autograd keeps for the backward
pass of one clip, counted on tensors without data. The renderer keeps only its rays and recomputes one chunk at a time,
which is counted separately. A GPU's allocator, libraries and temporary buffers add to this: ``python -m
benchmarks.gpu`` measures them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mim4d.clip import Clip
from mim4d.method.model import MIM4D
from mim4d.pretrain.config import PretrainConfig

from .gpu.cases import Case
from .gpu.stages import autocast, map_tensors

CHUNK = 4096
"""Rays per chunk on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Estimate the memory of a preset's step."""

    preset: Literal["demo", "paper", "gpu24"] = "gpu24"
    """Preset to use the settings of."""
    model: str = ""
    """Encoder to use instead of the preset's."""


def main(options: Options) -> None:
    """Print the memory of one process in GB (10^9 bytes)."""
    case = Case(preset=options.preset, encoder=options.model)
    config = case.config()
    clip = case.clip(1)
    model = MIM4D(config.model_config())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole, encoder = (sum(p.numel() for p in m.parameters()) for m in (model, model.encoder))
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model._apply(empty)
            per_clip = saved_bytes(model, partial(forward, model, map_tensors(clip, empty), config))
            chunk = saved_bytes(model, partial(march, model))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    state = 4 * whole + 12 * trained
    total = state + config.batch_size * per_clip + chunk
    print(f"{options.preset}: {config.model}, {encoder / 1e6:.1f} M of {whole / 1e6:.1f} M parameters")
    print(f"weights, gradients, moments  {state / 1e9:6.2f} GB")
    print(f"activations                  {per_clip / 1e9:6.2f} GB per clip, x {config.batch_size}")
    print(f"one chunk of the renderer    {chunk / 1e9:6.2f} GB")
    print(f"total                        {total / 1e9:6.2f} GB per process (estimated)")


def empty(x: Tensor) -> Tensor:
    """Return a tensor of the same layout; within FakeTensorMode it has no data."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)


def forward(model: MIM4D, clip: Clip, config: PretrainConfig) -> Tensor:
    """Run a training step's forward pass; the loss holds what the backward pass needs."""
    with autocast("cpu", config.precision):
        return model(clip)["loss"]


def march(model: MIM4D) -> tuple[Tensor, ...]:
    """Render one chunk of rays as the backward pass recomputes it."""
    renderer, grid = model.renderer, model.config.grid
    samples = renderer.config.uniform_samples + renderer.config.importance_samples
    z, y, x = grid.shape
    table = torch.randn(z * y * x, model.config.lift.channels, requires_grad=True)
    directions = nn.functional.normalize(torch.randn(CHUNK, 3), dim=-1)
    distances = torch.linspace(1, 40, samples).expand(CHUNK, -1).contiguous()
    first = torch.zeros(CHUNK, dtype=torch.int64)
    return renderer._march(table, torch.zeros(CHUNK, 3), directions, torch.full((CHUNK,), 41.0), first, distances)


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the bytes that autograd saves for the backward pass of a run, without the parameters."""
    seen = {p.untyped_storage()._cdata: 0 for p in model.parameters()}
    held: list[Tensor] = []  # so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        seen.setdefault(storage._cdata, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(seen.values())


if __name__ == "__main__":
    main(tyro.cli(Options))
