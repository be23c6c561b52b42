"""The settings of a run. Each can be set in a YAML file and on the command line."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import yaml

from ..backbones import NoMaskedForwardError
from ..backbones.pyramid import make_backbone, parts_of, patch_of, trained_parameters
from ..bounds import check_bounds
from ..clip import FRAMES
from ..data import DataConfig
from ..data.lidar import FLOATS_PER_POINT
from ..data.nuscenes import CAMERAS
from ..data.tables import LIDAR
from ..errors import UserError
from ..io.files import write_file
from ..method.model import MethodConfig, ModelConfig
from ..method.rays import Supervision
from ..optim import OptimConfig
from ..roots import check_root
from ..settings import NO_SPLIT, SPLITS, check_image_size, flatten, nearest, plain
from ..world.config import WorldConfig
from .trackers import PACKAGES, TENSORBOARD, check_trackers

SCRATCH = "scratch"
"""The value of ``init`` for random weights."""
GIVEN_SCALE, GIVEN_STEM = 0.3, 0.01
"""Defaults of ``optim.backbone_scale`` and ``optim.stem_scale`` for an encoder with initial weights.

In 400 steps on the synthetic world, an EfficientNet-Lite0 with ImageNet's weights gained 2.8 points of depth R2 with
them and kept its AP in a probe of vehicles. A rate of 0.1 at all layers gained 2.9 and cost 0.9 points of AP; 0.03
gained 1.9."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain an image backbone on multi-camera driving video in nuScenes format, by MIM4D."""

    preset: Literal["camera", "demo", "gpu24", "paper"] = "gpu24"
    """Starting values of all other settings. gpu24: for one GPU of 24 GB; camera: the same without LiDAR, the default
    for data that has none; demo: for a CPU, the default for --data synthetic; paper: as published, for 8 GPUs."""
    data: Literal["nuscenes", "synthetic"] = "nuscenes"
    """nuscenes: a folder in nuScenes format; synthetic: a rendered world, made in a cache folder if it is missing."""
    dataroot: str = ""
    """Folder with tables (such as v1.0-trainval/), samples/ and sweeps/. Empty for synthetic data: the cache folder."""
    version: str = ""
    """Name of the folder of tables. Empty: v1.0-mini for synthetic data, else v1.0-trainval."""
    split: str = ""
    """Scenes to train on: an official split, or names of scenes separated by commas. Empty: the version's training
    split."""
    val_split: str = ""
    """Held-out scenes to evaluate on. Empty: the version's validation split, if there is one; none: no evaluation."""
    model: str = "mim4d_convnext_small"
    """The encoder: mim4d_convnext_*, mim4d_convnextv2_*, mim4d_resnet*, or a timm CNN or ViT, such as resnet50."""
    init: str = SCRATCH
    """Initial weights: scratch, a timm name (convnext_base.dinov3_lvd1689m), a Hub id, a file, or a run's encoder/."""
    frames: int = FRAMES
    """Frames per clip; 1 turns the temporal part of the method off."""
    frame_gap: float = 0.5
    """Time from one frame to the next, seconds."""
    tolerance: float | None = None
    """Largest deviation of a frame from its nominal time, seconds. None: 0.4 of --frame-gap, 0.49 with --sweeps."""
    sweeps: bool = False
    """Use all camera images as frames (nuScenes: 12 per second), not only key frames (2 per second)."""
    cameras: tuple[str, ...] = CAMERAS
    """Channels of the cameras to use."""
    lidar: str = LIDAR
    """Channel of the LiDAR to use."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width in pixels, multiples of the patch (32); images are scaled to the width and cut at the top."""
    lidar_floats: int = FLOATS_PER_POINT
    """Floats per point in LiDAR files without a header (nuScenes: x, y, z, intensity, ring)."""
    supervision: Supervision = "rgbd"
    """rgbd: train on colour and LiDAR depth; rgb: train on images only, and use LiDAR, if there is any, only to score
    held-out clips."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: stop at a missing or broken file and name it; skip: use another clip instead, and count it."""
    steps: int = 30000
    """Optimiser steps of the whole run."""
    batch_size: int = 2
    """Clips per batch on each process."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: mixed precision where it is safe; fp32: float32 everywhere."""
    seed: int = 0
    """Seed of everything random: initial weights, order of clips, masks, rays."""
    workers: int = 6
    """Data-loading processes per training process, at most one per core; 0 loads data in the training process."""
    out: str = "runs/pretrain"
    """The run folder."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl. A row's values are those of its step."""
    log_with: str = TENSORBOARD
    """Where the rows go beside metrics.jsonl: tensorboard, wandb and mlflow, with commas."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always saves one."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    picture_every: int = 1000
    """Steps between pictures of a held-out clip, also at the last step. 0: no pictures."""
    eval_every: int = 1000
    """Steps between evaluations on held-out clips, also at the last step. 0: no evaluation."""
    probe_every: int = 0
    """Steps between probes of the encoder, as by mim4d-eval --task probe, on 24 training and 12 held-out samples; also
    at the last step. Needs annotated boxes. 0: no probes."""
    eval_clips: int = 64
    """Number of held-out clips to evaluate on: evenly spaced over the split, and always the same."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        check_bounds(self, dict.fromkeys(("steps", "log_every", "save_every", "keep", "eval_clips"), (1, math.inf)))
        check_bounds(self, dict.fromkeys(("seed", "picture_every", "eval_every", "probe_every"), (0, math.inf)))
        check_bounds(self, {"frame_gap": (0, math.inf)})
        check_bounds(self, {"batch_size": (1, 1024), "frames": (1, 1000), "workers": (0, 1024)})
        check_bounds(self, {"lidar_floats": (3, 64)})
        check_image_size(self.image_size)
        unknown = [name for name in self.trackers if name not in PACKAGES]
        if unknown or not self.trackers:
            raise ValueError(f"log_with = {self.log_with} must be one or more of {', '.join(PACKAGES)}, with commas")

    @property
    def trackers(self) -> list[str]:
        """The names in ``log_with``."""
        return [name.strip() for name in self.log_with.split(",") if name.strip()]

    def model_config(self) -> ModelConfig:
        """Return the settings of the model."""
        method = {f.name: getattr(self.method, f.name) for f in dataclasses.fields(MethodConfig)}
        return ModelConfig(encoder=self.model, frames=self.frames, supervision=self.supervision, **method)

    def data_config(self, split: str, *, lidar: bool | None = None) -> DataConfig:
        """Return the settings of the reader of one split.

        Args:
            split: Name of the split.
            lidar: Whether to read LiDAR; None: if it supervises.
        """
        # The time of a frame is that of its LiDAR sweep, in nuScenes every 50 ms. Sweeps of neighbouring images (83 ms
        # apart) are therefore up to 33 ms closer together or farther apart.
        tolerance = (0.49 if self.sweeps else 0.4) * self.frame_gap if self.tolerance is None else self.tolerance
        return DataConfig(
            dataroot=self.dataroot,
            version=self.version,
            split=split,
            frames=self.frames,
            gap=self.frame_gap,
            tolerance=tolerance,
            cameras=self.cameras,
            sweeps=self.sweeps,
            image_size=self.image_size,
            lidar=self.supervision == "rgbd" if lidar is None else lidar,
            lidar_floats=self.lidar_floats,
            lidar_name=self.lidar,
            on_error=self.on_error,
        )


