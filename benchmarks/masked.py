"""Measure the time and memory that hidden patches save in forward and backward passes, per family of encoders.

    python -m benchmarks.masked                 # one CPU thread; writes its table into docs/backbones.md
    python -m benchmarks.masked --device cuda --models mim4d_convnext_small mim4d_resnet50 --repeats 20

Dense and masked passes alternate in one process, so that other load on the machine affects all of them. Memory is
measured in one process per pass.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.backbones import PAGE, replace_cost
from mim4d.backbones.masked import dense_maps, masked_maps
from mim4d.backbones.pyramid import make_backbone, patch_of, pyramid_of
from mim4d.io.files import write_file

MODELS = {
    "mim4d_convnext_tiny": "ConvNeXt, mim4d's own",
    "mim4d_resnet50": "ResNet, mim4d's own",
    "tf_efficientnet_lite0": "EfficientNet",
    "regnety_008": "RegNet",
    "ese_vovnet19b_dw": "VoVNet",
    "vit_small_patch16_224": "ViT",
    "eva02_tiny_patch14_224": "EVA-02",
    "vit_small_patch16_dinov3": "DINOv3",
}
"""Families by the model that stands for them."""
VITS = ("vit_small_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare masked passes with the dense one."""

    models: tuple[str, ...] = tuple(MODELS)
    """timm names of the encoders."""
    hidden: tuple[float, ...] = (0.0, 0.5, 0.75)
    """Fractions of patches to hide."""
    images: int = 6
    """Images per pass: the cameras of a frame."""
    size: tuple[int, int] = (256, 704)
    """Height and width of the images, pixels; cut to whole patches."""
    repeats: int = 3
    """Timed rounds after one warm-up round; the fastest counts."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Torch device."""
    page: Path | None = None
    """Page to write the table into. None: docs/backbones.md for the default models, else none."""


