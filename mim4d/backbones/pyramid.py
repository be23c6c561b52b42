"""Properties of any timm backbone that pretraining and BEV models need: its maps, its patches, its parts."""

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
"""Most maps in a pyramid; a backbone with more gives its coarsest ones."""


class Pyramid(NamedTuple):
    """The maps of a backbone: the deepest one of each stride, coarsest last. A ViT has one."""

    indices: tuple[int, ...]
    """Indices of the maps among those that the model returns."""
    strides: tuple[int, ...]
    """Strides s_i, pixels."""
    channels: tuple[int, ...]
    """Channels C_i."""


def pyramid_of(model: Any) -> Pyramid:
    """Find the maps of a timm model's pyramid.

    Args:
        model: A timm model, plain or created with ``features_only=True``, or a :class:`mim4d.MIM4DEncoder`.
    """
    info = model.feature_info
    stages = [dict(stage) for stage in (info if isinstance(info, list) else info.get_dicts())]
    if isinstance(model, MIM4DEncoder):
        stages = stages[-LEVELS:]  # the maps of its masked forward
    deepest = {stage["reduction"]: index for index, stage in enumerate(stages)}  # by stride, the last one
    chosen = sorted(deepest.items())[-LEVELS:]
    return Pyramid(
        tuple(index for _, index in chosen),
        tuple(stride for stride, _ in chosen),
        tuple(stages[index]["num_chs"] for _, index in chosen),
    )


def patch_of(model: Any) -> int:
    """Return the side of a mask patch in pixels: the coarsest stride, for a ViT its multiple that is nearest to 32."""
    if isinstance(model, MIM4DEncoder):
        return PATCH
    stride = pyramid_of(model).strides[-1]
    inner = getattr(model, "model", model)
    return stride * max(1, round(PATCH / stride)) if isinstance(inner, (VisionTransformer, Eva)) else stride


def any_size(name: str) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` with which a model accepts images of any size.

    The position embeddings of a ViT keep timm's keys and shapes: they are resampled in each forward pass.
    """
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    takes = "dynamic_img_size" in inspect.signature(type(model).__init__).parameters
    return {"dynamic_img_size": True} if takes else {}


def make_backbone(name: str, *, drop_path: float = 0.0) -> nn.Module:
    """Create a timm model with random weights, without its classifier, for images of any size.

    Args:
        name: Name of a model in timm, mim4d's among them.
        drop_path: Rate of stochastic depth; ignored for a model without it.
    """
    arguments = any_size(name)
    try:
        model: Any = timm.create_model(name, num_classes=0, drop_path_rate=drop_path, **arguments)
    except TypeError:  # the model has no stochastic depth
        model = timm.create_model(name, num_classes=0, **arguments)
    if not isinstance(model, MIM4DEncoder):  # these go into the config.json of an exported encoder
        size = {"img_size": list(model.patch_embed.img_size)} if arguments else {}
        model.model_args = {**size, **arguments}
    return model


class Part(NamedTuple):
    """Parameters that are frozen together, and their modules."""

    parameters: list[nn.Parameter]
    modules: list[nn.Module]

    def freeze(self) -> None:
        """Exclude the parameters from training."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def hold(self) -> None:
        """Set the modules to evaluation mode."""
        for module in self.modules:
            module.eval()


def parts_of(model: Any) -> list[Part]:
    """Return the parts that can be frozen, from the front: the stem, then the stages (blocks of a ViT)."""
    if isinstance(model, MIM4DEncoder):
        return [Part(list(part.parameters()), list(part.modules())) for part in model.parts()]
    part_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    parts = [Part([], []) for _ in set(part_of.values())]
    for name, parameter in model.named_parameters():
        parts[part_of[name]].parameters.append(parameter)
    for path, module in model.named_modules():
        owners = {part_of[f"{path}.{name}".removeprefix(".")] for name, _ in module.named_parameters()}
        if len(owners) == 1:  # the whole module, with its stochastic depth, is of one part
            parts[owners.pop()].modules.extend(module.modules())
    return parts


def trained_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters that the maps of a masked forward depend on, which excludes a head.

    A masked forward on the meta device finds them without computing anything.

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
