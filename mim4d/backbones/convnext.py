"""ConvNeXt and ConvNeXt-V2 (arXiv 2201.03545, 2301.00808) with a masked forward whose cost follows the visible share.

The visible patches are a batch of small images, [P, k, k, C] with k x k sites a patch, from the stem to the last block.
Only the depthwise convolution needs an image around them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GlobalResponseNormMlp
from timm.layers.grn import GlobalResponseNorm
from timm.models import generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ..hub.load import build_encoder
from ..hub.published import BASE_CFG, with_tags
from .encoder import PATCH, MIM4DEncoder, Patches

_ONEDNN = torch.backends.mkldnn.is_available()


class MIM4DConvNeXt(MIM4DEncoder, ConvNeXt):
    """timm's ConvNeXt; the arguments are those of :class:`timm.models.convnext.ConvNeXt`."""

    def parts(self) -> list[nn.Module]:
        stages: Any = self.stages
        return [self.stem, *stages]

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: Patches, groups: int) -> list[Tensor]:
        mixing = nn.GroupNorm, nn.BatchNorm2d
        if self.stem[0].kernel_size != self.stem[0].stride or isinstance(self.stem[1], mixing):
            raise ValueError("forward_masked needs a patch stem and norms of single sites: others mix patches")
        stages: Any = self.stages
        # Stem and downsampling have kernel = stride: a patch sees itself alone, and hidden pixels are never read.
        x = self.stem(tiles(images.permute(0, 2, 3, 1), PATCH)[patches].permute(0, 3, 1, 2))  # [P, C, 8, 8]
        features = []
        for stage in stages:
            x = stage.downsample(x).permute(0, 2, 3, 1)  # [P, k, k, C]
            for block in stage.blocks:
                if stage.grad_checkpointing:
                    x = torch.utils.checkpoint.checkpoint(
                        masked_block, block, x, patches, visible.shape, use_reentrant=False
                    )
                else:
                    x = masked_block(block, x, patches, visible.shape)
            features.append(_images(x, patches, visible.shape))
            x = x.permute(0, 3, 1, 2)
        return features


def tiles(x: Tensor, side: int, border: int = 0) -> Tensor:
    """A view of images [N, H, W, C] as their tiles [N, H/side, W/side, side, side, C], less a border around each image.

    Args:
        x: [N, H + 2 border, W + 2 border, C].
        side: Of a tile.
        border: To leave out on all four sides.
    """
    inner = x[:, border : x.shape[1] - border, border : x.shape[2] - border]
    return inner.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def scatter(x: Tensor, patches: Patches, grid: tuple[int, ...], border: int = 0) -> Tensor:
    """Put patches into images of zeros.

    Args:
        x: [P, k, k, C].
        patches: Where they belong.
        grid: Images, and patches a column and a row: (N, h, w).
        border: Zeros around each image.

    Returns:
        [N, h k + 2 border, w k + 2 border, C].
    """
    (n, h, w), side = grid, x.shape[1]
    images = x.new_zeros(n, h * side + 2 * border, w * side + 2 * border, x.shape[-1])
    tiles(images, side, border)[patches] = x
    return images


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution of patches [P, k, k, C] among their visible neighbours; it keeps no whole image."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: tuple[int, ...], *patches: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *patches)
        ctx.grid = grid
        where = Patches(*patches)
        y = F.conv2d(_images(x, where, grid, weight.shape[-1] // 2), weight, bias, groups=len(weight))
        return tiles(y.permute(0, 2, 3, 1), x.shape[1])[where]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *patches = ctx.saved_tensors
        where, border, groups = Patches(*patches), weight.shape[-1] // 2, len(weight)
        of_x = of_weight = of_bias = None
        around = _images(grad, where, ctx.grid, border)
        if ctx.needs_input_grad[0]:
            of_x = F.conv2d(around, weight.to(grad.dtype).flip(2, 3), groups=groups)
            of_x = tiles(of_x.permute(0, 2, 3, 1), x.shape[1])[where].to(x.dtype)
        if ctx.needs_input_grad[1]:
            whole = _images(x.to(grad.dtype), where, ctx.grid, border)
            inner = around[:, :, border : around.shape[2] - border, border : around.shape[3] - border]
            of_weight = _gradient_of_weight(whole, inner, weight)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 1, 2), dtype=weight.dtype)
        return of_x, of_weight, of_bias, None, *(None for _ in patches)


def _images(x: Tensor, patches: Patches, grid: tuple[int, ...], border: int = 0) -> Tensor:
    """Patches [P, k, k, C] among zeros, as convolutions take images: [N, C, H, W], channels last."""
    return scatter(x, patches, grid, border).permute(0, 3, 1, 2)


