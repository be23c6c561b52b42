"""Named settings that runs start from."""

from .config import MethodConfig, PretrainConfig
from .optim import OptimConfig

GPU24 = PretrainConfig()
"""The defaults."""

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
    method=MethodConfig(frozen=2),
)
"""arXiv 2403.08760's official recipe: 12 epochs of nuScenes train on 8 GPUs, a clip each."""

DEMO = PretrainConfig(
    preset="demo",
    data="synthetic",
    model="mim4d_convnext_atto",
    image_size=(96, 256),
    steps=300,
    batch_size=1,
    precision="fp32",
    workers=1,
    out="runs/demo",
    log_every=1,
    save_every=100,
    picture_every=50,
    eval_every=100,
    eval_clips=8,
    optim=OptimConfig(lr=2e-3, warmup_steps=20, clip_norm=10.0),
)
"""Minutes on 2 CPU cores."""

PRESETS = {config.preset: config for config in (DEMO, PAPER, GPU24)}
