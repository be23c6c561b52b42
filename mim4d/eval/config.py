"""The settings of ``mim4d-eval``."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from ..bounds import check_bounds
from ..data.nuscenes import CAMERAS
from ..data.tables import LIDAR
from ..errors import UserError
from ..method.neck import NeckConfig
from ..optim import OptimConfig
from ..roots import check_root
from ..settings import NO_SPLIT, SPLITS, check_image_size
from ..world.config import DEMO_VERSION, DEMO_WORLD, WorldConfig
from .model import BEVConfig

PROBE = "probe"
"""The task without a trained head."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Train a small BEV model on a backbone's features, and score it on held-out samples.

    Settings come from the preset, then from the flags; later ones win. The output folder gets metrics.json, losses.json
    and picture.png; for det3d also the submission and the devkit's summary of it.

    To score several backbones and compare them, see mim4d-eval compare --help.
    """

    task: Literal["bev-seg", "det3d", "hd-map", "probe"]
    """bev-seg: IoU of vehicles and map layers; det3d: nuScenes' NDS and mAP; hd-map: Chamfer AP of vectorised lines;
    probe: depth, vehicles and drivable area by ridge regression on the frozen backbone, solved without training."""
    preset: Literal["demo", "gpu24"] = "gpu24"
    """Starting values of all other settings. gpu24: for one GPU of 24 GB; demo: for a CPU, the default for --data
    synthetic."""
    backbone: str = "resnet50"
    """A timm name (resnet50, convnext_tiny, mim4d_convnext_small), or the folder of a run or of its encoder/."""
    init: str = "pretrained"
    """Initial weights of the backbone. random; pretrained: those of --backbone in timm, on the Hub or in the folder; or
    other weights of the same architecture: a timm name, a Hub id, a file, a run or an encoder folder."""
    freeze: bool = False
    """Keep the backbone fixed, as --task probe always does. Otherwise it is trained too, at a lower learning rate."""
    data: Literal["nuscenes", "synthetic"] = "nuscenes"
    """nuscenes: a folder in nuScenes format; synthetic: a rendered world, made in a cache folder if it is missing."""
    dataroot: str = ""
    """Folder with tables (such as v1.0-trainval/), samples/ and maps/. Empty for synthetic data: the cache folder."""
    version: str = ""
    """Name of the folder of tables. Empty: v1.0-mini for synthetic data, else v1.0-trainval."""
    split: str = ""
    """Scenes to train on: an official split, or names of scenes separated by commas. Empty: the version's training
    split."""
    val_split: str = ""
    """Scenes to score on; det3d needs a split that the devkit knows. Empty: the version's validation split."""
    labels: float = 1.0
    """Fraction of the training samples to train on, above 0 and at most 1: 0.1 uses a tenth of them. --seed chooses
    the samples: one of each scene before a second of any. A larger fraction contains all samples of a smaller one."""
    min_visibility: int = 2
    """bev-seg and probe: ignore vehicles below this nuScenes visibility, 1 to 4, in training and scores. 2 ignores
    those that are less than 40 % visible (as Cross-View Transformers), 1 ignores none (as Lift-Splat-Shoot)."""
    cameras: tuple[str, ...] = CAMERAS
    """Channels of the cameras to use."""
    lidar: str = LIDAR
    """Channel of the LiDAR; labels are given at the times of its sweeps."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width in pixels, multiples of the coarsest stride; images are scaled to the width, cut at the top."""
    steps: int = 20000
    """Optimiser steps."""
    batch_size: int = 8
    """Samples per step."""
    turn: float = 22.5
    """Augmentation: rotate the bird's-eye view by up to this many degrees, and mirror it. 0: neither."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: mixed precision where it is safe; fp32: float32 everywhere."""
    seed: int = 0
    """Seed of everything random: initial weights, labels used, order of samples, augmentation."""
    workers: int = 8
    """Threads that read images in advance; 0 reads them in the main thread."""
    out: str = "runs/eval"
    """Output folder."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3, backbone_scale=0.2, weight_decay=0.05, warmup_steps=200, ema_decay=0.998
        )
    )
    model: BEVConfig = field(default_factory=BEVConfig)
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        check_bounds(self, {"steps": (1, math.inf), "seed": (0, math.inf), "batch_size": (1, 1024)})
        check_bounds(self, {"workers": (0, 1024), "turn": (0, 180), "min_visibility": (1, 4)})
        check_image_size(self.image_size)
        if not 0 < self.labels <= 1:
            raise ValueError(f"labels = {self.labels} must be above 0 and at most 1: it is a fraction")
        if self.optim.accumulate != 1:
            raise ValueError(f"optim.accumulate = {self.optim.accumulate} must be 1 here: set batch_size")
        if self.optim.stem_scale not in (None, 1):  # timm's models with features_only have no groups of layers
            raise ValueError(f"optim.stem_scale = {self.optim.stem_scale} must be 1 here: set optim.backbone_scale")


DEMO = EvalConfig(
    task="bev-seg",
    preset="demo",
    data="synthetic",
    version=DEMO_VERSION,
    world=DEMO_WORLD,
    image_size=(128, 352),
    steps=400,
    batch_size=4,
    precision="fp32",
    workers=1,
    optim=OptimConfig(lr=2e-3, backbone_scale=0.2, weight_decay=0.05, warmup_steps=20, clip_norm=10.0, ema_decay=0.99),
    model=BEVConfig(
        neck=NeckConfig(stages=(1, 2, 3), channels=64),
        levels=4,
        voxel_channels=32,
        coarse=2,
        channels=48,
    ),
)
"""For a CPU, on the world of mim4d-pretrain's demo."""

