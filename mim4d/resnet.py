"""ResNet (arXiv 1512.03385) with a masked forward."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from .encoder import CONFIG, PATCH, MIM4DEncoder, Patches, sites_of
from .hub.load import build_encoder
from .hub.published import with_tags


class MIM4DResNet(MIM4DEncoder, ResNet):
    """timm's ResNet; the arguments are those of :class:`timm.models.resnet.ResNet`.

    Its 3x3 convolutions are computed everywhere: hiding patches saves what the norms and 1x1 convolutions cost.

    In training mode the masked forward takes BatchNorm's statistics from visible sites alone, of the images that one
    process has, and the running statistics follow them, twice a step under gradient checkpointing as in the dense
    forward. As fewer than two sites have no variance, they are normalised by the running statistics, which then stay as
    they are.
    """

    def parts(self) -> list[nn.Module]:
        return [nn.ModuleList([self.conv1, self.bn1]), *self._stages()]

    def _stages(self) -> list[Any]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: Patches) -> list[Tensor]:
        if not _is_plain(self):
            raise ValueError("forward_masked knows the plain ResNet with BatchNorm alone: others may mix patches")
        halved, *stages = (_Sites.of(patches, visible.shape, PATCH // stride) for stride in (2, 4, 8, 16, 32))

        # 1. Stem: hidden pixels are zero to the convolution, and absent from the pool as what is beyond the border is.
        x = self.conv1(images.masked_fill(~sites_of(visible, images)[:, None], 0))
        x = self.act1(_norm(self.bn1, halved.pack(x)))
        before = stages[0]
        x = before.pack(self.maxpool(halved.unpack(x, hidden=-torch.inf)))  # [M, C]
        # 2. Stages: visible sites travel packed; only the 3x3 convolutions look at neighbours and see a map.
        features = []
        for stage, sites in zip(self._stages(), stages, strict=True):
            for block in stage:
                if self.grad_checkpointing:
                    x = torch.utils.checkpoint.checkpoint(_masked_block, block, x, before, sites, use_reentrant=False)
                else:
                    x = _masked_block(block, x, before, sites)
                before = sites
            features.append(sites.unpack(x))
        return features


def _is_plain(model: MIM4DResNet) -> bool:
    """Whether a model has nothing that the masked forward does not know."""
    blocks = [block for stage in model._stages() for block in stage]
    norms = [module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("bn")]
    return (
        isinstance(model.conv1, nn.Conv2d)  # not the deep stem
        and isinstance(model.maxpool, nn.MaxPool2d)
        and all(type(norm) is nn.BatchNorm2d for norm in norms)
        and all(block.se is None and type(block.aa) is type(block.drop_block) is nn.Identity for block in blocks)
        and all(block.downsample is None or isinstance(block.downsample[0], nn.Conv2d) for block in blocks)
    )


@dataclass(frozen=True)
class _Sites:
    """The visible sites of maps [N, C, H, W], patch by patch, and the way from maps to the sites [M, C] and back."""

    index: Tensor
    """[M] int64, into N*H*W."""
    shape: tuple[int, ...]
    """N, H, W."""

    @classmethod
    def of(cls, patches: Patches, grid: tuple[int, ...], side: int) -> "_Sites":
        """The sites of visible patches in a grid (N, h, w) of patches, each ``side`` x ``side`` sites."""
        n, h, w = grid
        step = torch.arange(side, device=patches.image.device)
        row = ((patches.image * h + patches.row) * side)[:, None] + step  # [P, side], counted through all images
        column = (patches.column * side)[:, None] + step  # [P, side]
        index = row[:, :, None] * (w * side) + column[:, None]  # [P, side, side]
        return cls(index.flatten(), (n, h * side, w * side))

    def pack(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.index)

    def unpack(self, packed: Tensor, hidden: float = 0.0) -> Tensor:
        n, height, width = self.shape
        flat = packed.new_full((n * height * width, packed.shape[1]), hidden).index_copy(0, self.index, packed)
        return flat.view(n, height, width, packed.shape[1]).permute(0, 3, 1, 2)

    def of_images(self, values: Tensor) -> Tensor:
        """A value for each image [N, 1] as one for each site [M, 1]."""
        return values.index_select(0, self.index // (self.shape[1] * self.shape[2]))


def _masked_block(block: Any, x: Tensor, before: _Sites, after: _Sites) -> Tensor:
    """One of timm's basic or bottleneck blocks, from packed sites [M, C] to those [M', C'] at its own stride."""
    if isinstance(block, Bottleneck):
        y = block.act1(_norm(block.bn1, _convolve(block.conv1, x, before, before)))
        y = block.act2(_norm(block.bn2, _convolve(block.conv2, y, before, after)))
        y = _norm(block.bn3, _convolve(block.conv3, y, after, after))
        last = block.act3
    else:
        y = block.act1(_norm(block.bn1, _convolve(block.conv1, x, before, after)))
        y = _norm(block.bn2, _convolve(block.conv2, y, after, after))
        last = block.act2
    if block.drop_path is not None:  # whole images, as in the dense forward
        y = y * after.of_images(block.drop_path(y.new_ones(after.shape[0], 1)))
    if block.downsample is not None:
        convolution, norm = block.downsample
        x = _norm(norm, _convolve(convolution, x, before, after))
    return last(x + y)


def _convolve(convolution: nn.Conv2d, x: Tensor, before: _Sites, after: _Sites) -> Tensor:
    """A convolution from packed sites to packed sites: a hidden neighbour is zero, as if it were not there."""
    if convolution.kernel_size != (1, 1):
        return after.pack(convolution(before.unpack(x)))
    if before is not after:
        x = after.pack(before.unpack(x)[..., :: convolution.stride[0], :: convolution.stride[1]])
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """timm's BatchNorm2d of packed sites [M, C], which are an image of one column to it."""
    if len(x) < 2:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    column = x[None, :, None].permute(0, 3, 1, 2)  # [1, C, M, 1], channels last
    return norm(column).permute(0, 2, 3, 1).flatten(0, 2)


_SIZES: dict[str, dict[str, Any]] = {
    "18": dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    "34": dict(block=BasicBlock, layers=(3, 4, 6, 3)),
    "50": dict(block=Bottleneck, layers=(3, 4, 6, 3)),
    "101": dict(block=Bottleneck, layers=(3, 4, 23, 3)),
}

_CONFIG: dict[str, Any] = dict(CONFIG, first_conv="conv1", classifier="fc")

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
