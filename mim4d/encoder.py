"""The image backbone: timm's ConvNeXt with one method more, the masked forward that pretraining needs."""

from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import GlobalResponseNormMlp
from timm.models import generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from .hub.load import build_encoder
from .hub.published import with_tags

PATCH = 32
"""Side of a mask patch in pixels: the stride of the last stage, so that a patch is whole sites at every stage."""


class MIM4DEncoder(ConvNeXt):
    """A ConvNeXt whose dense use *is* timm's: the same modules, parameters and keys, so weights move both ways.

    Create it by name, ``timm.create_model("mim4d_convnext_small")`` after ``import mim4d``; the arguments are those of
    :class:`timm.models.convnext.ConvNeXt`.
    """

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: str | Path, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
    ) -> "MIM4DEncoder":
        """An encoder from the Hub or from a folder, in evaluation mode.

        Args:
            repo_or_folder: ``org/name`` on the Hub; a run of ``mim4d-pretrain``; or a folder with ``config.json`` and
                ``model.safetensors``.
            revision: Branch, tag or commit on the Hub.
            token: For private repositories; None for the one of ``hf auth login``.
            kwargs: As for ``timm.create_model``: ``num_classes``, ``drop_path_rate``, ``cache_dir``, ...

        Raises:
            WeightsError: If there is nothing, or it is damaged, incomplete or of another architecture.
        """
        from .hub.pull import encoder_from_pretrained  # it makes models by their names, which this module registers

        return encoder_from_pretrained(repo_or_folder, revision=revision, token=token, **kwargs)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        tag: str | None = None,
        license: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Publish this encoder so that ``timm.create_model("hf-hub:ORG/NAME", pretrained=True)`` loads it anywhere.

        Weights go as safetensors, with a model card that says what is known of them: for those of a run,
        ``mim4d-hub push RUN`` knows more. The same weights again make no second commit.

        Args:
            repo: ``org/name``; made if it does not exist.
            private: Make it private. An existing public repository is refused then.
            revision: Branch, made if it does not exist; None for the default one.
            tag: Name for the commit.
            license: Of the weights, as the Hub names licences.
            token: With the right to write; None for the one of ``hf auth login``.

        Returns:
            The address of the commit that holds the weights.

        Raises:
            UserError: If it cannot be published; what was on the Hub stays as it was.
        """
        from .hub.push import push_encoder

        return push_encoder(self, repo, private=private, revision=revision, tag=tag, license=license, token=token)

    def forward_masked(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Features of the visible patches alone: what is hidden contributes nothing and receives nothing.

        The semantics are those of submanifold sparse convolution (SparK, arXiv 2301.03580, section 3.1): the sites of
        hidden patches are absent from every convolution and norm, at every stage. With everything visible this is the
        dense forward.

        Args:
            images: [N, 3, H, W], normalised as the model's ``pretrained_cfg`` says; H and W multiples of 32.
            visible: [N, H/32, W/32] bool, True where a patch is seen.

        Returns:
            The four stages' maps [N, C_i, H/s_i, W/s_i], s = 4, 8, 16, 32, with exact zeros at hidden sites.

        Raises:
            ValueError: If the shapes do not fit, or if the model's stem, dilation or norms make patches mix.
        """
        n, _, height, width = images.shape
        if visible.shape != (n, height // PATCH, width // PATCH) or height % PATCH or width % PATCH:
            raise ValueError(
                f"visible: expected [{n}, {height / PATCH:g}, {width / PATCH:g}] (images are {height} x {width}, a "
                f"patch is {PATCH} px), got {list(visible.shape)}"
            )
        stages: Any = self.stages
        strides = [stage["reduction"] for stage in self.feature_info]
        if strides != [4, 8, 16, PATCH] or self.stem[0].kernel_size != self.stem[0].stride:
            raise ValueError(
                f"forward_masked needs a patch stem and strides 4, 8, 16, 32 (here {strides}): others mix patches"
            )
        if isinstance(stages[0].blocks[0].mlp, GlobalResponseNormMlp):
            raise ValueError("forward_masked knows no global response norm (use_grn): it mixes all sites of an image")

        # 1. Stem and downsampling convolutions have kernel = stride: each site sees its own patch alone.
        x = self.stem(images.masked_fill(~_sites(visible, images)[:, None], 0))
        features = []
        for stage in stages:
            x = stage.downsample(x)
            # 2. Norms and biases left something at hidden sites: clear it, once a stage; blocks keep it clear.
            sites = _sites(visible, x)
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


def _sites(visible: Tensor, x: Tensor) -> Tensor:
    """The patch mask [N, h, w] at the resolution of a map [N, C, H, W]: [N, H, W] bool."""
    factor = x.shape[-1] // visible.shape[-1]
    return visible.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


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

_CONFIG: dict[str, Any] = dict(
    num_classes=0,
    input_size=(3, 256, 704),
    pool_size=(8, 22),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv="stem.0",
    classifier="head.fc",
    license="apache-2.0",
    paper_ids="arXiv:2403.08760",
    paper_name="MIM4D: Masked Modeling with Multi-View Video for Autonomous Driving Representation Learning",
)

default_cfgs = generate_default_cfgs(
    {name: config for size in _SIZES for name, config in with_tags(f"mim4d_convnext_{size}", _CONFIG).items()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    size = _SIZES[variant.removeprefix("mim4d_convnext_")]
    features = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build_encoder(MIM4DEncoder, variant, pretrained, size, feature_cfg=features, **kwargs)


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
