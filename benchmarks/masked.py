"""Measure the time that hiding patches saves: masked and dense forward and backward pass on the same images.

    python benchmarks/masked.py                 # one CPU thread
    python benchmarks/masked.py --device cuda --models mim4d_convnext_small mim4d_resnet50 --repeats 20

Dense and masked passes alternate in one process, so that other load on the machine affects both alike.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mim4d import MIM4DEncoder
from mim4d.backbones.encoder import PATCH

CAPTION = "ratio: masked / dense time; goal: visible fraction + 0.10"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the masked with the dense pass."""

    models: tuple[str, ...] = ("mim4d_convnext_tiny", "mim4d_convnext_base", "mim4d_resnet18")
    """timm names of the encoders."""
    ratios: tuple[float, ...] = (0.3, 0.6, 0.75)
    """Fractions of patches to hide."""
    images: int = 6
    """Images per pass."""
    size: tuple[int, int] = (256, 704)
    """Height and width of the images, pixels."""
    repeats: int = 5
    """Timed rounds after one warm-up round; medians are printed."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Torch device."""


def seconds(options: Options, run: Callable[[], list[Tensor]]) -> float:
    """Return the time of a forward and backward pass; on a CPU, process time, which other processes affect little."""
    cuda = options.device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    synchronise()
    start = clock()
    sum(m.mean() for m in run()).backward()  # type: ignore[union-attr]
    synchronise()
    return clock() - start


def measure(options: Options, model: str) -> tuple[list[float], list[float]]:
    """Return median seconds of the dense pass and of the masked pass at each ratio, and the visible fractions."""
    encoder = timm.create_model(model).to(options.device).train()
    assert isinstance(encoder, MIM4DEncoder)
    images = torch.randn(options.images, 3, *options.size, device=options.device)
    grid = (options.images, options.size[0] // PATCH, options.size[1] // PATCH)
    order = torch.rand(grid[0], grid[1] * grid[2], device=options.device).argsort(1)
    hidden = [round(ratio * order.shape[1]) for ratio in options.ratios]
    masks = [((order >= count).view(grid), order.shape[1] - count) for count in hidden]

    def dense() -> list[Tensor]:
        return encoder.forward_intermediates(images, indices=4, intermediates_only=True)  # type: ignore[operator]

    passes = [dense, *[lambda mask=m, n=n: encoder.forward_masked(images, mask, num_visible=n) for m, n in masks]]
    rounds = [[seconds(options, run) for run in passes] for _ in range(options.repeats + 1)]
    shares = [visible / order.shape[1] for _, visible in masks]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)], shares


def main() -> None:
    """Print one table of all models and ratios."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = Table("model", "hidden", "visible", "dense, s", "masked, s", "ratio", "goal", caption=CAPTION)
    for model in options.models:
        (dense, *masked), shares = measure(options, model)
        for ratio, share, time_ in zip(options.ratios, shares, masked, strict=True):
            row = (
                f"{ratio:g}",
                f"{share:.2f}",
                f"{dense:.2f}",
                f"{time_:.2f}",
                f"{time_ / dense:.2f}",
                f"{share + 0.1:.2f}",
            )
            table.add_row(model, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
