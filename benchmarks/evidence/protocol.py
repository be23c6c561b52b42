"""The protocol of the comparison: pretrainings, data, evaluations and sizes, which determine the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mim4d.eval.config import DEMO as EVALUATION
from mim4d.eval.config import EvalConfig
from mim4d.method.losses import LossConfig
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.presets import DEMO, GPU24
from mim4d.world import WorldConfig

Weights = Literal["imagenet", "scratch"]
"""Weights before the pretraining: ImageNet's of an EfficientNet-Lite0, or random ones of a ResNet-18."""
MODELS: Mapping[Weights, str] = {"imagenet": "tf_efficientnet_lite0", "scratch": "mim4d_resnet18"}

CONSISTENCY = LossConfig(rgb=0.0, depth=0.0, consistency=4.0)
Change = Callable[[PretrainConfig], PretrainConfig]


def _method(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    return replace(config, method=replace(config.method, **changes))


def _loss(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    return _method(config, loss=replace(config.method.loss, **changes))


def _rate(config: PretrainConfig, scale: float) -> PretrainConfig:
    """Give all layers of the backbone one learning rate."""
    return replace(config, optim=replace(config.optim, backbone_scale=scale, stem_scale=1.0))


def images(config: PretrainConfig) -> int:
    """Return how many images a step encodes."""
    encoded = config.frames if config.method.loss.renders else 1
    return config.batch_size * encoded * len(config.cameras)


def every_frame(config: PretrainConfig) -> PretrainConfig:
    """Encode every frame of a clip and not only the middle one, as rendering does, in batches of as many images."""
    return replace(config, batch_size=max(1, config.batch_size // config.frames))


PRETRAININGS: Mapping[str, Change] = {
    "colour": lambda config: _method(replace(config, frames=1), loss=LossConfig(rgb=10.0, depth=0.0)),
    "decoder": lambda config: _method(every_frame(config), loss=LossConfig(rgb=10.0, depth=0.0)),
    "camera": lambda config: config,
    "lidar": lambda config: replace(
        _method(every_frame(config), loss=LossConfig(rgb=10.0, depth=10.0, lift_depth=4.0)), supervision="rgbd"
    ),
}
"""Changes of the camera-only settings, by the name of the pretraining."""
ABLATIONS: Mapping[str, Change] = {
    "both": lambda config: _loss(every_frame(config), rgb=1.0, depth=10.0, rendered_gradient=1.0),
    "rendered": lambda config: _loss(every_frame(config), rgb=1.0, depth=10.0, rendered_gradient=0.0),
    "other": lambda config: _loss(every_frame(config), rgb=1.0, depth=10.0, rendered_gradient=1.0, other_rays=1.0),
    "plain": lambda config: _method(config, augment=False),
    "frames_2": lambda config: replace(config, frames=2),
    "frames_4": lambda config: replace(config, frames=4),
    "gap_10": lambda config: replace(config, frame_gap=0.1),
    "gap_50": lambda config: replace(config, frame_gap=0.5),
    "mask_0": lambda config: _method(config, mask_ratio=0.0),
    "mask_60": lambda config: _method(config, mask_ratio=0.6),
    "rate_3": lambda config: _rate(config, 0.03),
    "rate_10": lambda config: _rate(config, 0.1),
    "frozen_2": lambda config: _method(config, frozen=2),
    "rate_0": lambda config: _rate(config, 0.0),
}
"""Changes of one part of ``camera``, from ImageNet weights."""


@dataclass(frozen=True)
class Start:
    """Where the weights of a backbone come from."""

    weights: Weights
    pretraining: str = ""
    """A key of PRETRAININGS or ABLATIONS; empty for none."""

    @property
    def name(self) -> str:
        """Name in results and folders, such as imagenet-camera."""
        return f"{self.weights}-{self.pretraining}" if self.pretraining else self.weights

    def change(self, config: PretrainConfig) -> PretrainConfig:
        """Return the settings of the pretraining."""
        return {**PRETRAININGS, **ABLATIONS}[self.pretraining](config)


STARTS = [Start(weights, pretraining) for weights in MODELS for pretraining in ("", *PRETRAININGS)]
"""What is compared, with ``Size.seeds`` seeds each."""
ABLATED = [Start("imagenet", pretraining) for pretraining in ABLATIONS]
"""``camera`` with one change each, with one seed, scored by probes."""
EVERY = {start.name: start for start in (*STARTS, *ABLATED)}

Task = Literal["probe", "bev-seg", "det3d", "hd-map"]
Mode = Literal["frozen", "full"]


@dataclass(frozen=True)
class Cell:
    """One evaluation: task, frozen or fine-tuned backbone, fraction of labels."""

    task: Task
    mode: Mode
    labels: float

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.task}-{self.mode}-{100 * self.labels:g}"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes and settings of a whole comparison."""

    name: str
    pretraining: PretrainConfig
    """The camera-only settings; model, initial weights and seed are replaced in each run."""
    evaluation: Mapping[Task, EvalConfig]
    """Settings per task, without the steps; world, version and image size are those of the pretraining."""
    evaluation_steps: Mapping[float, int]
    """Steps by fraction of labels: more labels need more steps."""
    probes: tuple[Cell, ...] = (Cell("probe", "frozen", 1.0), Cell("probe", "frozen", 0.1))
    """Evaluations that need no training, of each of EVERY."""
    heads: tuple[Cell, ...]
    """Evaluations with a trained head, of each of STARTS; they begin when all probes are done."""
    seeds: int = 3


def _grid(tasks: Sequence[Task], modes: Sequence[Mode], labels: Sequence[float]) -> tuple[Cell, ...]:
    return tuple(Cell(task, mode, share) for share in labels for mode in modes for task in tasks)


_TASKS: tuple[Task, ...] = ("bev-seg", "det3d", "hd-map")
_CPU_EVALUATION = replace(EVALUATION, workers=0)
_COARSE = replace(_CPU_EVALUATION, precision="bf16", model=replace(EVALUATION.model, coarse=4))
CPU = Size(
    name="cpu",
    pretraining=replace(
        DEMO,
        supervision="rgb",
        frame_gap=0.2,
        sweeps=True,
        steps=400,
        batch_size=3,
        workers=0,
        log_every=10,
        save_every=50,
        keep=1,
        picture_every=0,
        eval_every=100,
        eval_clips=16,
        probe_every=100,
        method=replace(
            DEMO.method,
            loss=CONSISTENCY,
            neck=replace(DEMO.method.neck, stages=(1, 2, 3)),
            lift=replace(DEMO.method.lift, depth_range=(1.0, 61.0)),
        ),
        world=WorldConfig(scenes=80, keyframes=3, camera_rate=10.0, lidar_rate=10.0),
    ),
    evaluation={
        "probe": _CPU_EVALUATION,
        "bev-seg": _COARSE,
        "det3d": replace(_CPU_EVALUATION, task="det3d", precision="bf16"),
        # Not rotated: within few steps, the queries learn little more than where roads usually are.
        "hd-map": replace(_COARSE, task="hd-map", turn=0.0),
    },
    evaluation_steps={0.1: 700, 1.0: 1400},
    heads=_grid(_TASKS, ["frozen", "full"], [0.1, 1.0]),
)
"""Sized for 2 CPU cores."""

LONG = replace(
    CPU,
    name="long",
    pretraining=replace(CPU.pretraining, steps=2000, eval_every=250, probe_every=250),
    heads=(),
)
"""The CPU size with five times the steps: probes and depth over steps, without trained heads."""

GPU = Size(
    name="gpu",
    pretraining=replace(
        GPU24,
        data="synthetic",
        version="v1.0-trainval",
        supervision="rgb",
        frame_gap=0.2,
        sweeps=True,
        batch_size=12,
        steps=10000,
        log_every=100,
        picture_every=0,
        eval_every=1000,
        probe_every=1000,
        method=replace(GPU24.method, loss=CONSISTENCY, neck=replace(GPU24.method.neck, stages=(1, 2, 3))),
        world=WorldConfig(scenes=850, keyframes=5, scale=0.5, camera_rate=10.0, lidar_rate=10.0),
    ),
    evaluation={task: EvalConfig(task=task) for task in ("probe", *_TASKS)},
    evaluation_steps=dict.fromkeys((0.1, 1.0), 6000),
    heads=_grid(_TASKS, ["frozen", "full"], [0.1, 1.0]),
)
"""Sized for one GPU of at least 24 GB."""

SIZES = {size.name: size for size in (CPU, LONG, GPU)}
