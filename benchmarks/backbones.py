"""Find out which timm models have a masked forward, and write docs/backbones.md: ``python -m benchmarks.backbones``.

Each model is built with random weights at a small image size and checked in training and in evaluation mode: hidden
pixels must not change visible features nor get a gradient, features of hidden patches must be zero, and with all
patches visible the maps must equal timm's bit for bit. The reference of a CNN is the dense model on the visible
rectangle, cut out of the image; that of a ViT is the dense model whose attention ignores hidden tokens. Run the command
again to resume.
"""

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim4d.backbones import NoMaskedForwardError, forward_masked
from mim4d.backbones.masked import dense_maps
from mim4d.flags import report_user_errors
from mim4d.io.files import write_file

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/backbones.md"
COST, TRIED = "## Time and memory of a step", "## Models tried"
"""Headings of the page. benchmarks/masked.py writes the section under the first."""
WORKS, REFUSED, FAILED, WRONG = "works", "refused", "fails", "wrong"


def check(name: str) -> dict[str, Any]:
    """Check one model.

    Returns:
        ``status`` (works, refused, fails, wrong), ``why``, and, if it works, ``reference``: the relative difference to
        the reference.
    """
    torch.manual_seed(0)
    try:
        model: Any = timm.create_model(name, num_classes=0).eval()
        randomise(model)
        vit = isinstance(model, (VisionTransformer, Eva))
        images, visible = inputs(model, vit)
        faults = dict(_faults(model, images, visible))
        difference = (_attention_difference if vit else _crop_difference)(model, images)
    except NoMaskedForwardError as error:
        return {"status": REFUSED, "why": str(error)}
    except Exception as error:  # from the model, such as one that needs another image size
        return {"status": FAILED, "why": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
    if faults:
        return {"status": WRONG, "why": ", ".join(f"{what}: {value:.2g}" for what, value in faults.items())}
    return {"status": WORKS, "why": "", "reference": difference}


def randomise(model: nn.Module) -> None:
    """Change the statistics of norms and the biases, because in a new model they are 0 or 1 and hide faults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def inputs(model: Any, vit: bool) -> tuple[Tensor, Tensor]:
    """Return two images of at least 4 x 4 patches, and a mask that shows the same number in each, about 60 %."""
    generator = torch.Generator().manual_seed(1)
    if vit:
        height, width = model.patch_embed.img_size
        side = model.patch_embed.patch_size[0]
        rows, columns = height // side, width // side
    else:
        side = max(stage["reduction"] for stage in model.feature_info)
        fixed = model.default_cfg.get("fixed_input_size") and model.default_cfg["input_size"][1:]
        height, width = fixed or (4 * side, 5 * side)
        rows, columns = height // side, width // side
    images = torch.randn(2, 3, rows * side, columns * side, generator=generator)
    order = torch.rand(2, rows * columns, generator=generator).argsort(1)
    return images, (order < int(0.6 * rows * columns)).view(2, rows, columns)


def _faults(model: nn.Module, images: Tensor, visible: Tensor) -> Iterator[tuple[str, float]]:
    """Yield each broken rule, with the size of the error."""
    count = int(visible[0].sum())
    pixels = _to_pixels(visible, images)
    with torch.no_grad():
        every = torch.ones_like(visible)
        for ours, timms in zip(forward_masked(model, images, every), dense_maps(model, images), strict=True):
            if not torch.equal(ours, timms):
                yield "not timm's with all visible", float((ours - timms).abs().max())
    changed = torch.where(pixels, images, 7 * torch.randn_like(images))
    for training in (False, True):
        model.train(training)
        kind = "training" if training else "evaluation"
        leaf = images.clone().requires_grad_()
        torch.manual_seed(3)
        maps = forward_masked(model, leaf, visible, num_visible=count)
        torch.manual_seed(3)
        others = forward_masked(model, changed, visible, num_visible=count)
        for one, other in zip(maps, others, strict=True):
            if not torch.equal(one, other):
                yield f"hidden pixels change features in {kind}", float((one - other).abs().max())
            if hidden := float(one.masked_fill(_to_pixels(visible, one), 0).abs().max()):
                yield f"hidden sites not zero in {kind}", hidden
        if not maps[-1].abs().max() > 0:
            yield f"no features in {kind}", 0.0
        (gradient,) = torch.autograd.grad(sum(x.float().square().sum() for x in maps), leaf)  # type: ignore[arg-type]
        if hidden := float(gradient.masked_fill(pixels, 0).abs().max()):
            yield f"hidden pixels get gradient in {kind}", hidden
    model.eval()


def _to_pixels(visible: Tensor, x: Tensor) -> Tensor:
    sides = x.shape[2] // visible.shape[1], x.shape[3] // visible.shape[2]
    return visible.repeat_interleave(sides[0], 1).repeat_interleave(sides[1], 2)[:, None]


@torch.no_grad()
def _crop_difference(model: nn.Module, images: Tensor) -> float:
    """Return the relative difference to the dense model on the visible rectangle: 2 x 3 patches of 4 x 5."""
    side = max(stage["reduction"] for stage in model.feature_info)  # type: ignore[union-attr]
    visible = torch.zeros(2, images.shape[2] // side, images.shape[3] // side, dtype=torch.bool)
    visible[:, 1:3, 1:4] = True
    masked = forward_masked(model, images, visible)
    cropped = dense_maps(model, images[:, :, side : 3 * side, side : 4 * side])
    worst = 0.0
    for one, other in zip(masked, cropped, strict=True):
        s = one.shape[2] // visible.shape[1]
        worst = max(worst, float((one[:, :, s : 3 * s, s : 4 * s] - other).abs().max() / other.abs().max()))
    return worst


@torch.no_grad()
def _attention_difference(model: Any, images: Tensor) -> float:
    """Return the relative difference to the dense model whose attention ignores hidden tokens."""
    height, width = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    visible = torch.rand(2, height, width, generator=torch.Generator().manual_seed(2)) < 0.5
    prefix = torch.ones(2, model.num_prefix_tokens, dtype=torch.bool)
    keys = torch.cat([prefix, visible.flatten(1)], dim=1)[:, None, None]
    weights = torch.zeros(2, 1, keys.shape[-1], keys.shape[-1]).masked_fill(~keys, float("-inf"))
    dense = model.forward_intermediates(images, intermediates_only=True, attn_mask=weights)
    pairs = zip(forward_masked(model, images, visible), dense, strict=True)
    return max(float((x - y.masked_fill(~visible[:, None], 0)).abs().max() / y.abs().max()) for x, y in pairs)


def smallest_of_each_class() -> list[str]:
    """Return the timm model with the fewest parameters of each class."""
    classes: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in timm.list_models(exclude_filters="mim4d_*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        size = sum(parameter.numel() for parameter in model.parameters())
        classes[type(model).__module__, type(model).__name__].append((size, name))
    return sorted(min(models)[1] for models in classes.values())


def replace_cost(text: str, cost: str) -> str:
    """Replace the section of time and memory in the page's text."""
    start, end = text.index(COST), text.index(TRIED)
    return f"{text[:start]}{COST}\n\n{cost}\n\n{text[end:]}"


def _counted(results: list[dict[str, Any]]) -> str:
    count = {status: sum(r["status"] == status for r in results) for status in (WORKS, REFUSED, FAILED, WRONG)}
    return (
        f"{count[WORKS]} work, {count[REFUSED]} are refused, {count[FAILED]} fail for another reason and "
        f"{count[WRONG]} are wrong"
    )


def page(results: dict[str, dict[str, Any]], shown: list[str]) -> str:
    """Return the page in Markdown, without the section of time and memory.

    Args:
        results: Results of :func:`check`, by name.
        shown: Names of the models that get a row.
    """
    more = len(results) > len(shown)
    others = f" Of all {len(results)} models tried, {_counted(list(results.values()))}." if more else ""
    lines = [
        "# Which timm models can be pretrained",
        "",
        "**Most CNNs and the plain ViTs of timm can be pretrained; windowed and hierarchical transformers cannot.** "
        "CNNs may consist of convolutions, poolings, norms and pooled gates (such as squeeze-and-excitation); ViTs "
        "must be of timm's `VisionTransformer` or `Eva` class (plain, DINOv2, DINOv3, EVA-02). Other models, such as "
        "ViTs with relative position biases (BEiT) and CNNs with attention, are refused: `mim4d-pretrain --model NAME` "
        "prints the reason before the first step.",
        "",
        f"Of {len(shown)} timm models, the smallest of each class, **{_counted([results[n] for n in shown])}**.{others}"
        " A larger variant may be refused because of a module that the smallest one of its class does not have. "
        f"`python -m benchmarks.backbones` produced the list, with timm {timm.__version__}, torch "
        f"{torch.__version__.split('+')[0]} and random weights; `--all` tries every model of up to 60 million "
        "parameters.",
        "",
        "A model *works* if these rules hold in training and in evaluation mode: hidden pixels change no visible "
        "feature and get no gradient, both exactly; features of hidden patches are zero; with all patches visible, the "
        "maps equal timm's bit for bit. A model is *refused* if it has an operation that cannot be masked, which the "
        "table names; it *fails* if it raises another error, and is *wrong* if it breaks a rule.",
        "",
        "As a further check, masked features are compared with a reference. For a CNN, it is the dense model on the "
        "visible rectangle, cut out of the image; for a ViT, the dense model whose attention ignores hidden tokens. "
        "CNNs that pad by reflection, or count padding in a pooling, differ from the reference at the border of the "
        "rectangle, because the cut-out image ends there and the masked one does not.",
        "",
        COST,
        "",
        TRIED,
        "",
        "| model | result | relative difference to the reference | reason |",
        "| --- | --- | --- | --- |",
    ]
    order = (WRONG, WORKS, REFUSED, FAILED)
    for name in sorted(shown, key=lambda name: (order.index(results[name]["status"]), name)):
        result = results[name]
        reference = result.get("reference")
        difference = "" if reference is None else f"{reference:.0e}"
        _, _, operation = result["why"].partition(" has no masked forward, because of ")
        reason = (operation or result["why"]).replace("|", " ")
        lines.append(f"| `{name}` | {result['status']} | {difference} | {reason} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Try which timm models have a masked forward, and write docs/backbones.md."
    )
    parser.add_argument("names", nargs="*", help="models to try and to list; default: the smallest of each class")
    parser.add_argument("--all", action="store_true", help="try every model of up to 60 million parameters")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build/backbones.json", help="file of the results, read to resume"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    return parser


def main() -> None:
    """Try models and write the page."""
    given = _parser().parse_args()
    warnings.filterwarnings("ignore")
    with report_user_errors():
        results = json.loads(given.results.read_text()) if given.results.exists() else {}
        shown = given.names or smallest_of_each_class()
        more = [name for name in timm.list_models(exclude_filters="mim4d_*") if given.all and not _too_large(name)]
        for name in (*shown, *more):
            if name in results:
                continue
            results[name] = check(name)
            print(name, results[name], flush=True)
            given.results.parent.mkdir(parents=True, exist_ok=True)
            write_file(given.results, lambda partial: partial.write_text(json.dumps(results, indent=1)))
        text, old = page(results, shown), given.page.read_text() if given.page.exists() else ""
        if COST in old:
            text = replace_cost(text, old.partition(COST)[2].partition(TRIED)[0].strip())
        write_file(given.page, lambda partial: partial.write_text(text))


def _too_large(name: str) -> bool:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters()) > 60e6


if __name__ == "__main__":
    main()
