"""The settings of a run: typed, readable from YAML, every one settable on the command line."""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite
import timm
import tyro
import yaml

from ..bounds import check_bounds
from ..data import DataConfig
from ..data.index import check_version
from ..data.lidar import FLOATS_PER_POINT
from ..data.nuscenes import CAMERAS
from ..data.tables import LIDAR
from ..errors import UserError
from .model import ModelConfig
from .neck import NeckConfig
from .optim import OptimConfig
from .rays import Supervision

SPLITS = {"v1.0-trainval": ("train", "val"), "v1.0-mini": ("mini_train", "mini_val"), "v1.0-test": ("test", "none")}
"""Training and held-out split of each official version."""
SCRATCH = "scratch"
"""The first weights that are random."""
LARGEST_IMAGE = 8192
"""Pixels along a side."""
NO_SPLIT = "none"
"""The held-out split that means: do not evaluate."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ModelConfig):
    """The method, see mim4d/pretrain/model.py."""

    # The run says these at its top level, where its reader and its data need them too.
    encoder: tyro.conf.Suppress[str] = "mim4d_convnext_small"
    frames: tyro.conf.Suppress[int] = 3
    supervision: tyro.conf.Suppress[Supervision] = "rgbd"
    frozen: int = 0
    """Parts of the encoder kept as they are, from the front: 0 none, 1 the stem, 2 the stem and first stage, ..."""
    neck: NeckConfig = field(default_factory=lambda: NeckConfig(stages=(2, 3)))
    """What the lift reads. At the published stride of 32 px it misses most voxels that are far away."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The world that --data synthetic makes once and keeps in a cache folder, see mim4d-world."""

    scenes: int = 10
    """Scenes, about a fifth of them held out; v1.0-mini has names for 10."""
    keyframes: int = 12
    """Key frames a scene, 0.5 s apart."""
    scale: float = 0.25
    """Size of the images, as a share of 1600x900 pixels."""
    camera_rate: float = 2.0
    """Pictures a second of each camera, Hz; 2 are key frames alone, 12 is nuScenes'."""
    lidar_rate: float = 2.0
    """LiDAR sweeps a second, Hz; 2 are key frames alone, 20 is nuScenes'."""
    seed: int = 0
    """Another seed, another world."""

    def __post_init__(self) -> None:
        # The world itself would name it as --seed, which is the run's.
        if self.seed < 0:
            raise ValueError(f"world.seed = {self.seed} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain an image backbone on multi-camera driving video in nuScenes format, by MIM4D."""

    preset: Literal["demo", "paper", "gpu24"] = "gpu24"
    """What the other settings start from: demo, made for a CPU, the default for --data synthetic; paper, as published,
    for 8 GPUs; gpu24, for one GPU of 24 GB."""
    data: Literal["nuscenes", "synthetic"] = "nuscenes"
    """nuscenes: a folder in nuScenes format; synthetic: a drawn world, made in a cache folder when it is missing."""
    dataroot: str = ""
    """The folder that holds the version's tables, samples/ and sweeps/. Synthetic: empty for the cache folder."""
    version: str = ""
    """The folder of tables, such as v1.0-trainval. Empty: v1.0-mini for synthetic data, else v1.0-trainval."""
    split: str = ""
    """Scenes to learn from: an official split or scene names with commas. Empty: the version's training split."""
    val_split: str = ""
    """Scenes held out to evaluate on. Empty: the version's validation split, where it is there; none: nothing."""
    model: str = "mim4d_convnext_small"
    """The encoder: mim4d_convnext_{atto to large}, mim4d_convnextv2_{atto to base}, mim4d_resnet{18,34,50,101}."""
    init: str = SCRATCH
    """First weights: scratch, a timm name (convnext_base.dinov3_lvd1689m), a Hub id, a file, or a run's encoder/."""
    frames: int = 3
    """Frames a clip; 1 leaves the temporal half of the method out."""
    frame_gap: float = 0.5
    """Time from one frame to the next, seconds."""
    tolerance: float | None = None
    """How far a frame may be from its wanted time, seconds; None: 0.4 of frame_gap, 0.49 with sweeps."""
    sweeps: bool = False
    """Take frames from all camera images, not keyframes alone (nuScenes: 12 a second in place of 2)."""
    cameras: tuple[str, ...] = CAMERAS
    """Cameras to use, by their channel's name."""
    lidar: str = LIDAR
    """LiDAR to use, by its channel's name."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width in pixels, multiples of 32: images are scaled to the width, then rows are cut from the top."""
    lidar_floats: int = FLOATS_PER_POINT
    """Floats per point in LiDAR files without a header (nuScenes: x, y, z, intensity, ring)."""
    supervision: Supervision = "rgbd"
    """rgbd: learn from colour and LiDAR depth; rgb: from colour alone, no LiDAR is read."""
    on_error: Literal["raise", "skip"] = "raise"
    """A missing or broken file: stop and name it, or take another clip instead and count."""
    steps: int = 30000
    """Optimiser steps of the whole run."""
    batch_size: int = 2
    """Clips a batch, a process."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: mixed precision, where it is safe."""
    seed: int = 0
    """Of everything random: first weights, order of clips, masks, rays."""
    workers: int = 6
    """Processes, for each training process, that read data; 0 reads in the training process."""
    out: str = "runs/pretrain"
    """The run folder."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl. A row's values are those of its step."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always makes one."""
    keep: int = 2
    """Newest checkpoints that stay."""
    picture_every: int = 1000
    """Steps between pictures of one held-out clip; the last step makes one too. 0: none."""
    eval_every: int = 1000
    """Steps between evaluations on held-out clips; the last step makes one too. 0: none."""
    eval_clips: int = 64
    """Held-out clips to evaluate on, evenly spaced over the split, the same each time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    world: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        check_bounds(self, dict.fromkeys(("steps", "log_every", "save_every", "keep", "eval_clips"), (1, math.inf)))
        check_bounds(self, dict.fromkeys(("seed", "picture_every", "eval_every", "frame_gap"), (0, math.inf)))
        check_bounds(self, {"batch_size": (1, 1024), "frames": (1, 1000), "workers": (0, 1024)})
        check_bounds(self, {"lidar_floats": (3, 64)})
        check_image_size(self.image_size)

    def model_config(self) -> ModelConfig:
        """What the model is built from."""
        own = {f.name: getattr(self.method, f.name) for f in dataclasses.fields(ModelConfig)}
        return ModelConfig(**own | {"encoder": self.model, "frames": self.frames, "supervision": self.supervision})

    def data_config(self, split: str) -> DataConfig:
        """What one split's reader is built from."""
        # A frame is where its sweep is, in nuScenes every 50 ms: those of neighbouring images (83 ms) are up to 33 ms
        # closer together or farther apart.
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
            lidar=self.supervision == "rgbd",
            lidar_floats=self.lidar_floats,
            lidar_name=self.lidar,
            on_error=self.on_error,
        )


