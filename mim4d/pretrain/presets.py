"""Named settings that runs start from."""

from ..geometry import VoxelGrid
from ..method.lift import LiftConfig
from ..method.losses import LossConfig
from ..method.model import MethodConfig
from ..method.neck import NeckConfig
from ..method.render import RenderConfig
from ..optim import OptimConfig
from ..world.config import DEMO_VERSION, DEMO_WORLD
from .config import PretrainConfig

GPU24 = PretrainConfig()
"""The defaults."""

CAMERA = PretrainConfig(
    preset="camera",
    supervision="rgb",
    sweeps=True,
    frame_gap=0.2,
    batch_size=6,  # one frame of each clip is encoded, so as many images as GPU24
    method=MethodConfig(
        neck=NeckConfig(stages=(1, 2, 3)),
        loss=LossConfig(rgb=0.0, depth=0.0, consistency=4.0, rendered_gradient=0.0),
    ),
)
"""Cameras alone: the depth of the lift is supervised by what neighbouring frames and cameras saw. Nothing is rendered,
because the backbone learns nothing more by it; if it is, the gradient stays out of the backbone."""

PAPER = PretrainConfig(
    preset="paper",
    init="convnext_small.fb_in1k",  # the published start, SparK's weights on ImageNet-1k, is not in timm
    frames=4,
    frame_gap=1 / 12,  # neighbouring camera images
    sweeps=True,
    image_size=(448, 800),  # published: 450 x 800, padded to 480
    steps=12 * 28130 // 8,
    batch_size=1,
    precision="fp32",
    optim=OptimConfig(backbone_scale=0.1, stem_scale=1.0),
    method=MethodConfig(frozen=2, augment=False, neck=NeckConfig(stages=(3,))),
)
"""arXiv 2403.08760's official recipe on 8 GPUs, a clip each: as many steps as 12 epochs of nuScenes train's key
frames."""

DEMO = PretrainConfig(
    preset="demo",
    data="synthetic",
    model="mim4d_convnext_atto",
    image_size=(128, 352),
    steps=300,
    batch_size=1,
    precision="fp32",
    workers=1,
    out="runs/demo",
    log_every=1,
    save_every=100,
    picture_every=100,
    eval_every=100,
    eval_clips=6,
    optim=OptimConfig(lr=1.5e-3, warmup_steps=20, clip_norm=10.0),
    method=MethodConfig(
        drop_path=0.0,
        grid=VoxelGrid(x=(-40, 40), y=(-40, 40), z=(-2, 6), voxel=(1.25, 1.25, 1.0)),
        neck=NeckConfig(stages=(2, 3), channels=64),
        lift=LiftConfig(depth_range=(1.0, 45.0), depth_step=1.0, depth_channels=64, channels=16),
        render=RenderConfig(rays_per_view=64, uniform_samples=32, importance_samples=16),
        loss=LossConfig(lift_depth=4.0),  # probes of the encoder, depth R2 and vehicle AP: 63 and 18 %; without 57, 10
    ),
    version=DEMO_VERSION,
    world=DEMO_WORLD,
)
"""For a CPU."""

PRESETS = {config.preset: config for config in (CAMERA, DEMO, GPU24, PAPER)}
