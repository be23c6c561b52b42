"""Small clips with sane geometry and random pixels, and a small model for them."""

import math

import torch

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, make_pose
from mim4d.method.lift import LiftConfig
from mim4d.method.model import MIM4D, ModelConfig
from mim4d.method.neck import NeckConfig
from mim4d.method.render import RenderConfig
from mim4d.method.temporal import TemporalConfig

# The columns are the axes of a camera that looks forward (x right, y down, z forward) in the ego frame.
FORWARD = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def toy_grid() -> VoxelGrid:
    """48 x 48 x 6 m in voxels of 2 m: (Z, Y, X) = (3, 24, 24)."""
    return VoxelGrid(x=(-24, 24), y=(-24, 24), z=(-1, 5), voxel=(2, 2, 2))


def yaw(angle: float) -> torch.Tensor:
    """Rotation [3, 3] by ``angle`` radians about z, anticlockwise seen from above."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def toy_clip(
    clips: int = 2,
    frames: int = 3,
    cameras: int = 2,
    size: tuple[int, int] = (64, 96),
    points: int = 300,
    seed: int = 0,
    turn: float = 0.05,
) -> Clip:
    """A car that drives 2 m and turns ``turn`` radians a frame, every 0.5 s, with cameras all around it.

    Images are noise, a new one for each seed. LiDAR points lie within 20 m and from -0.5 to 2.5 m up.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = torch.randint(0, 256, (clips, frames, cameras, 3, height, width), dtype=torch.uint8, generator=generator)
    intrinsics = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
    mounts = [
        make_pose(yaw(2 * math.pi * v / cameras) @ FORWARD, torch.tensor([0.3 * v, 0.1 * v, 1.6]))
        for v in range(cameras)
    ]
    earlier = [
        make_pose(yaw(-turn * (frames - 1 - t)), torch.tensor([-2.0 * (frames - 1 - t), 0.0, 0.0]))
        for t in range(frames)
    ]
    spread, low = torch.tensor([40.0, 40.0, 3.0]), torch.tensor([-20.0, -20.0, -0.5])
    return Clip(
        images=images,
        intrinsics=intrinsics.expand(clips, frames, cameras, 3, 3).clone(),
        ego_from_camera=torch.stack(mounts).expand(clips, frames, cameras, 4, 4).clone(),
        current_from_ego=torch.stack(earlier).expand(clips, frames, 4, 4).clone(),
        timestamps=(1.5e9 + 0.5 * torch.arange(frames, dtype=torch.float64)).expand(clips, frames).clone(),
        points=torch.rand(clips, frames, points, 3, generator=generator) * spread + low,
        num_points=torch.full((clips, frames), points),
        seeds=1000 * seed + torch.arange(clips),
        names=tuple(f"toy-{seed}-{i}" for i in range(clips)),
        cameras=tuple(f"CAM_{v}" for v in range(cameras)),
    )


def toy_config(**changes) -> ModelConfig:
    """A model small enough for a step in a fraction of a second, nothing of it frozen or dropped at random."""
    small = {
        "encoder": "mim4d_convnext_atto",
        "frames": 3,
        "drop_path": 0.0,
        "frozen": 0,
        "grid": VoxelGrid(x=(-24, 24), y=(-18, 18), z=(-1, 5), voxel=(3, 3, 2)),  # (Z, Y, X) = (3, 12, 16)
        "neck": NeckConfig(stages=(2, 3), channels=32),
        "lift": LiftConfig(depth_range=(1, 29), depth_step=2, depth_channels=32, channels=16),
        "temporal": TemporalConfig(short_channels=32, long_channels=16),
        "render": RenderConfig(rays_per_view=16, uniform_samples=16, importance_samples=8, chunk=64),
    }
    return ModelConfig(**{**small, **changes})


def toy_model(seed: int = 0, **changes) -> MIM4D:
    """The model of :func:`toy_config`, seeded; its blocks count from the start (layer scale 1, not 1e-6)."""
    torch.manual_seed(seed)
    model = MIM4D(toy_config(**changes))
    for stage in model.encoder.stages:
        for block in stage.blocks:
            torch.nn.init.ones_(block.gamma)
    return model
