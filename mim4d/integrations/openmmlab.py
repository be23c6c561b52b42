"""The encoder as an OpenMMLab backbone: importing this module registers it as ``MIM4DEncoder``.

It is registered with mmengine, whose registry mmdet 3.x and mmdetection3d 1.x inherit, and with mmdet 2.x's
``BACKBONES``, whichever is installed. A config needs these lines::

    custom_imports = dict(imports=["mim4d.integrations.openmmlab"])
    ...
    img_backbone=dict(
        type="MIM4DEncoder",
        arch="convnext_small",
        out_indices=(2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="org/name"),
    ),

Modules have the names of OpenMMLab's own backbones, down to the blocks: ``downsample_layers.{i}`` and
``stages.{i}.{j}`` in a ConvNeXt, ``conv1``, ``bn1`` and ``layer{i}.{j}`` in a ResNet. mmdet's constructor for
layer-wise learning rates depends on them (and on a class name that contains "ConvNeXt"), and ``mim4d-hub convert``
reads the encoder back from a detector's checkpoint. Stages after the last of ``out_indices`` are not built, so every
parameter gets a gradient and ``find_unused_parameters`` can stay off.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import timm
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..backbones.masked import dense_maps
from ..backbones.pyramid import Part, make_backbone, parts_of, pyramid_of
from ..backbones.weights import load_backbone
from ..errors import UserError, WeightsError
from ..hub.folder import FAMILY
from ..hub.sources import Weights, from_anywhere


class PlainModule(nn.Module):
    """Base class of the backbones where neither mmengine nor mmcv 1.x is installed."""

    def __init__(self, init_cfg: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg


def _base_module() -> type[nn.Module]:
    """Return the ``BaseModule`` that detectors expect: of mmcv 1.x for mmdet 2.x, else of mmengine."""
    if find_spec("mmcv") and find_spec("mmcv.runner"):  # mmcv 2 has no runner
        from mmcv.runner import BaseModule

        return BaseModule
    if find_spec("mmengine"):
        from mmengine.model import BaseModule

        return BaseModule
    return PlainModule


if TYPE_CHECKING:
    BaseModule = PlainModule
else:
    BaseModule = _base_module()


class Backbone(BaseModule):
    """Base class of the registered backbones, a ``BaseModule`` of OpenMMLab; :func:`mim4d_encoder` makes them.

    A subclass holds the encoder's modules under OpenMMLab's names.
    """

    def __init__(
        self,
        arch: str,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        # Detectors of mmdet3d 0.x and 1.0 set init_cfg later, from their ``pretrained``.
        super().__init__(init_cfg)
        self.arch = full_name(arch)
        if not isinstance(drop_path_rate, (int, float)) or not 0 <= drop_path_rate < 1:
            raise UserError(f"drop_path_rate: expected a fraction from 0 to below 1, got {drop_path_rate!r}")
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.drop_path_rate = drop_path_rate

        encoder = self._new_encoder()
        self.pyramid, stages = pyramid_of(encoder), len(parts_of(encoder)) - 1
        self.out_indices = _checked_stages(out_indices, len(self.pyramid.strides))
        if frozen_stages not in range(-1, stages + 1):
            raise UserError(f"frozen_stages: expected -1 (none), 0 (the stem) or 1 to {stages}, got {frozen_stages!r}")
        self.out_channels: tuple[int, ...] = tuple(self.pyramid.channels[i] for i in self.out_indices)
        self.out_strides: tuple[int, ...] = tuple(self.pyramid.strides[i] for i in self.out_indices)
        for name, part in self._parts(encoder).items():
            self.add_module(name, part)
        self.train()

    def _new_encoder(self) -> Any:
        return timm.create_model(self.arch, num_classes=0, drop_path_rate=self.drop_path_rate)

    def _parts(self, encoder: Any) -> dict[str, nn.Module]:
        """Return an encoder's modules by OpenMMLab's names, up to the last of ``out_indices``."""
        raise NotImplementedError

    def _stages(self) -> Iterator[tuple[list[nn.Module], nn.Sequential]]:
        """Each stage: the modules before its blocks, and its blocks."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, equal to those of timm's ``features_only``.

        Args:
            images: [N, 3, H, W], RGB, normalised as the weights need it: mostly ImageNet's mean and standard deviation.

        Returns:
            One map [N, C_i, H/s_i, W/s_i] per entry of ``out_indices``, at the strides s_i = ``out_strides``.
        """
        x, maps = images, []
        for index, (entrance, blocks) in enumerate(self._stages()):
            for module in entrance:
                x = module(x)
            for block in blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.with_cp and x.requires_grad else block(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode. Frozen stages, and with ``norm_eval`` all BatchNorms, stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.freeze()
            part.hold()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen(self) -> Iterator[Part]:
        for index, (entrance, blocks) in enumerate(self._stages()):
            if index < self.frozen_stages:
                yield from map(_whole, (*entrance, blocks))
            elif index == self.frozen_stages == 0:
                yield from map(_whole, entrance)

    def init_weights(self) -> None:
        """Load the weights of ``init_cfg``, all or none; without it, weights stay random. Detectors call this.

        Raises:
            UserError: If ``init_cfg`` is invalid.
            WeightsError: If there are no such weights, or they are damaged or of another architecture.
        """
        if not self.init_cfg:
            return
        encoder = self._new_encoder()
        load_backbone(encoder, _weights(self.init_cfg))
        self.load_state_dict(nn.ModuleDict(self._parts(encoder)).state_dict())
        self._is_init = True


def _whole(module: nn.Module) -> Part:
    return Part(list(module.parameters()), list(module.modules()))


class ConvNeXtBackbone(Backbone):
    """A ConvNeXt whose modules and blocks have mmpretrain's names."""

    downsample_layers: nn.ModuleList
    stages: nn.ModuleList

    def _parts(self, encoder: ConvNeXt) -> dict[str, nn.Module]:
        stages: Any = list(encoder.stages)[: max(self.out_indices) + 1]
        # In timm the stem is before the stages, in OpenMMLab it belongs to the first one.
        entrances = [encoder.stem, *(stage.downsample for stage in stages[1:])]
        return {
            "downsample_layers": nn.ModuleList(entrances),
            "stages": nn.ModuleList([stage.blocks for stage in stages]),
        }

    def _stages(self) -> Iterator[tuple[list[nn.Module], nn.Sequential]]:
        for entrance, blocks in zip(self.downsample_layers, self.stages, strict=True):
            assert isinstance(blocks, nn.Sequential)
            yield [entrance], blocks