def check_image_size(image_size: tuple[int, int]) -> None:
    """Check height and width.

    Raises:
        ValueError: If one is beyond :data:`LARGEST_IMAGE` pixels.
    """
    if max(image_size) > LARGEST_IMAGE:
        raise ValueError(f"image_size = {image_size[0]} {image_size[1]} must be at most {LARGEST_IMAGE} each")


def check_root(
    kind: str,
    dataroot: str,
    version: str,
    world: SyntheticConfig,
    *,
    splits: Sequence[str],
    cameras: Sequence[str],
    lidar: str,
) -> None:
    """Check what is quick to check of the data: the version's folder, or the settings of a synthetic world.

    Args:
        kind: ``nuscenes`` or ``synthetic``.
        dataroot: The root.
        version: Of its tables.
        world: What a synthetic root holds.
        splits: Those that must have scenes in a synthetic world.
        cameras: Those that it must have.
        lidar: The LiDAR that it must have.

    Raises:
        UserError: If the root has no such version, or the world cannot be or lacks something.
    """
    root = Path(dataroot).expanduser()
    if kind == "synthetic":
        from ..world.make import WorldConfig  # slow to import, and seldom needed

        drawn = WorldConfig(version=version, **dataclasses.asdict(world))
        drawn.check()
        for split in splits:
            drawn.check_split(split)
        for flag, names, known in (("--cameras", cameras, CAMERAS), ("--lidar", [lidar], (LIDAR,))):
            lacking = [name for name in names if name not in known]
            if lacking:
                raise UserError(f"{flag} {' '.join(lacking)}: a synthetic world has {', '.join(known)}")
    elif root.is_dir():
        check_version(root, version)


def complete(config: PretrainConfig) -> PretrainConfig:
    """Fill in what follows from other settings: version, training split, the backbone's learning rate.

    Raises:
        UserError: If settings do not go together.
    """
    version = config.version or ("v1.0-mini" if config.data == "synthetic" else "v1.0-trainval")
    split = config.split or SPLITS.get(version, ("", ""))[0]
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
    known = timm.list_models("mim4d_*")
    if config.model not in known:
        near = difflib.get_close_matches(config.model, known, n=1, cutoff=0.4) or ["mim4d_convnext_small"]
        raise UserError(f"--model {config.model}: not one of mim4d's encoders; did you mean {near[0]}?")
    scratch = config.init == SCRATCH
    if scratch and config.method.frozen:
        raise UserError("--method.frozen keeps first weights, but --init scratch has none: give --init, or frozen 0")
    scale = config.optim.backbone_scale
    optim = dataclasses.replace(config.optim, backbone_scale=(1.0 if scratch else 0.1) if scale is None else scale)
    return dataclasses.replace(config, version=version, split=split, optim=optim)