class Passes:
    """The dense pass of a model, and a masked one per fraction of hidden patches."""

    def __init__(self, options: Options, name: str, size: tuple[int, int]) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.model: Any = make_backbone(name).to(self.device).train()
        self.pyramid, side = pyramid_of(self.model), patch_of(self.model)
        rows, columns = (max(1, length // side) for length in size)
        # Channels last makes the dense pass of a CNN faster; the masked pass chooses it itself.
        images = torch.randn(options.images, 3, rows * side, columns * side, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        order = torch.rand(options.images, rows * columns, device=self.device).argsort(1)
        counts = [rows * columns - round(hidden * rows * columns) for hidden in options.hidden]
        self.masks = [((order < count).view(-1, rows, columns), count) for count in counts]
        self.visible = [count / (rows * columns) for count in counts]

    def all(self) -> list[Callable[[], None]]:
        """Return the forward and backward passes, the dense one first."""
        return [self.dense, *(lambda mask=mask, n=count: self.masked(mask, n) for mask, count in self.masks)]

    def dense(self) -> None:
        """Run timm's own forward pass, and the backward pass."""
        levels = len(self.pyramid.strides)
        if hasattr(self.model, "forward_intermediates"):
            maps = self.model.forward_intermediates(self.images, indices=levels, intermediates_only=True)
        else:
            maps = dense_maps(self.model, self.images)[-levels:]
        self._backward(maps)

    def masked(self, visible: Tensor, count: int) -> None:
        """Run the masked forward pass, as pretraining does, and the backward pass."""
        indices = self.pyramid.indices
        self._backward(masked_maps(self.model, self.images, visible, num_visible=count, indices=indices))

    def _backward(self, maps: list[Tensor]) -> None:
        torch.stack([x.mean() for x in maps]).sum().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def seconds(options: Options, name: str) -> tuple[list[float], list[float]]:
    """Return the fastest time of each pass in seconds, the dense one first, and the visible fractions.

    On a CPU it is process time, which other processes affect less.
    """
    passes = Passes(options, name, options.size)
    clock = time.perf_counter if passes.device.type == "cuda" else time.process_time
    rounds = []
    for _ in range(options.repeats + 1):
        times = []
        for run in passes.all():
            start = clock()
            run()
            times.append(clock() - start)
        rounds.append(times)
    return [min(times) for times in zip(*rounds[1:], strict=True)], passes.visible


def peak(options: Options, name: str, number: int) -> float:
    """Return the memory in GB that one pass adds at its peak to model and images; for a process of its own."""
    Passes(options, name, (64, 64)).all()[number]()  # what is loaded at the first pass
    passes = Passes(options, name, options.size)
    if passes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        passes.all()[number]()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
    before = _resident("VmRSS")
    passes.all()[number]()
    return (_resident("VmHWM") - before) / 1e9


def _resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def measure(options: Options, name: str) -> dict[str, Any]:
    """Measure one model: seconds, GB, visible fractions and million parameters."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        times, visible = pool.apply(seconds, (options, name))
        memory = [pool.apply(peak, (options, name, number)) for number in range(len(times))]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in make_backbone(name).parameters()) / 1e6
    return {"seconds": times, "gb": memory, "visible": visible, "parameters": parameters}


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Return one sentence per kind of model: the time of masked passes as a fraction of the dense time."""

    def worst(names: list[str]) -> str:
        rows = [(results[name]["seconds"], results[name]["visible"]) for name in names]
        excess = max(
            time_ / times[0] - share for times, shares in rows for time_, share in zip(times[1:], shares, strict=True)
        )
        return f"the visible fraction of the dense time plus {max(0.0, excess):.2f}"

    vits, own = [n for n in results if n in VITS], [n for n in results if n.startswith("mim4d_")]
    others = [name for name in results if name not in (*vits, *own)]
    sentences = []
    if vits:
        sentences.append(f"A ViT drops hidden tokens: a masked pass takes at most {worst(vits)}.")
    sentences += [f"`{name}` takes at most {worst([name])}." for name in own]
    if others:
        most = max(max(results[name]["seconds"][1:]) / results[name]["seconds"][0] for name in others)
        sentences.append(f"Other CNNs compute whole maps: up to {most:.2f} of the dense time.")
    return " ".join(sentences)


def table(options: Options, results: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown: dense time and memory, and those of masked passes as fractions of them."""
    unit = f"{options.threads} CPU thread{'s' * (options.threads > 1)}" if options.device == "cpu" else options.device
    heads = [f"{100 * hidden:g} % hidden: time, memory" for hidden in options.hidden]
    lines = [
        summary(results),
        "",
        f"| family | model | parameters | dense: s, GB | {' | '.join(heads)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(heads)}",
    ]
    for name, result in results.items():
        (second, *times), (gb, *memory) = result["seconds"], result["gb"]
        shares = [f"{x / second:.2f}, {y / gb:.2f}" for x, y in zip(times, memory, strict=True)]
        family = MODELS.get(name, "")
        lines.append(
            f"| {family} | `{name}` | {result['parameters']:.1f} M | {second:.2f}, {gb:.2f} | {' | '.join(shares)} |"
        )
    lines += [
        "",
        f"One forward and backward pass of the encoder on {options.images} images of {options.size[0]} x "
        f"{options.size[1]} pixels (252 x 700 for patches of 28 pixels) on {unit}, torch "
        f"{torch.__version__.split('+')[0]}: the fastest of {options.repeats} rounds, and peak memory without weights "
        "and images. Masked passes are given as fractions of the dense pass. Norms are in training mode; a BatchNorm's "
        "statistics of visible sites cost most of what other CNNs take longer. `python -m benchmarks.masked` measures "
        "this.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the table of all models."""
    options = tyro.cli(Options)
    page = PAGE if options.page is None and options == Options() else options.page
    results = {}
    for name in options.models:
        results[name] = measure(options, name)
        print(name, results[name], flush=True)
    text = table(options, results)
    print(text)
    if page:
        write_file(page, lambda partial: partial.write_text(replace_cost(page.read_text(), text)))


if __name__ == "__main__":
    main()
