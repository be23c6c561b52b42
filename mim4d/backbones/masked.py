"""The masked forward of any timm model: hidden patches have no influence on the features of visible ones.

mim4d's own families have a faster one, :meth:`mim4d.MIM4DEncoder.forward_masked`. Any other model runs unmodified: a
convolutional network on whole maps within :class:`mim4d.backbones.sites.HiddenSites`, a ViT without the tokens of
hidden patches. An operation that may mix hidden and visible patches raises an error that names it.
"""

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .encoder import MIM4DEncoder
from .sites import UNSEEN, HiddenSites, NoMaskedForwardError


def forward_masked(
    model: nn.Module,
    images: Tensor,
    visible: Tensor,
    *,
    num_visible: int | None = None,
    norm_group: int | None = None,
) -> list[Tensor]:
    """Compute the feature maps of the visible patches.

    Args:
        model: A timm model, whose result is the maps of all entries of ``feature_info``; one that was created with
            ``features_only=True`` (the maps of its ``out_indices``); or a :class:`mim4d.MIM4DEncoder` (the maps of its
            four stages).
        images: [N, 3, H, W], normalised as the model's ``pretrained_cfg`` says.
        visible: [N, H/patch, W/patch] bool, True where a patch is visible. The side of a patch is the coarsest stride
            of the model, or a multiple of a ViT's patch size.
        num_visible: Visible patches per image, if every image has the same number. It must be right: it is not checked,
            because reading the mask makes the host wait for the device. None: the mask is read.
        norm_group: Number of consecutive images that share the statistics of a BatchNorm in training mode, such as the
            V cameras of a frame; a divisor of N. None: all images share them.

    Returns:
        Maps [N, C_i, H/s_i, W/s_i] with exact zeros at hidden sites.

    Raises:
        NoMaskedForwardError: If the model has an operation that may mix hidden and visible patches, naming it.
        ValueError: If the shapes do not fit, or the mask is not bool.
    """
    return masked_maps(model, images, visible, num_visible=num_visible, norm_group=norm_group)


def masked_maps(
    model: nn.Module,
    images: Tensor,
    visible: Tensor,
    *,
    num_visible: int | None = None,
    norm_group: int | None = None,
    indices: tuple[int, ...] | None = None,
) -> list[Tensor]:
    """Compute some of the maps of :func:`forward_masked`.

    Args:
        model: As for :func:`forward_masked`, like the other arguments that are not described here.
        images: [N, 3, H, W].
        visible: [N, H/patch, W/patch] bool.
        num_visible: Visible patches per image.
        norm_group: Number of consecutive images that share BatchNorm statistics.
        indices: Indices of the maps to return. With them the maps of a ViT pass through its final norm, as those of
            DINO do. None: all maps, without that norm.
    """
    if isinstance(model, MIM4DEncoder):
        maps = model.forward_masked(images, visible, num_visible=num_visible, norm_group=norm_group)
        return maps if indices is None else [maps[index] for index in indices]
    _check(images, visible, norm_group)
    try:
        inner = getattr(model, "model", model)  # timm's FeatureGetterNet wraps the unmodified model
        if isinstance(inner, (VisionTransformer, Eva)):
            return _vit(model, inner, images, visible, num_visible, indices)
        if any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
            raise NoMaskedForwardError("gradient checkpointing, which runs blocks again unmasked: switch it off")
        if num_visible is None and bool(visible.all()):  # bit for bit the result of timm
            maps = dense_maps(model, images)
        else:
            maps = _convolutional(model, images, visible, norm_group or len(images))
    except NoMaskedForwardError as error:
        name = type(getattr(model, "model", model)).__name__
        raise NoMaskedForwardError(f"{name} has no masked forward, because of {error}") from None
    return maps if indices is None else [maps[index] for index in indices]


def _check(images: Tensor, visible: Tensor, norm_group: int | None) -> None:
    n, _, height, width = images.shape
    if visible.dtype != torch.bool or visible.ndim != 3 or len(visible) != n:
        got = f"{visible.dtype} {list(visible.shape)}"
        raise ValueError(f"visible: expected a bool mask [{n}, H/patch, W/patch], got {got}")
    rows, columns = visible.shape[1:]
    if height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"visible: {rows} x {columns} patches do not tile images of {height} x {width} in squares")
    if norm_group is not None and (norm_group < 1 or n % norm_group):
        raise ValueError(f"norm_group: expected a divisor of the {n} images, got {norm_group}")


def dense_maps(model: Any, images: Tensor) -> list[Tensor]:
    """Compute the dense maps of a model: those of its ``out_indices``, or of all entries of its ``feature_info``."""
    if not hasattr(model, "forward_features"):  # timm's wrappers of features_only
        maps = model(images)
        return list(maps.values() if isinstance(maps, dict) else maps)
    if hasattr(model, "forward_intermediates"):
        return list(model.forward_intermediates(images, intermediates_only=True))
    caught: dict[str, Tensor] = {}
    names = [stage["module"] for stage in model.feature_info]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: caught.update({name: output}))
        for name in names
    ]
    try:
        model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [caught[name] for name in names]


