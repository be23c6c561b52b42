"""The protocol of the comparison: initialisations, data, tasks and sizes, which determine the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mim4d.eval.config import DEMO as EVALUATION
from mim4d.eval.config import EvalConfig
from mim4d.method.model import MIM4D
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.presets import DEMO, GPU24
from mim4d.pretrain.trainer import Method
from mim4d.world import WorldConfig

from .methods import NoTemporalPath, Pixels, Timeless, Unwarped


@dataclass(frozen=True)
class Start:
    """How the initial weights of a backbone are pretrained."""

    change: Callable[[PretrainConfig], PretrainConfig] = lambda config: config
    """Changes MIM4D's settings."""
    method: Method = MIM4D
    """Builds the model."""


def _frames(config: PretrainConfig, frames: int) -> PretrainConfig:
    """Change the clip length but not the total number of images: adapt the batch size, then the steps if uneven."""
    images = config.frames * config.batch_size
    batch = max(1, round(images / frames))
    steps = round(config.steps * images / (frames * batch))
    return replace(config, frames=frames, batch_size=batch, steps=steps)


def _method(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    return replace(config, method=replace(config.method, **changes))


RANDOM = "random"
"""The initialisation without pretraining."""
STARTS: Mapping[str, Start] = {
    "pixels": Start(lambda config: _method(_frames(config, 1), mask_ratio=0.6), Pixels),
    "single": Start(lambda config: _frames(config, 1)),
    "mim4d": Start(),
}
"""Pretrainings that are compared with each other and with random weights, each with ``Size.seeds`` seeds."""
ABLATIONS: Mapping[str, Start] = {
    "whole": Start(),
    "no_temporal": Start(method=NoTemporalPath),
    "no_colour": Start(lambda config: _method(config, loss=replace(config.method.loss, rgb=0.0))),
    "no_depth": Start(lambda config: replace(config, supervision="rgb")),
    "no_warp": Start(method=Unwarped),
    "no_time": Start(method=Timeless),
    "mask_0": Start(lambda config: _method(config, mask_ratio=0.0)),
    "mask_60": Start(lambda config: _method(config, mask_ratio=0.6)),
    "frames_2": Start(lambda config: _frames(config, 2)),
    "frames_4": Start(lambda config: _frames(config, 4)),
}
"""MIM4D, whole and with one change each; pretrained for fewer steps than STARTS, because there are many."""
EVERY = {**STARTS, **ABLATIONS}

Task = Literal["bev-seg", "det3d", "hd-map"]
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
    """MIM4D's settings; the seed is replaced in each run."""
    evaluation: Mapping[Task, EvalConfig]
    """Settings per task, without the steps; world, version and image size are those of the pretraining."""
    evaluation_steps: Mapping[float, int]
    """Steps by fraction of labels: more labels need more steps."""
    cells: tuple[Cell, ...]
    """Evaluations of random weights and of each of STARTS."""
    ablation_steps: int
    """Pretraining steps of each of ABLATIONS."""
    ablation_cells: tuple[Cell, ...]
    """Evaluations of each of ABLATIONS."""
    seeds: int = 3
    """Seeds of random weights and of each of STARTS."""
    yardstick_seeds: int = 5
    """Seeds of random weights, which measure the spread due to seeds alone."""
    ablation_seeds: int = 1
    scored_clips: int = 32
    """Number of held-out clips for scores without labels."""

    def cells_of(self, start: str) -> tuple[Cell, ...]:
        """Return the evaluations of an initialisation."""
        return self.ablation_cells if start in ABLATIONS else self.cells


def _grid(tasks: Sequence[Task], modes: Sequence[Mode], labels: Sequence[float]) -> tuple[Cell, ...]:
    return tuple(Cell(task, mode, share) for share in labels for mode in modes for task in tasks)


_TASKS: tuple[Task, ...] = ("bev-seg", "det3d", "hd-map")
_CPU_EVALUATION = replace(EVALUATION, precision="bf16", workers=0)
_COARSE = replace(_CPU_EVALUATION, model=replace(EVALUATION.model, coarse=4))
CPU = Size(
    name="cpu",
    pretraining=replace(
        DEMO,
        model="mim4d_resnet18",  # trains faster from scratch on a CPU than the small ConvNeXts
        precision="bf16",
        steps=750,
        workers=0,
        log_every=10,
        save_every=50,
        keep=1,
        picture_every=0,
        eval_every=0,
        world=WorldConfig(scenes=160, keyframes=5),
    ),
    evaluation={
        "bev-seg": _COARSE,
        "det3d": replace(_CPU_EVALUATION, task="det3d"),
        # Not rotated: within few steps, the queries learn little more than where roads usually are.
        "hd-map": replace(_COARSE, task="hd-map", turn=0.0),
    },
    evaluation_steps={0.01: 700, 0.1: 700, 1.0: 1400},
    # Other fractions for bev-seg only, whose heads train fastest; 1 % of this world is six samples.
    cells=(*_grid(_TASKS, ["frozen", "full"], [0.1]), *_grid(["bev-seg"], ["frozen"], [1.0, 0.01])),
    ablation_steps=250,
    ablation_cells=(Cell("bev-seg", "frozen", 0.1), Cell("det3d", "frozen", 0.1)),
)
"""Sized for 2 CPU cores."""

GPU = Size(
    name="gpu",
    pretraining=replace(
        GPU24,
        data="synthetic",
        version="v1.0-trainval",
        model="mim4d_resnet50",
        batch_size=4,
        steps=12000,
        log_every=100,
        picture_every=0,
        eval_every=0,
        world=WorldConfig(scenes=850, keyframes=10, scale=0.5),
    ),
    evaluation={task: EvalConfig(task=task) for task in _TASKS},
    evaluation_steps=dict.fromkeys((0.01, 0.1, 1.0), 6000),
    cells=_grid(_TASKS, ["frozen", "full"], [0.1, 0.01, 1.0]),
    ablation_steps=4000,
    ablation_cells=_grid(_TASKS, ["frozen", "full"], [0.1]),
    scored_clips=128,
)
"""Sized for one GPU of at least 24 GB."""

SIZES = {size.name: size for size in (CPU, GPU)}
