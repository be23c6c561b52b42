"""The measured cases: presets as models and clips in memory."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, make_pose
from mim4d.method.lift import LiftConfig
from mim4d.method.model import MIM4D
from mim4d.method.render import RenderConfig
from mim4d.method.temporal import TemporalConfig
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.presets import PRESETS

Preset = Literal["gpu24", "paper", "demo"]
PRESET_NAMES: tuple[Preset, ...] = ("gpu24", "paper", "demo")
"""Presets in order of importance."""
POINTS = 35_000
"""LiDAR points per frame, as in a sweep of nuScenes."""
TOY_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class Case:
    """A preset, at full size or shrunk."""

    preset: Preset
    encoder: str = ""
    """Encoder to use instead of the preset's."""
    toy: bool = False
    """Shrink everything so that a step takes a fraction of a second on one CPU core."""

    @property
    def name(self) -> str:
        """Name of the case, such as ``gpu24`` or ``gpu24-mim4d_resnet50``."""
        return f"{self.preset}-{self.encoder}" if self.encoder else self.preset

    def config(self) -> PretrainConfig:
        """Return the preset's settings, with the case's encoder and size."""
        config = PRESETS[self.preset]
        if self.encoder:
            config = dataclasses.replace(config, model=self.encoder)
        return shrink(config, keep_encoder=bool(self.encoder)) if self.toy else config

    def clip(self, batch: int) -> Clip:
        """Return a batch of synthetic clips on the CPU."""
        config = self.config()
        return synthetic_clip(config, batch, points=TOY_POINTS if self.toy else POINTS)


def shrink(config: PretrainConfig, *, keep_encoder: bool = False) -> PretrainConfig:
    """Shrink a preset: small images, two cameras, a coarse grid, few rays and channels, one clip per batch."""
    method = dataclasses.replace(
        config.method,
        grid=VoxelGrid(x=(-24, 24), y=(-18, 18), z=(-1, 5), voxel=(3, 3, 2)),
        neck=dataclasses.replace(config.method.neck, channels=16),
        lift=LiftConfig(depth_range=(1, 29), depth_step=4, depth_channels=16, channels=16),
        temporal=TemporalConfig(short_channels=32, long_channels=16),
        render=RenderConfig(rays_per_view=16, uniform_samples=16, importance_samples=8),
        drop_path=0.0,
    )
    return dataclasses.replace(
        config,
        model=config.model if keep_encoder else "mim4d_convnext_atto",
        image_size=(64, 128),
        cameras=config.cameras[:2],
        batch_size=1,
        workers=0,
        method=method,
    )


def medium(config: PretrainConfig) -> PretrainConfig:
    """Reduce images, cameras and rays, which only repeat the same arithmetic, for comparisons with the CPU.

    The volume, all widths and the samples per ray stay. Stochastic depth is off, because its random numbers differ
    between devices.
    """
    render = dataclasses.replace(config.method.render, rays_per_view=min(64, config.method.render.rays_per_view))
    method = dataclasses.replace(config.method, render=render, drop_path=0.0)
    size = (min(128, config.image_size[0]), min(352, config.image_size[1]))
    return dataclasses.replace(config, image_size=size, cameras=config.cameras[:2], batch_size=1, method=method)


def make_model(config: PretrainConfig, device: str = "cpu") -> MIM4D:
    """Return a model with a run's initial random weights, the same on every device."""
    torch.manual_seed(0)
    return MIM4D(config.model_config()).to(device)


def make_generic_model(config: PretrainConfig) -> MIM4D:
    """Return a model on the CPU in which every weight matters.

    Initial weights hide errors: layer scales of 1e-6 and layers of zeros have no effect, and attention that samples
    exactly at cell centres has two gradients there, of which rounding selects one.
    """
    model = make_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(1)
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if name.endswith("offsets.bias"):
                parameter.add_(torch.rand_like(parameter))
    return model


def synthetic_clip(config: PretrainConfig, batch: int, *, points: int, seed: int = 0) -> Clip:
    """Return clips of a car that drives 2 m and turns 0.05 rad per frame; images are noise.

    No camera looks along an axis of the grid, because rounding would put points on voxel faces to either side.

    Args:
        config: Gives frames, cameras, image size and the gap between frames.
        batch: B.
        points: LiDAR points per frame, within 20 m and from -0.5 to 2.5 m up.
        seed: Seed of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    frames, cameras, (height, width) = config.frames, len(config.cameras), config.image_size
    shape = (batch, frames, cameras)
    axes = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego_from_camera, looking ahead
    mounts = [
        make_pose(_yaw(0.17 + 2 * math.pi * v / cameras) @ axes, torch.tensor([0.31 * v, 0.13 * v, 1.57]))
        for v in range(cameras)
    ]
    earlier = [make_pose(_yaw(-0.05 * s), torch.tensor([-1.97 * s, 0.03 * s, 0.0])) for s in range(frames - 1, -1, -1)]
    intrinsics = torch.tensor([[0.8 * width, 0.0, 0.49 * width], [0.0, 0.8 * width, 0.51 * height], [0.0, 0.0, 1.0]])
    spread, low = torch.tensor([40.0, 40.0, 3.0]), torch.tensor([-20.0, -20.0, -0.5])
    times = config.frame_gap * torch.arange(frames, dtype=torch.float64)
    clip = Clip(
        images=torch.randint(0, 256, (*shape, 3, height, width), dtype=torch.uint8, generator=generator),
        intrinsics=intrinsics.expand(*shape, 3, 3).clone(),
        ego_from_camera=torch.stack(mounts).expand(*shape, 4, 4).clone(),
        current_from_ego=torch.stack(earlier).expand(*shape[:2], 4, 4).clone(),
        timestamps=(1.5e9 + times).expand(*shape[:2]).clone(),
        points=torch.rand(*shape[:2], points, 3, generator=generator) * spread + low,
        num_points=torch.full(shape[:2], points),
        seeds=1000 * seed + torch.arange(batch),
        names=tuple(f"synthetic-{i}" for i in range(batch)),
        cameras=config.cameras,
    )
    clip.validate()
    return clip


def _yaw(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