def _vit(
    model: nn.Module,
    inner: Any,
    images: Tensor,
    visible: Tensor,
    num_visible: int | None,
    indices: tuple[int, ...] | None,
) -> list[Tensor]:
    """Compute maps [N, C, h, w] of a ViT from the tokens of visible patches only."""
    if type(inner.patch_embed) is not PatchEmbed or inner.patch_embed.proj.kernel_size != inner.patch_embed.proj.stride:
        raise NoMaskedForwardError("a stem in which patches overlap")
    side = inner.patch_embed.proj.stride[0]
    height, width = (size // side for size in images.shape[-2:])
    if images.shape[-2] % side or images.shape[-1] % side or height % visible.shape[1] or width % visible.shape[2]:
        raise ValueError(
            f"visible: expected patches of a multiple of the model's {side} px, got "
            f"{images.shape[-2] / visible.shape[1]:g} px"
        )
    fine = visible.repeat_interleave(height // visible.shape[1], 1).repeat_interleave(width // visible.shape[2], 2)
    tokens = fine.flatten(1)  # [N, h*w]
    ratio = tokens.shape[1] // visible[0].numel()  # tokens per mask patch
    if num_visible is not None:
        return _vit_maps(model, inner, images, tokens, num_visible * ratio, indices)
    # Images with the same number of visible tokens are computed together.
    counts = tokens.sum(1)
    maps: list[Tensor] = []
    for count in counts.unique().tolist():
        chosen = (counts == count).nonzero().flatten()
        part = _vit_maps(model, inner, images[chosen], tokens[chosen], count, indices)
        maps = maps or [x.new_zeros(len(images), *x.shape[1:]) for x in part]
        maps = [x.index_copy(0, chosen, y) for x, y in zip(maps, part, strict=True)]
    return maps


def _vit_maps(
    model: Any, inner: Any, images: Tensor, tokens: Tensor, count: int, indices: tuple[int, ...] | None
) -> list[Tensor]:
    """Compute the maps [N, C, h, w] of images with ``count`` visible tokens each; tokens: [N, h*w] bool."""
    # A stable sort puts the visible tokens first and keeps their order.
    kept = (~tokens).byte().argsort(dim=1, stable=True)[:, :count]  # [N, count]
    patch_drop = inner.patch_drop
    inner.patch_drop = _KeepTokens(kept, inner.num_prefix_tokens, with_indices=isinstance(inner, Eva))
    try:
        chosen, norm = (model.out_indices, model.norm) if inner is not model else (None, False)
        if indices is not None:
            chosen, norm = list(indices), True
        outputs = inner.forward_intermediates(
            images, indices=chosen, norm=norm, output_fmt="NLC", intermediates_only=True
        )
    finally:
        inner.patch_drop = patch_drop
    height, width = inner.patch_embed.dynamic_feat_size(images.shape[-2:])
    maps = []
    for output in outputs:  # [N, count, C]
        index = kept[..., None].expand(-1, -1, output.shape[-1])
        flat = output.new_zeros(len(images), height * width, output.shape[-1]).scatter(1, index, output)
        maps.append(flat.transpose(1, 2).unflatten(2, (height, width)).contiguous())  # [N, C, h, w]
    return maps


class _KeepTokens(nn.Module):
    """Selection of the visible tokens, in the place of timm's patch dropout, which rotary embeddings support, too."""

    def __init__(self, kept: Tensor, prefix: int, with_indices: bool) -> None:
        super().__init__()
        self.kept, self.prefix, self.with_indices = kept, prefix, with_indices

    def forward(self, x: Tensor) -> Any:
        """Select tokens: [N, prefix + h*w, C] to [N, prefix + count, C], with their indices for an Eva."""
        kept = x[:, self.prefix :].gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, : self.prefix], kept], dim=1)
        return (x, self.kept) if self.with_indices else x


def _convolutional(model: nn.Module, images: Tensor, visible: Tensor, norm_group: int) -> list[Tensor]:
    """Compute the maps of a convolutional network [N, C_i, H/s_i, W/s_i]."""
    context = HiddenSites(visible, norm_group)
    # Channels last, which every map inherits, makes a convolutional network about twice as fast on a CPU.
    images = images.clone(memory_format=torch.channels_last)
    images = context.filled(context.mark(images, (2, 3)))
    with context:
        maps = dense_maps(model, images)
    for x in maps:
        if not isinstance(x, Tensor) or context.spatial(x) is None:
            raise NoMaskedForwardError(UNSEEN)
        if context.spatial(x) != (2, 3):
            raise NoMaskedForwardError("feature maps with channels last")
    return [context.zeroed(x) for x in maps]
