"""What the settings of all commands share: YAML files, splits, image sizes, names to suggest."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from .errors import UserError

Settings = TypeVar("Settings", bound=Any)

SPLITS = {"v1.0-trainval": ("train", "val"), "v1.0-mini": ("mini_train", "mini_val"), "v1.0-test": ("test", "none")}
"""Training and held-out split of each official version."""
NO_SPLIT = "none"
"""The held-out split that turns evaluation off."""
LARGEST_IMAGE = 8192
"""Pixels along a side."""


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known name that is most like ``name``; None if none is as like as ``likeness``, 0 to 1."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return near[0] if near else None


def check_image_size(image_size: tuple[int, int], patch: int = 1) -> None:
    """Check height and width.

    Args:
        image_size: (H, W) in pixels.
        patch: Both must be multiples of it.

    Raises:
        ValueError: If one is beyond :data:`LARGEST_IMAGE` pixels or no multiple, naming the nearest size that is valid.
    """
    height, width = image_size
    if max(image_size) > LARGEST_IMAGE:
        raise ValueError(f"image_size = {height} {width} must be at most {LARGEST_IMAGE} each")
    if min(image_size) < 1 or height % patch or width % patch:
        near = " ".join(str(max(patch, round(side / patch) * patch)) for side in image_size)
        raise ValueError(f"image_size = {height} {width}: both must be multiples of {patch}, such as {near}")


def preset_lines(preset: str, data: str, device: str) -> Iterator[str]:
    """Yield log lines about a preset: that it follows from the data, or is made for another device."""
    if preset == "demo" and data == "synthetic":
        yield "preset: demo, the default for --data synthetic; --preset gpu24 has the settings for one GPU"
    if preset == "camera":
        yield "preset: camera, the default without LiDAR: frames and cameras supervise each other"
    if preset != "demo" and device == "cpu":
        yield f"no GPU: --preset {preset} is made for one, --preset demo for a CPU"


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
    """Return the settings in a YAML file, not yet checked.

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
        raise UserError(f"{path} must hold settings, one `name: value` per line")
    return values


def overlay(base: Settings, values: dict[str, Any], source: Path) -> Settings:
    """Return the config with a file's settings in place of its own.

    Raises:
        UserError: If a key is unknown or a value is not of the field's type, naming both and the file.
    """
    merged = _merge(plain(dataclasses.asdict(base)), values, source)
    numbers: dict[Any, Any] = {float: _as_float}  # YAML 1.1 takes 4e-4 for text and 1 for an integer
    try:
        return dacite.from_dict(type(base), merged, dacite.Config(strict=True, cast=[tuple], type_hooks=numbers))
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
            near = nearest(str(key), base)
            remedy = f"did you mean {prefix}{near}?" if near else "see mim4d-pretrain --help"
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
