"""Any timm backbone under a small BEV model of one frame, as Simple-BEV (arXiv 2206.07959), and a head.

Only the backbone's weights are ever carried over; neck, trunk and head start anew.
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
from ..hub.sources import create_model_args, fetch_encoder, looks_like_path
from ..io.tensors import first_line
from ..method.lift import ResidualBlock
from ..method.neck import Neck, NeckConfig, group_norm
from ..settings import check_image_size
from .view import ViewTransform

RANDOM, PRETRAINED = "random", "pretrained"
"""Values of ``--init`` that are not a source of weights."""
HEIGHTS = (-1.0, 3.0)
"""Bottom and top of the volume that image features are lifted into, metres above the ground."""


@dataclass(frozen=True, kw_only=True)
class BEVConfig:
    """Settings of the model between backbone and head."""

    neck: NeckConfig = field(default_factory=lambda: NeckConfig(stages=(1, 2, 3), channels=128))
    levels: int = 8
    """Voxels from the bottom of the volume, 1 m below the ground, to its top, 3 m above it."""
    voxel_channels: int = 64
    """Channels per voxel."""
    coarse: int = 1
    """How many of the labels' cells (0.5 m of bev-seg, 0.8 m of det3d, 0.375 m of hd-map) a BEV feature is wide."""
    channels: int = 128
    """Width of the BEV trunk; twice as much at half its resolution, four times at a quarter and an eighth."""

    def __post_init__(self) -> None:
        most = {"levels": 256, "voxel_channels": 4096, "coarse": 64, "channels": 4096}
        check_bounds(self, {name: (1, value) for name, value in most.items()}, "model.")

    def voxels(self, labels: VoxelGrid) -> VoxelGrid:
        """Return the volume that image features are lifted into.

        Args:
            labels: The grid of the task's labels.

        Raises:
            ValueError: If its cells cannot be joined by ``coarse``.
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
        name: Name of a model in timm, mim4d's among them; or an encoder folder or a run of ``mim4d-pretrain``, whose
            architecture is used.
        init: ``random``; ``pretrained``: the weights that belong to ``name``; or other weights, see
            :func:`mim4d.hub.sources.from_anywhere`.
        image_size: (H, W) of the images, pixels; None skips the check of their size.

    Returns:
        The backbone, and a line for the log on what was loaded from other weights, else an empty one.

    Raises:
        UserError: If there is no such backbone, its weights cannot be read or do not fit, its maps have channels last,
            or the images are not multiples of its coarsest stride.
    """
    path = Path(name).expanduser()
    if name.startswith(HUB_PREFIX):
        made, arguments = create_model_args(fetch_encoder(HubRepo.parse(name))[1].parent)
    elif looks_like_path(name) or path.is_dir():
        made, arguments = create_model_args(find_folder(path))
    else:
        made, arguments = name, {}
    about = ""
    try:
        arguments = {**any_size(made), **arguments}
        if init not in (RANDOM, PRETRAINED):
            # Into the whole model, which checks that all of its tensors fit; the maps may need fewer of them.
            whole = timm.create_model(made, num_classes=0, **arguments)
            try:
                about = initialise(whole, init)
            except WeightsError as error:
                raise UserError(f"--init {init}: {error}") from error
            arguments["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict(), "source": ""}
        encoder: Any = timm.create_model(made, pretrained=init != RANDOM, features_only=True, **arguments)
        encoder.pretrained_cfg.pop("state_dict", None)  # else copied with the model
    except UserError:
        raise
    except Exception as error:  # timm, the Hub's client and the models raise all kinds
        raise UserError(f"--backbone {name}: {first_line(error)}") from error
    if getattr(encoder, "output_fmt", Format.NCHW) != Format.NCHW:
        raise UserError(f"--backbone {name}: its maps have channels last, as Swins' have; needed are channels first")
    if image_size:
        try:
            check_image_size(image_size, pyramid_of(encoder).strides[-1])
        except ValueError as error:
            raise UserError(str(error)) from error
    return encoder, about


def pixel_statistics(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of a timm model's images, [3, 1, 1] each, for pixels of 0 to 255."""
    normalise = resolve_model_data_config(encoder)
    return 255 * torch.tensor(normalise["mean"]).view(3, 1, 1), 255 * torch.tensor(normalise["std"]).view(3, 1, 1)


class BEVModel(nn.Module):
    """A BEV model from images of one frame to the output of the task's head."""

    def __init__(self, config: BEVConfig, encoder: nn.Module, grid: VoxelGrid, head: nn.Module) -> None:
        """Build the model.

        Args:
            config: Of what stands between the encoder and the head.
            encoder: See :func:`make_encoder`.
            grid: Of the labels.
            head: See :meth:`mim4d.eval.task.Task.head`.
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
        """The maps [N, C_i, H/s_i, W/s_i] that the neck reads, of images [N, 3, H, W] uint8; coarser ones last."""
        maps = self.encoder((images.float() - self.mean) / self.std)
        return [maps[self.pyramid.indices[index]] for index in self.neck.indices]

    def forward(self, clip: Clip, maps: Sequence[Tensor] | None = None) -> Any:
        """Return the head's output.

        Args:
            clip: B clips of one frame.
            maps: Output of :meth:`encode` for their images [B*V, ...]; None computes it.
        """
        images = clip.images.flatten(0, 2)
        maps = self.encode(images) if maps is None else maps
        every = dict(zip(self.neck.indices, maps, strict=True))
        visible = torch.ones(len(images), maps[-1].shape[-2], maps[-1].shape[-1], dtype=torch.bool, device=clip.device)
        features = self.neck([every.get(index, maps[-1]) for index in range(len(self.pyramid.indices))], visible)
        return self.head(self.trunk(self.view(features.unflatten(0, (clip.batch_size, clip.num_cameras)), clip)))


class Trunk(nn.Module):
    """A small U-Net over the BEV plane: full resolution to an eighth."""

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
        """[B, in_channels, Y, X] -> [B, channels, Y, X]."""
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