def complete(config: PretrainConfig) -> PretrainConfig:
    """Fill in what follows from other settings: version, training split, the backbone's learning rate.

    Raises:
        UserError: If settings contradict each other.
    """
    version = config.version or ("v1.0-mini" if config.data == "synthetic" else "v1.0-trainval")
    split = config.split or SPLITS.get(version, ("", ""))[0]
    check_trackers(config.trackers)
    if not config.out.strip():
        raise UserError("--out is empty: give the run folder, such as --out runs/pretrain")
    if config.data == "nuscenes" and not config.dataroot:
        raise UserError("--data nuscenes needs --dataroot, the folder in nuScenes format (or try --preset demo)")
    splits = [name for name in (split, config.val_split) if name and name != NO_SPLIT]
    check_root(
        config.data,
        config.dataroot,
        version,
        config.world,
        splits=splits,
        cameras=config.cameras,
        lidar=config.lidar,
    )
    if config.data == "synthetic":
        _check_length(config)
    if not split:
        raise UserError(f"--version {version} is not an official one: name its training scenes with --split")
    _check_backbone(config)
    scratch = config.init == SCRATCH
    if scratch and config.method.frozen:
        raise UserError(
            "--method.frozen keeps initial weights, but --init scratch has none: set --init, or --method.frozen 0"
        )
    scale, stem = config.optim.backbone_scale, config.optim.stem_scale
    scale = (1.0 if scratch else GIVEN_SCALE) if scale is None else scale
    stem = (1.0 if scratch else GIVEN_STEM) if stem is None else stem
    optim = dataclasses.replace(config.optim, backbone_scale=scale, stem_scale=stem)
    return dataclasses.replace(config, version=version, split=split, optim=optim)