PRESETS = {"demo": DEMO, "gpu24": EvalConfig(task="bev-seg")}


SCRATCH, IMAGENET = "scratch", "imagenet"
"""Values of ``--with`` of ``mim4d-eval compare``."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to compare, and how."""

    backbones: tuple[str, ...]
    """Each a value of ``--backbone``, or ``NAME=WEIGHTS`` for ``--backbone NAME --init WEIGHTS``."""
    extra: tuple[str, ...] = ()
    """:data:`SCRATCH` and :data:`IMAGENET`: further rows for every architecture among the backbones."""
    labels: tuple[float, ...]
    """Fractions of the labelled samples."""
    seeds: int = 3
    """Number of seeds."""
    settings: EvalConfig
    """Of all cells; ``seed`` is the first seed. Backbone, init, labels and folder are set for each cell."""


OFFICIAL = {
    **dict.fromkeys(("val", "train", "train_detect", "train_track"), "trainval"),
    **dict.fromkeys(("mini_val", "mini_train"), "mini"),
}
"""Splits with annotations that the nuscenes-devkit scores, and how their version ends."""


def complete(config: EvalConfig) -> EvalConfig:
    """Fill in the settings that follow from others: version and splits.

    Raises:
        UserError: If settings contradict each other.
    """
    version = config.version or ("v1.0-mini" if config.data == "synthetic" else "v1.0-trainval")
    split, val_split = SPLITS.get(version, ("", ""))
    split, val_split = config.split or split, config.val_split or val_split
    if not config.out.strip():
        raise UserError("--out is empty: give the folder of the result, such as --out runs/eval")
    if config.data == "nuscenes" and not config.dataroot:
        raise UserError("--data nuscenes needs --dataroot, the folder in nuScenes format (or try --data synthetic)")
    check_root(
        config.data,
        config.dataroot,
        version,
        config.world,
        splits=[name for name in (split, val_split) if name and name != NO_SPLIT],
        cameras=config.cameras,
        lidar=config.lidar,
    )
    if config.data == "synthetic" and config.task == "det3d":
        official = [name for name in OFFICIAL if version.endswith(OFFICIAL[name])]
        if val_split not in official:
            raise UserError(
                f"--val-split {val_split}: the nuscenes-devkit scores det3d on {', '.join(official)} of {version} only"
            )
    if not split or not val_split or val_split == NO_SPLIT:
        raise UserError(f"--version {version} has no known splits: set --split to train on and --val-split to score on")
    freeze = config.freeze or config.task == PROBE
    return dataclasses.replace(config, version=version, split=split, val_split=val_split, freeze=freeze)
