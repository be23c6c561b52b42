"""ResNet (arXiv 1512.03385) with a masked forward."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ..hub.load import build_encoder
from ..hub.published import BASE_CFG, with_tags
from .encoder import PATCH, MIM4DEncoder, Patches, sites_of


class MIM4DResNet(MIM4DEncoder, ResNet):
    """timm's ResNet with a masked forward; the arguments are those of :class:`timm.models.resnet.ResNet`.

    The 3x3 convolutions are computed at all sites, the norms and 1x1 convolutions only at visible ones.

    In training mode the masked forward computes the statistics of BatchNorm from visible sites, separately for each
    group of images (see ``norm_group`` of :meth:`forward_masked`). Once per forward pass, also with gradient
    checkpointing, the running statistics move by the momentum of the norm towards the mean over groups of the means and
    unbiased variances. A group with a single site has no variance: it is normalised by the running statistics, which
    then stay unchanged.
    """

    def parts(self) -> list[nn.Module]:
        return [nn.ModuleList([self.conv1, self.bn1]), *self._stages()]

    def _stages(self) -> list[Any]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: Patches, groups: int) -> list[Tensor]:
        if not _is_plain(self):
            raise ValueError(
                "forward_masked: expected a plain ResNet with BatchNorm, without options that may mix patches (deep "
                "stem, anti-aliasing, attention, average-pooled shortcuts, ...)"
            )
        stem_sites, *stage_sites = (
            _Sites.of(patches, visible.shape, PATCH // stride, groups) for stride in (2, 4, 8, 16, 32)
        )
        norms, statistics = [self.bn1], []

        # 1. Stem. Hidden pixels are zero for the convolution; for the max pooling hidden sites are -infinity, which is
        # also what it pads with.
        x = self.conv1(images.masked_fill(~sites_of(visible, images)[:, None], 0))  # [N, C, H/2, W/2]
        x, norm_statistics = _norm(self.bn1, stem_sites.pack(x), groups)  # [A*16*16, C]
        statistics.append(norm_statistics)
        x = self.act1(x)
        before = stage_sites[0]
        x = before.pack(self.maxpool(stem_sites.unpack(x, hidden=-torch.inf)))  # [A*8*8, C]
        # 2. Stages. Visible sites stay packed, except in 3x3 convolutions, which need the neighbours of a site.
        features = []
        for stage, after in zip(self._stages(), stage_sites, strict=True):
            for block in stage:
                if self.grad_checkpointing:
                    x, block_statistics = torch.utils.checkpoint.checkpoint(
                        _masked_block, block, x, before, after, use_reentrant=False
                    )
                else:
                    x, block_statistics = _masked_block(block, x, before, after)  # [A*k*k, C_i]
                norms += _norms_in_order(block)
                statistics += block_statistics
                before = after
            features.append(after.unpack(x))
        # 3. Running statistics. Not updated within the blocks, because gradient checkpointing runs those twice.
        for norm, norm_statistics in zip(norms, statistics, strict=True):
            _update_running_statistics(norm, norm_statistics)
        return features


def _is_plain(model: MIM4DResNet) -> bool:
    """Return whether a model has only the modules that the masked forward implements."""
    blocks = [block for stage in model._stages() for block in stage]
    norms = [module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("bn")]
    return (
        isinstance(model.conv1, nn.Conv2d)  # a deep stem is a Sequential
        and isinstance(model.maxpool, nn.MaxPool2d)
        and all(type(norm) is nn.BatchNorm2d for norm in norms)
        and all(norm.affine and norm.track_running_stats and norm.momentum is not None for norm in norms)
        and all(block.se is None and type(block.aa) is type(block.drop_block) is nn.Identity for block in blocks)
        and all(block.downsample is None or isinstance(block.downsample[0], nn.Conv2d) for block in blocks)
    )


@dataclass(frozen=True)
class _Sites:
    """Indices of the visible sites of maps [N, C, h, w], to convert between maps and packed sites [A*k*k, C].

    The sites of the groups of images are interleaved: the first site of each group, then the second of each, ... So
    packed sites are also [A*k*k / groups, groups * C] without a copy, in which BatchNorm sees groups * C channels.
    """

    index: Tensor
    """[A*k*k] int64, into N*h*w."""
    shape: tuple[int, ...]
    """(N, h, w)."""
    groups: int
    """Number of groups of images, each with the same number of visible sites."""

    @classmethod
    def of(cls, patches: Patches, grid: tuple[int, ...], k: int, groups: int) -> "_Sites":
        """Find the k x k sites of each visible patch, in images of a grid (N, H/32, W/32) of patches."""
        n, rows, columns = grid
        offset = torch.arange(k, device=patches.image.device)
        row = ((patches.image * rows + patches.row) * k)[:, None] + offset  # [A, k], counted through all images
        column = (patches.column * k)[:, None] + offset  # [A, k]
        index = row[:, :, None] * (columns * k) + column[:, None]  # [A, k, k]
        return cls(index.view(groups, -1).T.flatten(), (n, rows * k, columns * k), groups)

    def pack(self, x: Tensor) -> Tensor:
        """Select the visible sites [A*k*k, C] of maps [N, C, h, w]."""
        return x.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.index)

    def unpack(self, packed: Tensor, hidden: float = 0.0) -> Tensor:
        """Place packed sites [A*k*k, C] in maps [N, C, h, w] that are ``hidden`` elsewhere."""
        n, height, width = self.shape
        sites = packed.new_full((n * height * width, packed.shape[1]), hidden).index_copy(0, self.index, packed)
        return sites.view(n, height, width, packed.shape[1]).permute(0, 3, 1, 2)

    def of_images(self, values: Tensor) -> Tensor:
        """Repeat one value per image [N, 1] as one value per site [A*k*k, 1]."""
        return values.index_select(0, self.index // (self.shape[1] * self.shape[2]))


_Statistics = tuple[Tensor, Tensor] | None
"""Mean and unbiased variance [C] of a norm's input, averaged over groups; None if it used its running statistics."""