def preset_lines(preset: str, data: str, device: str) -> Iterator[str]:
    """What to know of a preset: that it follows from the data, and that it is made for another device."""
    if preset == "demo" and data == "synthetic":
        yield "preset: demo, the default for --data synthetic; --preset gpu24 has the settings for one GPU"
    if preset != "demo" and device == "cpu":
        yield f"no GPU: --preset {preset} is made for one, --preset demo for a CPU"


def _check_length(config: PretrainConfig) -> None:
    """Check that scenes of a synthetic world are long enough for a clip.

    Raises:
        UserError: If none can be.
    """
    longest = (config.world.keyframes - 1) * 0.5
    wanted = config.data_config(config.split)
    if (wanted.frames - 1) * wanted.gap - wanted.tolerance > longest + 0.1:  # sweeps are up to 0.1 s off
        raise UserError(
            f"--frames {wanted.frames} {wanted.gap:g} s apart do not fit into a scene of {longest:g} s: lower --frames "
            "or --frame-gap, or raise --world.keyframes"
        )


def held_out_split(config: PretrainConfig) -> str:
    """The split to evaluate on: the one asked for, else the version's own; :data:`NO_SPLIT` if it has none."""
    return config.val_split or SPLITS.get(config.version, ("", NO_SPLIT))[1]


def save_config(config: PretrainConfig, path: Path) -> None:
    """Write a config so that :func:`read_config` gives it back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    """A config as nested plain values, fit for YAML and JSON."""
    values = plain(dataclasses.asdict(config))
    for name in _SET_ABOVE:
        del values["method"][name]
    return values


_SET_ABOVE = {"encoder": "model", "frames": "frames", "supervision": "supervision"}
"""Fields of ``method`` that the run sets from its own."""


def plain(value: Any) -> Any:
    """Nested values with lists for tuples, fit for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, not yet checked.

    Raises:
        UserError: If it is missing or is not a mapping in YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, or nested too deeply
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold settings, one `name: value` a line")
    return values


def overlay(base: PretrainConfig, values: dict[str, Any], source: Path) -> PretrainConfig:
    """The config with a file's settings in place of its own.

    Raises:
        UserError: If a key is unknown or a value is not of the field's type, naming both and the file.
    """
    merged = _merge(to_dict(base), values, source)
    numbers: dict[Any, Any] = {float: _as_float}  # YAML 1.1 takes 4e-4 for text and 1 for an integer
    try:
        return dacite.from_dict(PretrainConfig, merged, dacite.Config(strict=True, cast=[tuple], type_hooks=numbers))
    except dacite.WrongTypeError as error:
        raise UserError(
            f"{source}: {error.field_path} = {error.value!r} is not of type {_type_name(error.field_type)}"
        ) from error
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def _merge(base: dict[str, Any], values: dict[str, Any], source: Path, prefix: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in base:
            near = difflib.get_close_matches(str(key), base, n=1)
            remedy = f"did you mean {prefix}{near[0]}?" if near else "see mim4d-pretrain --help"
            if prefix == "method." and key in _SET_ABOVE:
                remedy = f"set {_SET_ABOVE[key]} at the top level instead"
            raise UserError(f"{source}: unknown key {name}; {remedy}")
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {name} must hold settings of its own, not {value!r}")
            value = _merge(base[key], value, source, f"{name}.")
        merged[key] = value
    return merged


def _as_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return float(value)


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind).replace("typing.", "")


MAY_CHANGE = {
    *("dataroot", "val_split", "on_error", "steps", "batch_size", "workers", "precision", "out", "keep"),
    *("log_every", "save_every", "picture_every", "eval_every", "eval_clips"),
    *(f"optim.{field.name}" for field in dataclasses.fields(OptimConfig) if field.name != "ema_decay"),
}
"""Settings that a resumed run may change: none of them makes another model or other data. What is left alone goes on
bit for bit; the product of batch, accumulation and processes must stay, see the checkpoint."""


def check_resumable(saved: PretrainConfig, now: PretrainConfig) -> None:
    """Refuse to go on with another run's settings.

    Raises:
        UserError: Naming the first setting that differs.
    """
    then = flatten(to_dict(saved))
    for name, value in flatten(to_dict(now)).items():
        if value != then[name] and name not in MAY_CHANGE:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"the run in {now.out} was started with {flag} {then[name]}, not {value}: leave {flag} out to go on "
                "with it, or start another run with another --out"
            )