def _gradient_of_weight(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient [C, 1, K, K] of a depthwise convolution's weight.

    Args:
        x: Its input with the border, [N, C, H + K - 1, W + K - 1].
        grad: The gradient of its output, [N, C, H, W].
        weight: [C, 1, K, K].
    """
    if x.device.type != "cpu":
        return conv2d_weight(x, weight.shape, grad, groups=len(weight)).to(weight.dtype)
    # oneDNN's own is slow: it computes 16 x 16 channels for each one. But the sum over sites is itself a depthwise
    # convolution, whose kernel is the output's gradient and whose channels are those of all images.
    image, kernel = (t.to(weight.dtype).permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1) for t in (x, grad))
    of_each = F.conv2d(image[None], kernel[:, None], groups=len(image))  # [1, N*C, K, K]
    return of_each.view(len(x), *weight.shape).sum(0)


def masked_block(block: ConvNeXtBlock, x: Tensor, patches: Patches, grid: tuple[int, ...]) -> Tensor:
    """One block on patches [P, k, k, C]."""
    y: Tensor = DepthwiseConv.apply(x, block.conv_dw.weight, block.conv_dw.bias, grid, *patches)
    y = block.norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if block.use_conv_mlp else block.norm(y)
    mlp: Any = block.mlp
    y = mlp.drop1(mlp.act(_pointwise(mlp.fc1, y)))
    if isinstance(mlp, GlobalResponseNormMlp):
        y = _response_norm(mlp.grn, y, patches.image, grid[0])
    y = mlp.drop2(_pointwise(mlp.fc2, y))
    if block.gamma is not None:
        y = y * block.gamma
    if not isinstance(block.drop_path, nn.Identity):  # it drops whole images
        y = y * block.drop_path(y.new_ones(grid[0]))[patches.image, None, None, None]
    return x + y


def _pointwise(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """A linear layer or a 1x1 convolution over the last dimension of patches [P, k, k, C]."""
    weight = layer.weight.flatten(1)
    if not (x.device.type == "cpu" and _ONEDNN and len(x)):
        return F.linear(x, weight, layer.bias)
    # oneDNN's 1x1 convolution can be twice as fast as BLAS's product; on one thread it takes 16 images or more.
    sites = x.flatten(0, 2)  # [M, C]
    filled = F.pad(sites, (0, 0, 0, -len(sites) % 16)) if len(sites) % 16 else sites
    y = F.conv2d(filled.view(16, -1, 1, x.shape[-1]).permute(0, 3, 1, 2), weight[:, :, None, None], layer.bias)
    return y.permute(0, 2, 3, 1).flatten(0, 2)[: len(sites)].view(*x.shape[:-1], -1)


def _response_norm(norm: GlobalResponseNorm, x: Tensor, image: Tensor, images: int) -> Tensor:
    """Global response normalisation (arXiv 2301.00808, section 3.3) over each image's visible sites.

    Args:
        norm: The layer.
        x: Patches [P, k, k, C].
        image: Which image each is of, [P].
        images: How many there are.
    """
    energy = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum((1, 2))  # [P, C]
    energy = energy.new_zeros(images, x.shape[-1]).index_add(0, image, energy)
    length = energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()  # the root has no gradient at 0
    scale = 1 + norm.weight * length / (length.mean(1, keepdim=True) + norm.eps)  # [N, C]
    return torch.addcmul(norm.bias.to(x.dtype), x, scale.to(x.dtype)[image, None, None])


_SIZES: dict[str, dict[str, Any]] = {
    "atto": dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True),
    "femto": dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True),
    "pico": dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True),
    "nano": dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True),
    "tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "large": dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
}

_V2: dict[str, Any] = dict(use_grn=True, ls_init_value=None)
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"mim4d_convnext_{name}": size for name, size in _SIZES.items()},
    **{f"mim4d_convnextv2_{name}": {**size, **_V2} for name, size in _SIZES.items() if name != "large"},
}

_CONFIG: dict[str, Any] = dict(BASE_CFG, first_conv="stem.0", classifier="head.fc")

default_cfgs = generate_default_cfgs(
    {name: config for model in _ARCHITECTURES for name, config in with_tags(model, _CONFIG).items()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    features = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build_encoder(MIM4DConvNeXt, variant, pretrained, _ARCHITECTURES[variant], feature_cfg=features, **kwargs)


@register_model
def mim4d_convnext_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """3.4 M parameters, widths 40 to 320."""
    return _create("mim4d_convnext_atto", pretrained, **kwargs)


@register_model
def mim4d_convnext_femto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """4.8 M parameters, widths 48 to 384."""
    return _create("mim4d_convnext_femto", pretrained, **kwargs)


@register_model
def mim4d_convnext_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """8.5 M parameters, widths 64 to 512."""
    return _create("mim4d_convnext_pico", pretrained, **kwargs)


@register_model
def mim4d_convnext_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """15.0 M parameters, widths 80 to 640."""
    return _create("mim4d_convnext_nano", pretrained, **kwargs)


@register_model
def mim4d_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """27.8 M parameters, widths 96 to 768."""
    return _create("mim4d_convnext_tiny", pretrained, **kwargs)


@register_model
def mim4d_convnext_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """49.5 M parameters, widths 96 to 768: the published setting's."""
    return _create("mim4d_convnext_small", pretrained, **kwargs)


@register_model
def mim4d_convnext_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """87.6 M parameters, widths 128 to 1024."""
    return _create("mim4d_convnext_base", pretrained, **kwargs)


@register_model
def mim4d_convnext_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """196.2 M parameters, widths 192 to 1536."""
    return _create("mim4d_convnext_large", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """3.4 M parameters, widths 40 to 320."""
    return _create("mim4d_convnextv2_atto", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_femto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """4.8 M parameters, widths 48 to 384."""
    return _create("mim4d_convnextv2_femto", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """8.6 M parameters, widths 64 to 512."""
    return _create("mim4d_convnextv2_pico", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """15.0 M parameters, widths 80 to 640."""
    return _create("mim4d_convnextv2_nano", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """27.9 M parameters, widths 96 to 768."""
    return _create("mim4d_convnextv2_tiny", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """49.5 M parameters, widths 96 to 768."""
    return _create("mim4d_convnextv2_small", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """87.7 M parameters, widths 128 to 1024."""
    return _create("mim4d_convnextv2_base", pretrained, **kwargs)