def _masked_block(block: Any, x: Tensor, before: _Sites, after: _Sites) -> tuple[Tensor, list[_Statistics]]:
    """Run one of timm's basic or bottleneck blocks on packed sites.

    Args:
        block: The block.
        x: [A*k*k, C].
        before: Sites of x.
        after: Sites of the result; they are others if the block has a stride.

    Returns:
        Packed sites [A*k'*k', C'], and the statistics of the norms, in the order of :func:`_norms_in_order`.
    """
    statistics: list[_Statistics] = []

    def norm(layer: Any, y: Tensor) -> Tensor:
        y, norm_statistics = _norm(layer, y, after.groups)
        statistics.append(norm_statistics)
        return y

    if isinstance(block, Bottleneck):
        y = block.act1(norm(block.bn1, _convolve(block.conv1, x, before, before)))
        y = block.act2(norm(block.bn2, _convolve(block.conv2, y, before, after)))
        y = norm(block.bn3, _convolve(block.conv3, y, after, after))
        activation = block.act3
    else:
        y = block.act1(norm(block.bn1, _convolve(block.conv1, x, before, after)))
        y = norm(block.bn2, _convolve(block.conv2, y, after, after))
        activation = block.act2
    if block.drop_path is not None:  # stochastic depth drops whole images, as in the dense forward
        y = y * after.of_images(block.drop_path(y.new_ones(after.shape[0], 1)))
    if block.downsample is not None:
        x = norm(block.downsample[1], _convolve(block.downsample[0], x, before, after))
    return activation(x + y), statistics


def _norms_in_order(block: Any) -> list[Any]:
    """Return a block's norms in the order in which :func:`_masked_block` runs them."""
    norms = [block.bn1, block.bn2]
    if isinstance(block, Bottleneck):
        norms.append(block.bn3)
    if block.downsample is not None:
        norms.append(block.downsample[1])
    return norms


def _convolve(convolution: nn.Conv2d, x: Tensor, before: _Sites, after: _Sites) -> Tensor:
    """Convolve packed sites [A*k*k, C] to packed sites [A*k'*k', C'], with zeros for hidden neighbours."""
    if convolution.kernel_size != (1, 1):
        return after.pack(convolution(before.unpack(x)))
    if before is not after:
        x = after.pack(before.unpack(x)[..., :: convolution.stride[0], :: convolution.stride[1]])
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _norm(norm: Any, x: Tensor, groups: int) -> tuple[Tensor, _Statistics]:
    """Apply a BatchNorm2d to packed sites [A*k*k, C], separately for each group in training; its buffers do not change.

    Returns:
        The normalised sites [A*k*k, C], and the statistics that were used.
    """
    sites, channels = len(x) // groups, x.shape[1]  # sites per group
    if not norm.training or sites < 2:
        y = _batch_norm(x, norm, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return y, None
    # With a momentum of 1 these buffers receive the statistics of each group.
    mean, variance = (norm.running_mean.new_zeros(groups * channels) for _ in range(2))
    weight, bias = norm.weight.repeat(groups), norm.bias.repeat(groups)
    y = _batch_norm(x.view(sites, -1), norm, mean, variance, weight, bias, training=True)
    return y.view(x.shape), (mean.view(groups, -1).mean(0), variance.view(groups, -1).mean(0))


def _batch_norm(
    x: Tensor, norm: Any, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, training: bool = False
) -> Tensor:
    """Apply torch's batch norm to [sites, C], as an image of one column, for which it is faster."""
    column = x[None, :, None].permute(0, 3, 1, 2)  # [1, C, sites, 1], channels last in memory
    y = F.batch_norm(column, mean, variance, weight, bias, training, momentum=1.0, eps=norm.eps)
    return y.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def _update_running_statistics(norm: Any, statistics: _Statistics) -> None:
    """Move a norm's running statistics towards those of its input, by its momentum."""
    if statistics is not None:
        norm.running_mean.lerp_(statistics[0], norm.momentum)
        norm.running_var.lerp_(statistics[1], norm.momentum)
        norm.num_batches_tracked.add_(1)


_SIZES: dict[str, dict[str, Any]] = {
    "18": dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    "34": dict(block=BasicBlock, layers=(3, 4, 6, 3)),
    "50": dict(block=Bottleneck, layers=(3, 4, 6, 3)),
    "101": dict(block=Bottleneck, layers=(3, 4, 23, 3)),
}

_CONFIG: dict[str, Any] = dict(BASE_CFG, first_conv="conv1", classifier="fc")

default_cfgs = generate_default_cfgs(
    {name: config for size in _SIZES for name, config in with_tags(f"mim4d_resnet{size}", _CONFIG).items()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    size = _SIZES[variant.removeprefix("mim4d_resnet")]
    return build_encoder(MIM4DResNet, variant, pretrained, size, **kwargs)


@register_model
def mim4d_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18: 11.2 M parameters, widths 64 to 512."""
    return _create("mim4d_resnet18", pretrained, **kwargs)


@register_model
def mim4d_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34: 21.3 M parameters, widths 64 to 512."""
    return _create("mim4d_resnet34", pretrained, **kwargs)


@register_model
def mim4d_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50: 23.5 M parameters, widths 256 to 2048."""
    return _create("mim4d_resnet50", pretrained, **kwargs)


@register_model
def mim4d_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101: 42.5 M parameters, widths 256 to 2048."""
    return _create("mim4d_resnet101", pretrained, **kwargs)
