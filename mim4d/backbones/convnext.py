"""ConvNeXt and ConvNeXt-V2 (arXiv 2201.03545, 2301.00808) with a masked forward that computes visible patches only.

From the stem to the last block the visible patches are a batch of small images, [A, k, k, C] with k x k sites each.
Only the depthwise convolution needs their neighbours, so it places them in whole images.
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
    """timm's ConvNeXt with a masked forward; the arguments are those of :class:`timm.models.convnext.ConvNeXt`."""

    def parts(self) -> list[nn.Module]:
        stages: Any = self.stages
        return [self.stem, *stages]

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: Patches, groups: int) -> list[Tensor]:
        mixing = nn.GroupNorm, nn.BatchNorm2d
        if self.stem[0].kernel_size != self.stem[0].stride or isinstance(self.stem[1], mixing):
            raise ValueError(
                "forward_masked: expected a stem with kernel = stride and a norm of single sites: others mix patches"
            )
        stages: Any = self.stages
        # Kernel and stride of the stem and the downsampling are equal, so that no site depends on another patch and
        # hidden pixels are never read.
        visible_pixels = tiles(images.permute(0, 2, 3, 1), PATCH)[patches]  # [A, 32, 32, 3]
        x = self.stem(visible_pixels.permute(0, 3, 1, 2))  # [A, C, 8, 8]
        features = []
        for stage in stages:
            x = stage.downsample(x).permute(0, 2, 3, 1)  # [A, k, k, C]
            for block in stage.blocks:
                if stage.grad_checkpointing:
                    x = torch.utils.checkpoint.checkpoint(
                        masked_block, block, x, patches, visible.shape, use_reentrant=False
                    )
                else:
                    x = masked_block(block, x, patches, visible.shape)
            features.append(_to_images(x, patches, visible.shape))
            x = x.permute(0, 3, 1, 2)  # [A, C, k, k]
        return features