class ResNetBackbone(Backbone):
    """A ResNet. Its names are the same in timm and mmdet, so checkpoints work in both."""

    STEM = ("conv1", "bn1", "act1", "maxpool")

    def _parts(self, encoder: ResNet) -> dict[str, nn.Module]:
        layers = (f"layer{index + 1}" for index in range(max(self.out_indices) + 1))
        return {name: encoder.get_submodule(name) for name in (*self.STEM, *layers)}

    def _stages(self) -> Iterator[tuple[list[nn.Module], nn.Sequential]]:
        for index in range(max(self.out_indices) + 1):
            blocks = self.get_submodule(f"layer{index + 1}")
            assert isinstance(blocks, nn.Sequential)
            yield [self.get_submodule(name) for name in self.STEM] if index == 0 else [], blocks


class TimmBackbone(Backbone):
    """Any other timm model, under ``model`` by timm's own names."""

    model: Any

    def _new_encoder(self) -> Any:
        encoder: Any = make_backbone(self.arch, drop_path=self.drop_path_rate)
        if self.with_cp:
            encoder.set_grad_checkpointing()
        return encoder

    def _indices(self) -> list[int]:
        """Indices of the returned maps among those of the model."""
        return [self.pyramid.indices[index] for index in self.out_indices]

    def _parts(self, encoder: Any) -> dict[str, nn.Module]:
        if hasattr(encoder, "prune_intermediate_layers"):
            encoder.prune_intermediate_layers(self._indices(), prune_norm=True, prune_head=True)
        return {"model": encoder}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self.model, "forward_intermediates"):
            return tuple(self.model.forward_intermediates(images, indices=self._indices(), intermediates_only=True))
        maps = dense_maps(self.model, images)
        return tuple(maps[index] for index in self._indices())

    def _frozen(self) -> Iterator[Part]:
        yield from parts_of(self.model)[: self.frozen_stages + 1]


