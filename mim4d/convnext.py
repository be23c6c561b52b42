"""ConvNeXt (arXiv 2201.03545) with a masked forward."""

from typing import Any

import torch
from timm.layers import GlobalResponseNormMlp
from timm.models import generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from .encoder import CONFIG, MIM4DEncoder, sites_of
from .hub.load import build_encoder
from .hub.published import with_tags


class MIM4DConvNeXt(MIM4DEncoder, ConvNeXt):
    """timm's ConvNeXt; the arguments are those of :class:`timm.models.convnext.ConvNeXt`."""

    def parts(self) -> list[nn.Module]:
        stages: Any = self.stages
        return [self.stem, *stages]

    def _forward_masked(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        stages: Any = self.stages
        if self.stem[0].kernel_size != self.stem[0].stride:
            raise ValueError("forward_masked needs a patch stem: others mix patches")
        if isinstance(stages[0].blocks[0].mlp, GlobalResponseNormMlp):
            raise ValueError("forward_masked knows no global response norm (use_grn): it mixes all sites of an image")

        # 1. Stem and downsampling convolutions have kernel = stride: each site sees its own patch alone.
        x = self.stem(images.masked_fill(~sites_of(visible, images)[:, None], 0))
        features = []
        for stage in stages:
            x = stage.downsample(x)
            # 2. Norms and biases left something at hidden sites: clear it, once a stage; blocks keep it clear.
            sites = sites_of(visible, x)
            x = x.masked_fill(~sites[:, None], 0)
            index = sites.flatten().nonzero().squeeze(1)
            # 3. Only the 7x7 depthwise convolution looks at neighbours, and hidden neighbours are zero.
            for block in stage.blocks:
                if stage.grad_checkpointing:
                    x = torch.utils.checkpoint.checkpoint(_masked_block, block, x, index, use_reentrant=False)
                else:
                    x = _masked_block(block, x, index)
            features.append(x)
        return features


def _masked_block(block: ConvNeXtBlock, x: Tensor, index: Tensor) -> Tensor:
    """One block on [N, C, H, W] whose norm and MLP run on the visible sites ``index`` (into N*H*W) alone."""
    if not len(index):  # 1x1 convolutions refuse an empty image
        return x
    n, c, h, w = x.shape
    y = block.conv_dw(x).permute(0, 2, 3, 1).reshape(-1, c)  # [N*H*W, C]
    packed = y.index_select(0, index)  # [M, C]
    if block.use_conv_mlp:  # 1x1 convolutions: give them the sites as one tall image
        packed = block.mlp(block.norm(packed.mT[None, :, :, None])).squeeze(3).squeeze(0).mT
    else:
        packed = block.mlp(block.norm(packed))
    if block.gamma is not None:
        packed = packed * block.gamma
    y = torch.zeros_like(y, dtype=packed.dtype).index_copy(0, index, packed)
    return x + block.drop_path(y.view(n, h, w, c).permute(0, 3, 1, 2))


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

_CONFIG: dict[str, Any] = dict(CONFIG, first_conv="stem.0", classifier="head.fc")

default_cfgs = generate_default_cfgs(
    {name: config for size in _SIZES for name, config in with_tags(f"mim4d_convnext_{size}", _CONFIG).items()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    size = _SIZES[variant.removeprefix("mim4d_convnext_")]
    features = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build_encoder(MIM4DConvNeXt, variant, pretrained, size, feature_cfg=features, **kwargs)


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
    """14.9 M parameters, widths 80 to 640."""
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
