"""Conversion of parameter names between timm, OpenMMLab and the original ConvNeXt.

Names of a ConvNeXt:

==================================  =====================================  ==========================================
timm                                original, MIM4D and UniPAD releases    mmpretrain
==================================  =====================================  ==========================================
``stem.0``                          ``downsample_layers.0.0``              ``downsample_layers.0.0``
``stages.0.blocks.1.conv_dw``       ``stages.0.1.dwconv``                  ``stages.0.1.depthwise_conv``
``stages.0.blocks.1.mlp.fc1``       ``stages.0.1.pwconv1``                 ``stages.0.1.pointwise_conv1``
``head.norm``                       ``norm`` (releases: ``norm3``)         ``norm3``
==================================  =====================================  ==========================================

ResNets have the same names everywhere, with two differences that the names hide. Older checkpoints lack BatchNorm's
``num_batches_tracked``, which is then 0, as in torch. Bottlenecks with the stride in their first convolution
(``style="caffe"`` in mmdet) have tensors of the same names and shapes as timm's, whose stride is in the 3 x 3
convolution (``style="pytorch"``), but they compute another function.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor, nn

from ..errors import WeightsError

BACKBONES = ("img_backbone.", "backbone.")
"""Prefixes of the image backbone's names in an OpenMMLab checkpoint: of a BEV detector, of an image model."""
_FIRST_PARAMETERS = ("stem.0.weight", "downsample_layers.0.0.weight", "layer1.0.conv1.weight")
"""Names that a backbone has exactly once: timm's ConvNeXt, the original ConvNeXt, a ResNet."""
_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
"""What torch.compile, FSDP and activation checkpointing add to the names of a module that they wrap."""
CLASSIFIERS = ("head.fc.", "fc.")
"""Prefixes of a classifier's names in timm: of a ConvNeXt, of a ResNet."""
_NOT_IN_TIMM = re.compile(r"norm[012]\.|mtoken\d|mask_token")
"""Output norms of earlier stages and mask tokens, which a timm backbone does not have."""


def split_backbone(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Find the image backbone in a checkpoint.

    Prefixes are removed from its names: ``module.`` of DDP, ``model.`` of Lightning, ``img_backbone.`` of a detector,
    and several of them in any order.

    Args:
        tensors: By the checkpoint's names.
        source: Name of the checkpoint for error messages.

    Returns:
        The backbone by its names without the prefix, and the full names of all other tensors.

    Raises:
        WeightsError: If there are several backbones, and none is the image backbone of an OpenMMLab detector.
    """
    unwrapped = {name: _WRAPPERS.sub(r"\1", name) for name in tensors}
    prefix = _prefix(unwrapped.values(), source)
    in_detector = f".{prefix}".endswith(tuple(f".{backbone}" for backbone in BACKBONES))
    kept = {
        name: short.removeprefix(prefix)
        for name, short in unwrapped.items()
        if short.startswith(prefix) and not (in_detector and _NOT_IN_TIMM.match(short.removeprefix(prefix)))
    }
    return {short: tensors[name] for name, short in kept.items()}, [name for name in tensors if name not in kept]


def _prefix(names: Iterable[str], source: str) -> str:
    """Return the prefix of a backbone's names; empty if there is none, or no backbone."""
    names = list(names)
    found = {
        name.removesuffix(first)
        for name in names
        for first in _FIRST_PARAMETERS
        if name == first or name.endswith(f".{first}")
    }
    if "" in found:
        return ""
    for preferred in (*BACKBONES, ""):
        matches = [prefix for prefix in sorted(found) if f".{prefix}".endswith(f".{preferred}")]
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(matches)
            raise WeightsError(f"{source} holds several backbones, under {listed}: save one of them in its own file")
    return next((p for p in BACKBONES if any(name.startswith(p) for name in names)), "")


def to_timm_names(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Rename tensors to timm's names, and reshape those that differ in layout only.

    Args:
        tensors: By timm's names, the original ConvNeXt's, or those of an OpenMMLab checkpoint.
        model: timm's model, on any device.
        source: Name of the tensors for error messages.

    Raises:
        WeightsError: If the tensors cannot be of this model.
    """
    backbone, _ = split_backbone(tensors, source)
    if not isinstance(model, ConvNeXt):
        counters = [name for name in model.state_dict() if name.endswith(".num_batches_tracked")]
        return {**{name: torch.zeros((), dtype=torch.long) for name in counters}, **backbone}
    try:
        return checkpoint_filter_fn({_original_name(name): _as_linear(name, t) for name, t in backbone.items()}, model)
    except RuntimeError as error:  # a matrix that is not of the model's size
        raise WeightsError(f"{source} does not fit this encoder: {error}") from error
    except (KeyError, AttributeError) as error:
        raise WeightsError(f"{source} is not a ConvNeXt: {error} is not one of its parameters") from error


def _original_name(name: str) -> str:
    """Convert a name of mmpretrain to the original ConvNeXt's; other names stay."""
    name = name.replace(".depthwise_conv.", ".dwconv.").replace(".pointwise_conv", ".pwconv")
    return re.sub(r"^norm3\.", "norm.", name)


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """Convert a 1 x 1 convolution, which mmpretrain may have in place of a linear layer."""
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
    """Rename a timm backbone to OpenMMLab's names.

    Args:
        tensors: A ConvNeXt's or ResNet's, by timm's names; a classifier is dropped.
        prefix: Prefix of the new names, such as ``backbone.``.
        release: Whether to use the names of the MIM4D and UniPAD releases for ConvNeXt blocks, not mmpretrain's.
    """
    rules = (*_TO_OPENMMLAB, *(_TO_RELEASE if release else ()))
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(CLASSIFIERS):
            continue
        flat = tensor.flatten(1) if ".mlp.fc" in name and tensor.ndim == 4 else tensor
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[prefix + name] = flat.contiguous()
    return renamed