def mim4d_encoder(arch: str, **arguments: Any) -> Backbone:
    """Build the backbone of ``dict(type="MIM4DEncoder", arch=..., ...)`` in a config.

    Args:
        arch: One of mim4d's (``convnext_small`` for ``mim4d_convnext_small``), or any other name in timm.
        arguments: ``out_indices``: maps to return, from the finest, of the last four strides; all by default. mim4d's
            encoders have four, 0 to 3, with strides 4, 8, 16 and 32; a ViT has one.
            ``frozen_stages``: as in mmdet's ResNet, -1 for none, 0 for the stem, n for the stem and n stages (timm's
            groups of the model, such as the blocks of a ViT).
            ``norm_eval``: whether BatchNorms keep their running statistics; True by default.
            ``with_cp``: whether to recompute blocks in the backward pass, which saves memory.
            ``drop_path_rate``: stochastic depth; the rate of the last block.
            ``init_cfg``: ``dict(type="Pretrained", checkpoint=...)`` with a run or an encoder folder, a repository on
            the Hub (``org/name``, with ``@revision`` for another than the newest), a timm name, or a file. A file may
            be the checkpoint of a whole detector: its image backbone is found by itself, or under ``prefix=``.

    Raises:
        UserError: If an argument is unknown or invalid.
    """
    known = list(inspect.signature(Backbone).parameters)
    if unknown := [name for name in arguments if name not in known]:
        raise UserError(f"MIM4DEncoder has no argument {', '.join(unknown)}: its arguments are {', '.join(known)}")
    name = full_name(arch)
    if not name.startswith(FAMILY):
        return TimmBackbone(arch, **arguments)
    return (ResNetBackbone if "resnet" in name else ConvNeXtBackbone)(arch, **arguments)


def full_name(arch: str) -> str:
    """Return the name of an architecture in timm: ``mim4d_convnext_small`` for ``convnext_small``.

    Raises:
        UserError: If there is no such architecture.
    """
    own = f"{FAMILY}{str(arch).removeprefix(FAMILY)}"
    if timm.is_model(own):
        return own
    if timm.is_model(str(arch)):
        return str(arch)
    known = {name.removeprefix(FAMILY) for name in timm.list_models()}
    close = difflib.get_close_matches(str(arch), sorted(known), n=3, cutoff=0.4)
    hint = f"; similar names are {', '.join(close)}" if close else ""
    raise UserError(f"arch: there is no architecture {arch!r}{hint}")


def _checked_stages(out_indices: Sequence[int] | None, stages: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(stages))
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    wrong = any(not isinstance(index, int) or index not in range(stages) for index in indices)
    if not indices or wrong or list(indices) != sorted(set(indices)):
        raise UserError(f"out_indices: expected stages from 0 to {stages - 1} in ascending order, got {out_indices!r}")
    return indices


def _weights(init_cfg: Mapping[str, Any]) -> Weights:
    """Load the weights that ``init_cfg`` names."""
    given = dict(init_cfg) if isinstance(init_cfg, Mapping) else {}
    given.pop("map_location", None)  # the weights go to the module's device
    kind, source, prefix = given.pop("type", None), given.pop("checkpoint", None), given.pop("prefix", None)
    if kind != "Pretrained" or not source or given:
        raise UserError(
            f'init_cfg: expected dict(type="Pretrained", checkpoint=...), optionally with prefix=..., got {init_cfg!r}'
        )
    if "://" in str(source):
        raise UserError(
            f"init_cfg: checkpoint {source} is a URL; expected a folder, a file, org/name on the Hub, or a timm name, "
            "such as resnet50.tv_in1k for torchvision://resnet50"
        )
    weights = from_anywhere(str(source).removeprefix("local-dir:"))  # timm's prefix of a folder
    if not prefix:
        return weights
    prefix = prefix.rstrip(".") + "."
    # The prefix of OpenMMLab's own backbones: what they have more than timm's is then dropped.
    tensors = {
        f"backbone.{name.removeprefix(prefix)}": tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(prefix)
    }
    if not tensors:
        parts = ", ".join(sorted({name.partition(".")[0] for name in weights.tensors}))
        raise WeightsError(f"init_cfg: {weights.source} has no names with the prefix {prefix}; there are {parts}")
    return dataclasses.replace(weights, tensors=tensors)


def _registries() -> Iterator[Any]:
    """Yield the registries of the packages that are installed."""
    if find_spec("mmengine"):
        from mmengine.registry import MODELS

        yield MODELS
    if find_spec("mmdet") and find_spec("mmcv") and find_spec("mmcv.runner"):  # mmcv 2 has no runner
        from mmdet.models.builder import BACKBONES

        yield BACKBONES


for _registry in _registries():
    _registry.register_module(name="MIM4DEncoder", module=mim4d_encoder, force=True)
