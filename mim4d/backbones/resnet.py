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
    """timm's ResNet; the arguments are those of :class:`timm.models.resnet.ResNet`.

    Its 3x3 convolutions are computed everywhere: hiding patches saves what the norms and 1x1 convolutions cost.

    In training mode the masked forward takes BatchNorm's statistics from visible sites alone, group by group (see
    ``norm_group`` of :meth:`forward_masked`). The running statistics move by the norm's momentum towards the mean of
    the groups' means and unbiased variances, once per forward pass, with gradient checkpointing too. As fewer than two
    sites have no variance, groups of one site are normalised by the running statistics, which then stay as they are.
    """

    def parts(self) -> list[nn.Module]:
        return [nn.ModuleList([self.conv1, self.bn1]), *self._stages()]

    def _stages(self) -> list[Any]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: Patches, groups: int) -> list[Tensor]:
        if not _is_plain(self):
            raise ValueError("forward_masked knows the plain ResNet with BatchNorm alone: others may mix patches")
        halved, *stages = (_Sites.of(patches, visible.shape, PATCH // stride, groups) for stride in (2, 4, 8, 16, 32))
        norms, statistics = [self.bn1], []

        # 1. Stem: hidden pixels are zero to the convolution, and absent from the pool as what is beyond the border is.
        x = self.conv1(images.masked_fill(~sites_of(visible, images)[:, None], 0))
        x, own = _norm(self.bn1, halved.pack(x), groups)
        statistics.append(own)
        x = self.act1(x)
        before = stages[0]
        x = before.pack(self.maxpool(halved.unpack(x, hidden=-torch.inf)))  # [M, C]
        # 2. Stages: visible sites travel packed; only the 3x3 convolutions look at neighbours and see a map.
        features = []
        for stage, sites in zip(self._stages(), stages, strict=True):
            for block in stage:
                if self.grad_checkpointing:
                    x, of_block = torch.utils.checkpoint.checkpoint(
                        _masked_block, block, x, before, sites, use_reentrant=False
                    )
                else:
                    x, of_block = _masked_block(block, x, before, sites)
                norms += _norms(block)
                statistics += of_block
                before = sites
            features.append(sites.unpack(x))
        # 3. Running statistics: not within the blocks, which gradient checkpointing runs twice.
        for norm, own in zip(norms, statistics, strict=True):
            _update(norm, own)
        return features


def _is_plain(model: MIM4DResNet) -> bool:
    """Whether a model has nothing that the masked forward does not know."""
    blocks = [block for stage in model._stages() for block in stage]
    norms = [module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("bn")]
    return (
        isinstance(model.conv1, nn.Conv2d)  # not the deep stem
        and isinstance(model.maxpool, nn.MaxPool2d)
        and all(type(norm) is nn.BatchNorm2d for norm in norms)
        and all(norm.affine and norm.track_running_stats and norm.momentum is not None for norm in norms)
        and all(block.se is None and type(block.aa) is type(block.drop_block) is nn.Identity for block in blocks)
        and all(block.downsample is None or isinstance(block.downsample[0], nn.Conv2d) for block in blocks)
    )


@dataclass(frozen=True)
class _Sites:
    """The visible sites of maps [N, C, H, W], and the way from maps to the sites [M, C] and back.

    The sites of G groups of images are interleaved: the first of each group, then the second of each, ... So [M, C] is
    also [M/G, G*C], in which BatchNorm finds G times as many channels.
    """

    index: Tensor
    """[M] int64, into N*H*W."""
    shape: tuple[int, ...]
    """N, H, W."""
    groups: int
    """G, of M/G sites each."""

    @classmethod
    def of(cls, patches: Patches, grid: tuple[int, ...], side: int, groups: int) -> "_Sites":
        """The sites of visible patches in a grid (N, h, w) of patches, each ``side`` x ``side`` sites."""
        n, h, w = grid
        step = torch.arange(side, device=patches.image.device)
        row = ((patches.image * h + patches.row) * side)[:, None] + step  # [P, side], counted through all images
        column = (patches.column * side)[:, None] + step  # [P, side]
        index = row[:, :, None] * (w * side) + column[:, None]  # [P, side, side]
        return cls(index.view(groups, -1).T.flatten(), (n, h * side, w * side), groups)

    def pack(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.index)

    def unpack(self, packed: Tensor, hidden: float = 0.0) -> Tensor:
        n, height, width = self.shape
        flat = packed.new_full((n * height * width, packed.shape[1]), hidden).index_copy(0, self.index, packed)
        return flat.view(n, height, width, packed.shape[1]).permute(0, 3, 1, 2)

    def of_images(self, values: Tensor) -> Tensor:
        """A value for each image [N, 1] as one for each site [M, 1]."""
        return values.index_select(0, self.index // (self.shape[1] * self.shape[2]))


_Statistics = tuple[Tensor, Tensor] | None
"""What a norm saw: mean and unbiased variance [C], averaged over groups; None where it used its running statistics."""


def _masked_block(block: Any, x: Tensor, before: _Sites, after: _Sites) -> tuple[Tensor, list[_Statistics]]:
    """Run one of timm's basic or bottleneck blocks on packed sites [M, C].

    Returns:
        Packed sites [M', C'] at the block's own stride, and what each of its :func:`_norms` saw.
    """
    statistics: list[_Statistics] = []

    def norm(layer: Any, y: Tensor) -> Tensor:
        y, own = _norm(layer, y, after.groups)
        statistics.append(own)
        return y

    if isinstance(block, Bottleneck):
        y = block.act1(norm(block.bn1, _convolve(block.conv1, x, before, before)))
        y = block.act2(norm(block.bn2, _convolve(block.conv2, y, before, after)))
        y = norm(block.bn3, _convolve(block.conv3, y, after, after))
        last = block.act3
    else:
        y = block.act1(norm(block.bn1, _convolve(block.conv1, x, before, after)))
        y = norm(block.bn2, _convolve(block.conv2, y, after, after))
        last = block.act2
    if block.drop_path is not None:  # whole images, as in the dense forward
        y = y * after.of_images(block.drop_path(y.new_ones(after.shape[0], 1)))
    if block.downsample is not None:
        x = norm(block.downsample[1], _convolve(block.downsample[0], x, before, after))
    return last(x + y), statistics


def _norms(block: Any) -> list[Any]:
    """A block's norms in the order in which :func:`_masked_block` runs them."""
    norms = [block.bn1, block.bn2]
    if isinstance(block, Bottleneck):
        norms.append(block.bn3)
    if block.downsample is not None:
        norms.append(block.downsample[1])
    return norms


def _convolve(convolution: nn.Conv2d, x: Tensor, before: _Sites, after: _Sites) -> Tensor:
    """A convolution from packed sites to packed sites: a hidden neighbour is zero, as if it were not there."""
    if convolution.kernel_size != (1, 1):
        return after.pack(convolution(before.unpack(x)))
    if before is not after:
        x = after.pack(before.unpack(x)[..., :: convolution.stride[0], :: convolution.stride[1]])
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _norm(norm: Any, x: Tensor, groups: int) -> tuple[Tensor, _Statistics]:
    """Apply a BatchNorm2d to packed sites [M, C], in training group by group; its buffers stay as they are.

    Returns:
        The same sites, normalised, and the statistics that were used.
    """
    sites, channels = len(x) // groups, x.shape[1]
    if not norm.training or sites < 2:
        y = _batch_norm(x, norm, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return y, None
    # With a momentum of 1 the buffers become the statistics of each group.
    mean, variance = (norm.running_mean.new_zeros(groups * channels) for _ in range(2))
    weight, bias = norm.weight.repeat(groups), norm.bias.repeat(groups)
    y = _batch_norm(x.view(sites, -1), norm, mean, variance, weight, bias, training=True)
    return y.view(x.shape), (mean.view(groups, -1).mean(0), variance.view(groups, -1).mean(0))


def _batch_norm(
    x: Tensor, norm: Any, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, training: bool = False
) -> Tensor:
    """torch's batch norm of [M, C], which is faster where it sees an image of one column."""
    column = x[None, :, None].permute(0, 3, 1, 2)  # [1, C, M, 1], channels last
    y = F.batch_norm(column, mean, variance, weight, bias, training, momentum=1.0, eps=norm.eps)
    return y.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def _update(norm: Any, statistics: _Statistics) -> None:
    """Move a norm's running statistics towards what it saw."""
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
    """11.2 M parameters, widths 64 to 512."""
    return _create("mim4d_resnet18", pretrained, **kwargs)


@register_model
def mim4d_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """21.3 M parameters, widths 64 to 512."""
    return _create("mim4d_resnet34", pretrained, **kwargs)


@register_model
def mim4d_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """23.5 M parameters, widths 256 to 2048."""
    return _create("mim4d_resnet50", pretrained, **kwargs)


@register_model
def mim4d_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """42.5 M parameters, widths 256 to 2048."""
    return _create("mim4d_resnet101", pretrained, **kwargs)
