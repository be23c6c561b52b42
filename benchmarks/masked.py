"""What hiding patches saves: the masked forward and backward pass against the dense one on the same images.

    python benchmarks/masked.py                 # one CPU thread
    python benchmarks/masked.py --device cuda --models mim4d_convnext_small mim4d_resnet50 --repeats 20

Dense and masked passes take turns in one process, so that whatever else the machine does slows all of them.
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

CAPTION = "share: of the dense pass's time; aim: the visible share + 0.10"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark the masked forward."""

    models: tuple[str, ...] = ("mim4d_convnext_tiny", "mim4d_convnext_base", "mim4d_resnet18")
    """Encoders by their names in timm."""
    ratios: tuple[float, ...] = (0.3, 0.6, 0.75)
    """Shares of patches to hide."""
    images: int = 6
    """Images a pass."""
    size: tuple[int, int] = (256, 704)
    """Height and width of the images, pixels."""
    repeats: int = 5
    """Timed rounds after one to warm up; medians are printed."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Torch device."""


def seconds(options: Options, run: Callable[[], list[Tensor]]) -> float:
    """Time of a forward and backward pass: of the processor where it computes, so that other processes count little."""
    cuda = options.device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    synchronise()
    start = clock()
    sum(m.mean() for m in run()).backward()  # type: ignore[union-attr]
    synchronise()
    return clock() - start


def measure(options: Options, model: str) -> tuple[list[float], list[float]]:
    """Median seconds of the dense pass and of the masked one at each ratio, the dense one first, and visible shares."""
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
    """Print one table."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = Table("model", "hidden", "visible", "dense, s", "masked, s", "share", "aim", caption=CAPTION)
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