def _check_backbone(config: PretrainConfig) -> None:
    """Check the model's name, its masked forward, the image size and the number of frozen parts.

    Raises:
        UserError: If timm has no such model, it has no masked forward or fewer parts, or images are not whole patches.
    """
    name = config.model
    if not timm.is_model(name):
        near = nearest(name, timm.list_models(), likeness=0.4)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"--model {name}: timm has no such model{hint}")
    try:
        with torch.device("meta"):
            model = make_backbone(name)
        trained_parameters(model)
        check_image_size(config.image_size, patch_of(model))
        if config.method.frozen > (most := len(parts_of(model))):
            raise ValueError(f"method.frozen = {config.method.frozen} must be at most {most}, the parts of {name}")
    except NoMaskedForwardError as error:
        raise UserError(f"--model {name}: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_length(config: PretrainConfig) -> None:
    """Check that scenes of a synthetic world are long enough for a clip.

    Raises:
        UserError: If they are not.
    """
    longest = (config.world.keyframes - 1) * 0.5
    wanted = config.data_config(config.split)
    if (wanted.frames - 1) * wanted.gap - wanted.tolerance > longest + 0.1:  # sweeps are up to 0.1 s off
        raise UserError(
            f"--frames {wanted.frames} {wanted.gap:g} s apart do not fit into a scene of {longest:g} s: lower --frames "
            "or --frame-gap, or raise --world.keyframes"
        )


def held_out_split(config: PretrainConfig) -> str:
    """Return the split to evaluate on: the one set, else the version's; :data:`NO_SPLIT` if it has none."""
    return config.val_split or SPLITS.get(config.version, ("", NO_SPLIT))[1]


def save_config(config: PretrainConfig, path: Path) -> None:
    """Write a config atomically, as YAML that ``--config`` reads.

    Raises:
        UserError: If the file cannot be written.
    """
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    """Return a config as nested values that YAML and JSON can hold."""
    return plain(dataclasses.asdict(config))


MAY_CHANGE = {
    *("dataroot", "val_split", "on_error", "steps", "batch_size", "workers", "precision", "out", "keep"),
    *("log_every", "log_with", "save_every", "picture_every", "eval_every", "probe_every", "eval_clips"),
    *(f"optim.{field.name}" for field in dataclasses.fields(OptimConfig) if field.name != "ema_decay"),
}
"""Settings that a resumed run may change, because they change neither the model nor the data. With all of them
unchanged, the run resumes bit for bit. The product of batch size, accumulation and processes must stay the same, which
the checkpoint checks."""


def check_resumable(saved: PretrainConfig, now: PretrainConfig) -> None:
    """Check that a resumed run has the settings of the saved one.

    Raises:
        UserError: Naming the first setting that differs.
    """
    then = flatten(to_dict(saved))
    for name, value in flatten(to_dict(now)).items():
        if value != then[name] and name not in MAY_CHANGE:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"the run in {now.out} was started with {flag} {then[name]}, not {value}: leave {flag} out to "
                "resume it, or start another run with another --out"
            )
