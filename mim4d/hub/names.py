"""Names of parameters: OpenMMLab's and the original ConvNeXt's to timm's, and back.

ConvNeXt, beside timm's: the original code and the MIM4D and UniPAD releases say ``downsample_layers.0.0`` for
``stem.0``, ``stages.0.1.dwconv`` for ``stages.0.blocks.1.conv_dw`` and ``pwconv1`` for ``mlp.fc1``; mmpretrain says
``depthwise_conv`` and ``pointwise_conv1``. In OpenMMLab the norm after the last stage is ``norm3``, in timm it is the
head's.

ResNets have the same names everywhere. Two things hide behind them. Older checkpoints lack BatchNorm's counters of
batches, which are zero then, as in torch. And bottlenecks with the stride in their first convolution (``style="caffe"``
in mmdet) have the very tensors of timm's, whose stride is in the 3x3 one (``style="pytorch"``), but compute something
else.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor, nn

from ..errors import WeightsError

BACKBONES = ("img_backbone.", "backbone.")
"""What the image backbone's names begin with in an OpenMMLab checkpoint: of a BEV detector, of an image model."""
_FIRST = ("stem.0.weight", "downsample_layers.0.0.weight", "layer1.0.conv1.weight")
"""Names that a backbone has once: timm's ConvNeXt, the original one, a ResNet."""
_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever they wrapped a module."""
CLASSIFIERS = ("head.fc.", "fc.")
"""What a classifier's names begin with in timm: a ConvNeXt's, a ResNet's."""
_NO_PART = re.compile(r"norm[012]\.|mtoken\d|mask_token")
"""Output norms of earlier stages and tokens for hidden patches: a timm backbone has neither."""


def split_backbone(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The image backbone in a checkpoint, and the names of everything else.

    Whatever stands before its names is left out: ``module.`` of DDP, ``model.`` of Lightning, ``img_backbone.`` of a
    detector, several of them in any order.

    Args:
        tensors: By the checkpoint's names.
        source: What to call them in messages.

    Returns:
        The backbone without the beginning of its names, and the full names of what is no part of it.

    Raises:
        WeightsError: If there are several backbones, and none is an OpenMMLab detector's image backbone.
    """
    unwrapped = {name: _WRAPPERS.sub(r"\1", name) for name in tensors}
    prefix = _prefix(unwrapped.values(), source)
    in_detector = f".{prefix}".endswith(tuple(f".{backbone}" for backbone in BACKBONES))
    kept = {
        name: short.removeprefix(prefix)
        for name, short in unwrapped.items()
        if short.startswith(prefix) and not (in_detector and _NO_PART.match(short.removeprefix(prefix)))
    }
    return {short: tensors[name] for name, short in kept.items()}, [name for name in tensors if name not in kept]


def _prefix(names: Iterable[str], source: str) -> str:
    """What a backbone's names begin with; empty if nothing does, or there is no backbone."""
    names = list(names)
    found = {
        name.removesuffix(first) for name in names for first in _FIRST if name == first or name.endswith(f".{first}")
    }
    if "" in found:
        return ""
    for wanted in (*BACKBONES, ""):
        ending = tuple(prefix for prefix in sorted(found) if f".{prefix}".endswith(f".{wanted}"))
        if len(ending) == 1:
            return ending[0]
        if ending:
            listed = ", ".join(ending)
            raise WeightsError(f"{source} holds several backbones, under {listed}: save the one you want on its own")
    return next((p for p in BACKBONES if any(name.startswith(p) for name in names)), "")


def to_timm_names(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Tensors by timm's names, in the shapes that timm's model has where only the layout differs.

    Args:
        tensors: By timm's names, the original ConvNeXt's, or those of an OpenMMLab checkpoint.
        model: The architecture to name them for.
        source: What to call them in messages.

    Raises:
        WeightsError: If they cannot be of such a model.
    """
    backbone, _ = split_backbone(tensors, source)
    if not isinstance(model, ConvNeXt):
        counters = [name for name in model.state_dict() if name.endswith(".num_batches_tracked")]
        return {**{name: torch.zeros((), dtype=torch.long) for name in counters}, **backbone}
    try:
        return checkpoint_filter_fn({_original(name): _linear(name, t) for name, t in backbone.items()}, model)
    except RuntimeError as error:  # a matrix that is not of the model's size
        raise WeightsError(f"{source} does not fit this encoder: {error}") from error
    except (KeyError, AttributeError) as error:
        raise WeightsError(f"{source}: not the weights of a ConvNeXt ({error} has no place in one)") from error


def _original(name: str) -> str:
    """mmpretrain's name as the original ConvNeXt's; others stay."""
    name = name.replace(".depthwise_conv.", ".dwconv.").replace(".pointwise_conv", ".pwconv")
    return re.sub(r"^norm3\.", "norm.", name)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """mmpretrain may have its linear layers as 1x1 convolutions."""
    return tensor.flatten(1) if ".pointwise_conv" in name and tensor.ndim == 4 else tensor


_TO_OPENMMLAB = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc([12])\.", r".pointwise_conv\1."),
    (r"^head\.norm\.", "norm3."),
)
_TO_RELEASE = ((r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv", ".pwconv"))


def to_openmmlab_names(tensors: Mapping[str, Tensor], *, prefix: str, release: bool) -> dict[str, Tensor]:
    """A timm backbone by OpenMMLab's names.

    Args:
        tensors: A ConvNeXt's or ResNet's by timm's names; a classifier is left out.
        prefix: What the names shall begin with, such as ``backbone.``.
        release: ConvNeXt blocks as the MIM4D and UniPAD releases name them, not as mmpretrain does.
    """
    rules = (*_TO_OPENMMLAB, *(_TO_RELEASE if release else ()))
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(CLASSIFIERS):
            continue
        flat = tensor.flatten(1) if ".mlp.fc" in name and tensor.ndim == 4 else tensor
        renamed[prefix + _substitute(name, rules)] = flat.contiguous()
    return renamed


def _substitute(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
