"""A small BEV model of one frame on top of any timm backbone, after Simple-BEV (arXiv 2206.07959).

Only the backbone can have pretrained weights; neck, view transform, trunk and head start from random ones.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn

from ..backbones.pyramid import any_size, pyramid_of
from ..backbones.weights import initialise
from ..bounds import check_bounds
from ..clip import Clip
from ..errors import UserError, WeightsError
from ..geometry import VoxelGrid
from ..hub.fetch import HUB_PREFIX, HubRepo
from ..hub.folder import find_folder
from ..hub.load import layers_left_out
from ..hub.sources import create_model_args, fetch_encoder, looks_like_path
from ..io.tensors import first_line
from ..method.lift import ResidualBlock
from ..method.neck import Neck, NeckConfig, group_norm
from ..settings import check_image_size
from .view import ViewTransform

RANDOM, PRETRAINED = "random", "pretrained"
"""Values of ``--init`` that do not name weights."""
HEIGHTS = (-1.0, 3.0)
"""Bottom and top of the volume that image features are lifted into, metres above the ground."""


@dataclass(frozen=True, kw_only=True)
class BEVConfig:
    """Settings of the layers between backbone and head."""

    neck: NeckConfig = field(default_factory=lambda: NeckConfig(stages=(1, 2, 3), channels=128))
    levels: int = 8
    """Number of voxel layers, from 1 m below the ground to 3 m above it."""
    voxel_channels: int = 64
    """Channels per voxel."""
    coarse: int = 1
    """Width of a BEV feature in label cells: 0.5 m each for bev-seg, 0.8 m for det3d, 0.375 m for hd-map."""
    channels: int = 128
    """Channels of the BEV trunk at full resolution; twice as many at half the resolution, four times below."""

    def __post_init__(self) -> None:
        most = {"levels": 256, "voxel_channels": 4096, "coarse": 64, "channels": 4096}
        check_bounds(self, {name: (1, value) for name, value in most.items()}, "model.")

    def voxels(self, labels: VoxelGrid) -> VoxelGrid:
        """Return the grid of voxels that image features are lifted into.

        Args:
            labels: Grid of the task's labels.

        Raises:
            ValueError: If ``coarse`` does not divide the number of label cells.
        """
        _, height, width = labels.shape
        if height % self.coarse or width % self.coarse:
            raise ValueError(f"model.coarse = {self.coarse} must divide the labels' {width} x {height} cells")
        low, high = HEIGHTS
        voxel = (labels.voxel[0] * self.coarse, labels.voxel[1] * self.coarse, (high - low) / self.levels)
        return dataclasses.replace(labels, z=HEIGHTS, voxel=voxel)


def make_encoder(name: str, init: str, *, image_size: tuple[int, int] | None = None) -> tuple[nn.Module, str]:
    """Build a timm backbone that returns a pyramid of maps.

    Args:
        name: Name of a timm model (mim4d's included), or a folder of an encoder or of a ``mim4d-pretrain`` run, which
            has the architecture.
        init: ``random``; ``pretrained``: the weights that belong to ``name``; or other weights, see
            :func:`mim4d.hub.sources.from_anywhere`.
        image_size: (H, W) of the images, pixels; None skips the check of their size.

    Returns:
        The backbone, and a line for the log if other weights were loaded, else an empty string.

    Raises:
        UserError: If the backbone does not exist, its weights cannot be read or do not fit, its maps have channels
            last, or the image size is not a multiple of its coarsest stride.
    """
    path = Path(name).expanduser()
    if name.startswith(HUB_PREFIX):
        model_name, arguments = create_model_args(fetch_encoder(HubRepo.parse(name))[1].parent)
    elif looks_like_path(name) or path.is_dir():
        model_name, arguments = create_model_args(find_folder(path))
    else:
        model_name, arguments = name, {}
    loaded = ""
    try:
        arguments = {**any_size(model_name), **arguments}
        if init not in (RANDOM, PRETRAINED):
            # Load into the whole model, to check that every tensor fits; the maps may need fewer of them.
            whole = timm.create_model(model_name, num_classes=0, **arguments)
            try:
                loaded = initialise(whole, init)
            except WeightsError as error:
                raise UserError(f"--init {init}: {error}") from error
            arguments["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict(), "source": ""}
        with layers_left_out():
            encoder: Any = timm.create_model(model_name, pretrained=init != RANDOM, features_only=True, **arguments)
        encoder.pretrained_cfg.pop("state_dict", None)  # or it would be copied with the model
    except UserError:
        raise
    except Exception as error:  # timm, the Hub's client and the models raise errors of any type
        raise UserError(f"--backbone {name}: {first_line(error)}") from error
    if getattr(encoder, "output_fmt", Format.NCHW) != Format.NCHW:
        raise UserError(f"--backbone {name}: its maps have channels last (NHWC); mim4d-eval needs channels first")
    if image_size:
        try:
            check_image_size(image_size, pyramid_of(encoder).strides[-1])
        except ValueError as error:
            raise UserError(str(error)) from error
    return encoder, loaded


def pixel_statistics(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation that a timm model normalises with, [3, 1, 1] each, for pixels 0 to 255."""
    normalise = resolve_model_data_config(encoder)
    return 255 * torch.tensor(normalise["mean"]).view(3, 1, 1), 255 * torch.tensor(normalise["std"]).view(3, 1, 1)


class BEVModel(nn.Module):
    """A BEV model: images of one frame to the output of the task's head."""

    def __init__(self, config: BEVConfig, encoder: nn.Module, grid: VoxelGrid, head: nn.Module) -> None:
        """Build the model.

        Args:
            config: Settings of the layers between encoder and head.
            encoder: The backbone, see :func:`make_encoder`.
            grid: Grid of the labels.
            head: The head, see :meth:`mim4d.eval.task.Task.head`.
        """
        super().__init__()
        self.encoder = encoder
        self.mean: Tensor
        self.std: Tensor
        for name, value in zip(("mean", "std"), pixel_statistics(encoder), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.pyramid = pyramid_of(encoder)
        self.neck = Neck(config.neck, self.pyramid.channels, self.pyramid.strides)
        voxels = config.voxels(grid)
        self.view = ViewTransform(config.neck.channels, config.voxel_channels, self.neck.stride, voxels)
        self.trunk = Trunk(config.voxel_channels, config.channels)
        self.head = head

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the maps that the neck reads, finest first.

        Args:
            images: [N, 3, H, W] uint8.

        Returns:
            Maps [N, C_i, H/s_i, W/s_i], one per stage in ``neck.stages``.
        """
        maps = self.encoder((images.float() - self.mean) / self.std)
        return [maps[self.pyramid.indices[index]] for index in self.neck.indices]

    def forward(self, clip: Clip, maps: Sequence[Tensor] | None = None) -> Any:
        """Return the head's output.

        Args:
            clip: B clips of one frame.
            maps: Output of :meth:`encode` for the clips' images, N = B*V; None computes it.
        """
        images = clip.images.flatten(0, 2)  # [B*V, 3, H, W], as there is one frame
        maps = self.encode(images) if maps is None else maps
        maps_by_stage = dict(zip(self.neck.indices, maps, strict=True))
        visible = torch.ones(len(images), maps[-1].shape[-2], maps[-1].shape[-1], dtype=torch.bool, device=clip.device)
        # The neck expects a map per stage, but reads only its own stages: any map fills the other places.
        every_stage = [maps_by_stage.get(index, maps[-1]) for index in range(len(self.pyramid.indices))]
        features = self.neck(every_stage, visible)  # [B*V, C, h, w]
        bev = self.view(features.unflatten(0, (clip.batch_size, clip.num_cameras)), clip)  # [B, C', Y, X]
        return self.head(self.trunk(bev))


class Trunk(nn.Module):
    """A small U-Net over the BEV plane, from full resolution to an eighth."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels, 4 * channels)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU()
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), group_norm(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.Sequential(ResidualBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map BEV features [B, in_channels, Y, X] to [B, channels, Y, X]."""
        x = self.stem(x)
        levels = []
        for block, down in zip(self.blocks, (*self.down, nn.Identity()), strict=True):
            levels.append(x := block(x))
            x = down(x)
        top: Tensor | None = None
        for level, lateral in reversed(list(zip(levels, self.laterals, strict=True))):
            y = lateral(level)
            top = y if top is None else y + F.interpolate(top, size=y.shape[-2:], mode="bilinear")
        assert top is not None
        return self.output(top)
