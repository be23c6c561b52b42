"""A backbone as pretraining and BEV models see it: its name in timm, the maps that it gives, the parts that train."""

import copy
import inspect
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .encoder import PATCH, MIM4DEncoder
from .masked import masked_maps

LEVELS = 4
"""Maps that are used at most, the coarsest ones."""


class Pyramid(NamedTuple):
    """The deepest map of each stride, coarsest last; a ViT has one."""

    indices: tuple[int, ...]
    """Of those that the model gives."""
    strides: tuple[int, ...]
    """Pixels per site."""
    channels: tuple[int, ...]


def pyramid_of(model: Any) -> Pyramid:
    """Return which of a timm model's maps make its pyramid.

    Args:
        model: Plain or made with ``features_only=True``, or a :class:`mim4d.MIM4DEncoder`.
    """
    info = model.feature_info
    stages = [dict(stage) for stage in (info if isinstance(info, list) else info.get_dicts())]
    if isinstance(model, MIM4DEncoder):
        stages = stages[-LEVELS:]  # what its masked forward gives
    deepest = {stage["reduction"]: index for index, stage in enumerate(stages)}  # by stride, the last one
    chosen = sorted(deepest.items())[-LEVELS:]
    return Pyramid(
        tuple(index for _, index in chosen),
        tuple(stride for stride, _ in chosen),
        tuple(stages[index]["num_chs"] for _, index in chosen),
    )


def patch_of(model: Any) -> int:
    """Side of a mask patch in pixels: the coarsest stride, for a ViT the multiple of its patches nearest to 32."""
    if isinstance(model, MIM4DEncoder):
        return PATCH
    stride = pyramid_of(model).strides[-1]
    inner = getattr(model, "model", model)
    return stride * max(1, round(PATCH / stride)) if isinstance(inner, (VisionTransformer, Eva)) else stride


def any_size(name: str) -> dict[str, Any]:
    """Return the arguments with which a timm model takes images of any size.

    A ViT's position embeddings stay as they are and are resampled in each forward, so that keys and shapes are timm's.
    """
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    takes = "dynamic_img_size" in inspect.signature(type(model).__init__).parameters
    return {"dynamic_img_size": True} if takes else {}


def make_backbone(name: str, *, drop_path: float = 0.0) -> nn.Module:
    """Make a timm model with random weights, without its classifier, for images of any size.

    Args:
        name: timm's or ours.
        drop_path: Stochastic depth rate, where the model has it.
    """
    arguments = any_size(name)
    try:
        model: Any = timm.create_model(name, num_classes=0, drop_path_rate=drop_path, **arguments)
    except TypeError:  # it has no stochastic depth
        model = timm.create_model(name, num_classes=0, **arguments)
    if not isinstance(model, MIM4DEncoder):  # what an exported encoder's config.json has to say
        size = {"img_size": list(model.patch_embed.img_size)} if arguments else {}
        model.model_args = {**size, **arguments}
    return model


class Part(NamedTuple):
    """Parameters that are frozen together, and the modules that they belong to."""

    parameters: list[nn.Parameter]
    modules: list[nn.Module]

    def freeze(self) -> None:
        """Train the parameters no further."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def hold(self) -> None:
        """Put the modules into evaluation mode."""
        for module in self.modules:
            module.eval()


def parts_of(model: Any) -> list[Part]:
    """Return what can be frozen, from the front: the stem, then stages (ViT: blocks), as timm groups them."""
    if isinstance(model, MIM4DEncoder):
        return [Part(list(part.parameters()), list(part.modules())) for part in model.parts()]
    parameters = dict(model.named_parameters())
    groups = group_parameters(model, model.group_matcher(coarse=True))
    parts = []
    for _, names in sorted(groups.items()):
        owners = {name.rpartition(".")[0] for name in names} - {""}
        parts.append(Part([parameters[name] for name in names], [model.get_submodule(name) for name in sorted(owners)]))
    return parts


def trained_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that a masked forward's maps depend on: not those of a head.

    It runs a masked forward on the meta device, which costs no compute.

    Raises:
        NoMaskedForwardError: If the model has no masked forward.
    """
    if isinstance(model, MIM4DEncoder):
        parts = {id(parameter) for part in parts_of(model) for parameter in part.parameters}
        return {name for name, parameter in model.named_parameters() if id(parameter) in parts}
    meta: Any = copy.deepcopy(model).to("meta").train()
    side, pyramid = patch_of(meta), pyramid_of(meta)
    images = torch.zeros(2, 3, 4 * side, 4 * side, device="meta")
    visible = torch.ones(2, 4, 4, dtype=torch.bool, device="meta")
    maps = masked_maps(meta, images, visible, num_visible=8, indices=pyramid.indices)
    torch.stack([x.float().sum() for x in maps]).sum().backward()
    return {name for name, parameter in meta.named_parameters() if parameter.grad is not None}
