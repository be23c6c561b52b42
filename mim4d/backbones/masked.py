"""The masked forward of any timm model: what is hidden contributes nothing to what is visible.

Models of our own families bring one that is faster (:meth:`mim4d.MIM4DEncoder.forward_masked`). Any other model runs as
it is, with its own modules, parameters and keys: a convolutional network on whole maps within
:class:`mim4d.backbones.sites.HiddenSites`, a ViT without the tokens of hidden patches. A model with an operation that
is not known to keep hidden sites out is refused by name.
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
    """Return the feature maps of the visible patches alone.

    Args:
        model: A timm model, plain (the maps of all that its ``feature_info`` lists) or made with ``features_only=True``
            (the maps of its ``out_indices``), or a :class:`mim4d.MIM4DEncoder` (the maps of its four stages).
        images: [N, 3, H, W], normalised as the model's ``pretrained_cfg`` says.
        visible: [N, H/p, W/p] bool, True where a patch is visible; p is the coarsest stride of the model, or a multiple
            of a ViT's patch size.
        num_visible: Visible patches per image, if every image has the same number. It is not checked, because reading
            the mask makes the host wait for the device. None: the mask is read.
        norm_group: Consecutive images that share the statistics of a BatchNorm in training mode, such as the V cameras
            of a frame. None: all N. A divisor of N.

    Returns:
        Maps [N, C_i, H/s_i, W/s_i] with exact zeros at hidden sites.

    Raises:
        NoMaskedForwardError: If the model has an operation that is not known here, naming it.
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
    """Return some of :func:`forward_masked`'s maps.

    Args:
        model: As there.
        images: As there.
        visible: As there.
        num_visible: As there.
        norm_group: As there.
        indices: Which maps; with them a ViT's go through its last norm, as those of DINO do. None: all, as they are.
    """
    if isinstance(model, MIM4DEncoder):
        maps = model.forward_masked(images, visible, num_visible=num_visible, norm_group=norm_group)
        return maps if indices is None else [maps[index] for index in indices]
    _check(images, visible, norm_group)
    try:
        if any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
            raise NoMaskedForwardError("gradient checkpointing, which runs blocks again unmasked: switch it off")
        inner = getattr(model, "model", model)  # FeatureGetterNet holds the model as it is
        if isinstance(inner, (VisionTransformer, Eva)):
            return _vit(model, inner, images, visible, num_visible, indices)
        if num_visible is None and bool(visible.all()):  # bit for bit what timm gives
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
        raise ValueError(f"visible: expected a bool mask [{n}, H/p, W/p], got {visible.dtype} {list(visible.shape)}")
    rows, columns = visible.shape[1:]
    if height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"visible: {rows} x {columns} patches do not tile images of {height} x {width} in squares")
    if norm_group is not None and (norm_group < 1 or n % norm_group):
        raise ValueError(f"norm_group: expected a divisor of the {n} images, got {norm_group}")


def dense_maps(model: Any, images: Tensor) -> list[Tensor]:
    """The dense maps of a model: of its ``out_indices``, or of all that its ``feature_info`` lists."""
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
    """Maps [N, C, H/s, W/s] at the patch stride, from the visible patches' tokens; cost follows their number."""
    if type(inner.patch_embed) is not PatchEmbed or inner.patch_embed.proj.kernel_size != inner.patch_embed.proj.stride:
        raise NoMaskedForwardError("a stem in which patches overlap")
    side = inner.patch_embed.proj.stride[0]
    height, width = (size // side for size in images.shape[-2:])
    if images.shape[-2] % side or images.shape[-1] % side or height % visible.shape[1] or width % visible.shape[2]:
        raise ValueError(
            f"visible: its patches of {images.shape[-2] / visible.shape[1]:g} px are no multiple of the model's, {side}"
        )
    fine = visible.repeat_interleave(height // visible.shape[1], 1).repeat_interleave(width // visible.shape[2], 2)
    tokens = fine.flatten(1)  # [N, L]
    ratio = tokens.shape[1] // visible[0].numel()
    if num_visible is not None:
        return _vit_maps(model, inner, images, tokens, num_visible * ratio, indices)
    # Images with as many visible tokens go together.
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
    """The same for images with ``count`` visible tokens each; tokens: [N, L] bool."""
    # A stable sort puts the visible tokens first and leaves them in order.
    kept = (~tokens).byte().argsort(dim=1, stable=True)[:, :count]  # [N, count]
    before = inner.patch_drop
    inner.patch_drop = _KeepTokens(kept, inner.num_prefix_tokens, with_indices=isinstance(inner, Eva))
    try:
        chosen, norm = (model.out_indices, model.norm) if inner is not model else (None, False)
        if indices is not None:
            chosen, norm = list(indices), True
        outputs = inner.forward_intermediates(
            images, indices=chosen, norm=norm, output_fmt="NLC", intermediates_only=True
        )
    finally:
        inner.patch_drop = before
    height, width = inner.patch_embed.dynamic_feat_size(images.shape[-2:])
    maps = []
    for output in outputs:  # [N, count, C]
        index = kept[..., None].expand(-1, -1, output.shape[-1])
        flat = output.new_zeros(len(images), height * width, output.shape[-1]).scatter(1, index, output)
        maps.append(flat.transpose(1, 2).unflatten(2, (height, width)).contiguous())  # [N, C, h, w]
    return maps


class _KeepTokens(nn.Module):
    """In the place of timm's patch dropout, which blocks and rotary positions already allow for."""

    def __init__(self, kept: Tensor, prefix: int, with_indices: bool) -> None:
        super().__init__()
        self.kept, self.prefix, self.with_indices = kept, prefix, with_indices

    def forward(self, x: Tensor) -> Any:
        """[N, prefix + L, C] -> [N, prefix + count, C], for an Eva with the indices."""
        kept = x[:, self.prefix :].gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, : self.prefix], kept], dim=1)
        return (x, self.kept) if self.with_indices else x


def _convolutional(model: nn.Module, images: Tensor, visible: Tensor, norm_group: int) -> list[Tensor]:
    context = HiddenSites(visible, norm_group)
    images = context.mark(images.clone(), (2, 3))
    with context:
        maps = dense_maps(model, images)
    for x in maps:
        if not isinstance(x, Tensor) or context.spatial(x) is None:
            raise NoMaskedForwardError(UNSEEN)
        if context.spatial(x) != (2, 3):
            raise NoMaskedForwardError("feature maps with channels last")
    return maps
