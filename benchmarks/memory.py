"""What a training step has to keep in memory: counted, without a GPU.

    python benchmarks/memory.py --preset gpu24

Weights, gradients and AdamW's moments follow from the parameters. What autograd keeps for the backward pass is counted
on the CPU, from a real forward pass of one clip; it grows by the same amount with each camera, so that one and two
cameras give six. The renderer keeps only its rays and computes one chunk anew at a time, which is counted by itself.
A GPU's allocator, libraries and short-lived buffers come on top.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from mim4d.clip import Clip
from mim4d.pretrain.config import PretrainConfig, complete
from mim4d.pretrain.datasets import open_data
from mim4d.pretrain.model import MIM4D
from mim4d.pretrain.presets import PRESETS

NAMES = ("init", "frames", "image_size", "precision", "method")
"""Settings that decide on the memory."""
CHUNK = 4096
"""Rays a chunk on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Count the memory of a preset's step."""

    preset: Literal["demo", "paper", "gpu24"] = "gpu24"
    """Whose settings."""
    model: str = ""
    """Another encoder than the preset's."""


def main(options: Options) -> None:
    """Print the figures of one process, in GB (10^9 bytes)."""
    preset = PRESETS[options.preset]
    # Clips of the drawn world's key frames: what is kept does not depend on what they show.
    same: dict[str, Any] = {name: getattr(preset, name) for name in NAMES}
    config = complete(replace(PRESETS["demo"], model=options.model or preset.model, **same))
    torch.manual_seed(0)
    model = MIM4D(config.model_config())
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole, encoder = (sum(p.numel() for p in m.parameters()) for m in (model, model.encoder))
    one, two = (kept(model, partial(forward, model, clip_of(config, n), config)) for n in (1, 2))
    clip = one + (len(preset.cameras) - 1) * (two - one)
    chunk = kept(model, partial(march, model))
    state = 4 * whole + 12 * learnt
    total = state + preset.batch_size * clip + chunk
    print(f"{options.preset}: {config.model}, {encoder / 1e6:.1f} M of {whole / 1e6:.1f} M parameters")
    print(f"weights, gradients, moments  {state / 1e9:6.2f} GB")
    print(f"kept for the backward pass   {clip / 1e9:6.2f} GB a clip, x {preset.batch_size}")
    print(f"one chunk of the renderer    {chunk / 1e9:6.2f} GB")
    print(f"together                     {total / 1e9:6.2f} GB a process")


def clip_of(config: PretrainConfig, cameras: int) -> Clip:
    """A clip of the first cameras."""
    clips, _ = open_data(replace(config, cameras=config.cameras[:cameras]), Accelerator(cpu=True))
    return clips[0]


def forward(model: MIM4D, clip: Clip, config: PretrainConfig) -> Tensor:
    """A training step's forward pass; the result keeps what the backward pass needs."""
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        return model(clip)["loss"]


def march(model: MIM4D) -> tuple[Tensor, ...]:
    """One chunk of rays as the backward pass computes it anew."""
    renderer, grid = model.renderer, model.config.grid
    samples = renderer.config.uniform_samples + renderer.config.importance_samples
    z, y, x = grid.shape
    table = torch.randn(z * y * x, model.config.lift.channels, requires_grad=True)
    directions = nn.functional.normalize(torch.randn(CHUNK, 3), dim=-1)
    distances = torch.linspace(1, 40, samples).expand(CHUNK, -1).contiguous()
    first = torch.zeros(CHUNK, dtype=torch.int64)
    return renderer._march(table, torch.zeros(CHUNK, 3), directions, torch.full((CHUNK,), 41.0), first, distances)


def kept(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a run, beside the parameters."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    held: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        seen.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(seen.values())


if __name__ == "__main__":
    main(tyro.cli(Options))