def tiles(x: Tensor, side: int, border: int = 0) -> Tensor:
    """Return a view of images as their tiles, without a border around each image.

    Args:
        x: [N, H + 2 border, W + 2 border, C].
        side: Side of a tile.
        border: Rows and columns to leave out on all four sides.

    Returns:
        [N, H/side, W/side, side, side, C], which shares the memory of x.

    >>> image = torch.arange(8).view(1, 2, 4, 1)
    >>> image[0, ..., 0], tiles(image, side=2)[0, 0, 1, ..., 0]
    (tensor([[0, 1, 2, 3],
            [4, 5, 6, 7]]), tensor([[2, 3],
            [6, 7]]))
    """
    inner = x[:, border : x.shape[1] - border, border : x.shape[2] - border]  # [N, H, W, C]
    return inner.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def scatter(x: Tensor, patches: Patches, grid: tuple[int, ...], border: int = 0) -> Tensor:
    """Place patches in images of zeros.

    Args:
        x: [A, k, k, C].
        patches: Positions of the patches.
        grid: (N, H/32, W/32): number of images, and patches per column and row of each.
        border: Rows and columns of zeros to add on all four sides of each image.

    Returns:
        [N, k H/32 + 2 border, k W/32 + 2 border, C].

    >>> patches = Patches(image=torch.tensor([0]), row=torch.tensor([0]), column=torch.tensor([1]))
    >>> scatter(torch.ones(1, 2, 2, 1), patches, grid=(1, 1, 2))[0, ..., 0]
    tensor([[0., 0., 1., 1.],
            [0., 0., 1., 1.]])
    """
    (n, rows, columns), k = grid, x.shape[1]
    images = x.new_zeros(n, rows * k + 2 * border, columns * k + 2 * border, x.shape[-1])
    tiles(images, k, border)[patches] = x
    return images


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution of patches [A, k, k, C] and their visible neighbours.

    Unlike autograd's own, it saves the patches and not the whole images for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: tuple[int, ...], *indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *indices)
        ctx.grid = grid
        patches = Patches(*indices)
        y = F.conv2d(_to_images(x, patches, grid, weight.shape[-1] // 2), weight, bias, groups=len(weight))
        return tiles(y.permute(0, 2, 3, 1), x.shape[1])[patches]  # [A, k, k, C]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *indices = ctx.saved_tensors
        patches, border, groups = Patches(*indices), weight.shape[-1] // 2, len(weight)
        grad_x = grad_weight = grad_bias = None
        padded_grad = _to_images(grad, patches, ctx.grid, border)  # [N, C, h + 2 border, w + 2 border]
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(padded_grad, weight.to(grad.dtype).flip(2, 3), groups=groups)  # [N, C, h, w]
            grad_x = tiles(grad_x.permute(0, 2, 3, 1), x.shape[1])[patches].to(x.dtype)  # [A, k, k, C]
        if ctx.needs_input_grad[1]:
            padded_x = _to_images(x.to(grad.dtype), patches, ctx.grid, border)  # [N, C, h + 2 border, w + 2 border]
            inner = padded_grad[:, :, border : padded_grad.shape[2] - border, border : padded_grad.shape[3] - border]
            grad_weight = _weight_gradient(padded_x, inner, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 1, 2), dtype=weight.dtype)
        return grad_x, grad_weight, grad_bias, None, *(None for _ in indices)


def _to_images(x: Tensor, patches: Patches, grid: tuple[int, ...], border: int = 0) -> Tensor:
    """Place patches [A, k, k, C] in images of zeros [N, C, h, w], channels last in memory."""
    return scatter(x, patches, grid, border).permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of a depthwise convolution by its weight.

    Args:
        x: Input of the convolution with its border, [N, C, h + kernel - 1, w + kernel - 1].
        grad: Gradient by the output, [N, C, h, w].
        weight: [C, 1, kernel, kernel].

    Returns:
        [C, 1, kernel, kernel].
    """
    if x.device.type != "cpu":
        return conv2d_weight(x, weight.shape, grad, groups=len(weight)).to(weight.dtype)
    # oneDNN's own function computes 16 x 16 channels for each one. But the sum over sites is a depthwise convolution,
    # too: its kernel is the gradient by the output, and its channels are the channels of all images.
    image, kernel = (t.to(weight.dtype).permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1) for t in (x, grad))
    per_image = F.conv2d(image[None], kernel[:, None], groups=len(image))  # [1, N*C, kernel, kernel]
    return per_image.view(len(x), *weight.shape).sum(0)


def masked_block(block: ConvNeXtBlock, x: Tensor, patches: Patches, grid: tuple[int, ...]) -> Tensor:
    """Run one of timm's blocks on visible patches.

    Args:
        block: The block.
        x: [A, k, k, C].
        patches: Positions of the patches.
        grid: (N, H/32, W/32).

    Returns:
        [A, k, k, C].
    """
    y: Tensor = DepthwiseConv.apply(x, block.conv_dw.weight, block.conv_dw.bias, grid, *patches)
    y = block.norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if block.use_conv_mlp else block.norm(y)
    mlp: Any = block.mlp
    y = mlp.drop1(mlp.act(_pointwise(mlp.fc1, y)))  # [A, k, k, 4 C]
    if isinstance(mlp, GlobalResponseNormMlp):
        y = _response_norm(mlp.grn, y, patches.image, grid[0])
    y = mlp.drop2(_pointwise(mlp.fc2, y))  # [A, k, k, C]
    if block.gamma is not None:
        y = y * block.gamma
    if not isinstance(block.drop_path, nn.Identity):  # stochastic depth drops whole images, not patches
        y = y * block.drop_path(y.new_ones(grid[0]))[patches.image, None, None, None]
    return x + y


def _pointwise(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a linear layer or a 1x1 convolution to the last axis of patches [A, k, k, C]."""
    weight = layer.weight.flatten(1)
    if not (x.device.type == "cpu" and _ONEDNN and len(x)):
        return F.linear(x, weight, layer.bias)
    # oneDNN's 1x1 convolution can be twice as fast as BLAS's matrix product; on one thread only with 16 or more images.
    sites = x.flatten(0, 2)  # [A*k*k, C]
    padded = F.pad(sites, (0, 0, 0, -len(sites) % 16)) if len(sites) % 16 else sites
    y = F.conv2d(padded.view(16, -1, 1, x.shape[-1]).permute(0, 3, 1, 2), weight[:, :, None, None], layer.bias)
    return y.permute(0, 2, 3, 1).flatten(0, 2)[: len(sites)].view(*x.shape[:-1], -1)


def _response_norm(norm: GlobalResponseNorm, x: Tensor, image: Tensor, images: int) -> Tensor:
    """Apply global response normalisation (arXiv 2301.00808, section 3.3) over the visible sites of each image.

    With γ, β and ε of the layer::

        G_c = sqrt(sum over sites of x_c²),    y_c = x_c + γ_c x_c G_c / (mean over c of G_c + ε) + β_c

    Args:
        norm: The layer.
        x: Patches [A, k, k, C].
        image: Image of each patch, [A].
        images: Number of images, N.
    """
    energy = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum((1, 2))  # [A, C]
    energy = energy.new_zeros(images, x.shape[-1]).index_add(0, image, energy)  # [N, C]
    length = energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()  # sqrt has an infinite gradient at 0
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
    """ConvNeXt-Atto: 3.4 M parameters, widths 40 to 320."""
    return _create("mim4d_convnext_atto", pretrained, **kwargs)


@register_model
def mim4d_convnext_femto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-Femto: 4.8 M parameters, widths 48 to 384."""
    return _create("mim4d_convnext_femto", pretrained, **kwargs)


@register_model
def mim4d_convnext_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-Pico: 8.5 M parameters, widths 64 to 512."""
    return _create("mim4d_convnext_pico", pretrained, **kwargs)


@register_model
def mim4d_convnext_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-Nano: 15.0 M parameters, widths 80 to 640."""
    return _create("mim4d_convnext_nano", pretrained, **kwargs)


@register_model
def mim4d_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T: 27.8 M parameters, widths 96 to 768."""
    return _create("mim4d_convnext_tiny", pretrained, **kwargs)


@register_model
def mim4d_convnext_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S of the published setting: 49.5 M parameters, widths 96 to 768."""
    return _create("mim4d_convnext_small", pretrained, **kwargs)


@register_model
def mim4d_convnext_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-B: 87.6 M parameters, widths 128 to 1024."""
    return _create("mim4d_convnext_base", pretrained, **kwargs)


@register_model
def mim4d_convnext_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L: 196.2 M parameters, widths 192 to 1536."""
    return _create("mim4d_convnext_large", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-Atto: 3.4 M parameters, widths 40 to 320."""
    return _create("mim4d_convnextv2_atto", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_femto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-Femto: 4.8 M parameters, widths 48 to 384."""
    return _create("mim4d_convnextv2_femto", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-Pico: 8.6 M parameters, widths 64 to 512."""
    return _create("mim4d_convnextv2_pico", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-Nano: 15.0 M parameters, widths 80 to 640."""
    return _create("mim4d_convnextv2_nano", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-T: 27.9 M parameters, widths 96 to 768."""
    return _create("mim4d_convnextv2_tiny", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-S: 49.5 M parameters, widths 96 to 768."""
    return _create("mim4d_convnextv2_small", pretrained, **kwargs)


@register_model
def mim4d_convnextv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-V2-B: 87.7 M parameters, widths 128 to 1024."""
    return _create("mim4d_convnextv2_base", pretrained, **kwargs)
