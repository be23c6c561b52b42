"""The encoder folder: ``config.json`` and ``model.safetensors``, the files that timm, the Hub and mim4d share.

``config.json`` has timm's format and timm's name of the architecture (``convnext_small``), so timm loads the folder
without mim4d: ``timm.create_model("local-dir:FOLDER", pretrained=True)``, or ``"hf-hub:ORG/NAME"`` once it is pushed.
timm ignores the entry ``mim4d``, where this package stores the checksum of the weights and how they were trained.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError, WeightsError
from ..io.files import sha256_of, write_folder
from ..io.tensors import first_line, misfit, not_finite
from ..version import __version__
from .schema import check_config

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
FAMILY = "mim4d_"
"""Prefix of timm's name in mim4d's names: ``mim4d_convnext_small``."""
_MAX_CONFIG = 1 << 20
"""Largest size of a config in bytes; typical ones have 5,000."""
_TRAINING_ARGS = ("drop_rate", "drop_path_rate", "device", "dtype")
"""Arguments of a model that do not change what it computes in evaluation mode."""


@dataclass(frozen=True)
class EncoderConfig:
    """The contents of a ``config.json``."""

    values: dict[str, Any]

    @property
    def model(self) -> str:
        """mim4d's name of the architecture, such as ``mim4d_convnext_small``; timm's name if mim4d has none."""
        plain = self.values["architecture"].removeprefix(FAMILY)
        return FAMILY + plain if timm.is_model(FAMILY + plain) else plain

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's pretrained config: ``input_size``, ``mean``, ``std``, ``num_classes``, ``license``, ..."""
        return {**self.values["pretrained_cfg"], "num_classes": self.values.get("num_classes", 0)}

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the model beside its name."""
        return self.values.get("model_args") or {}

    @property
    def provenance(self) -> dict[str, Any]:
        """How the weights were made: ``version``, ``sha256``, ``init``, ``data``, ``steps``, ...; may be empty."""
        return self.values.get("mim4d") or {}

    def with_license(self, license: str) -> "EncoderConfig":
        """Return a copy with another licence."""
        return EncoderConfig({**self.values, "pretrained_cfg": {**self.values["pretrained_cfg"], "license": license}})

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.values, indent=2) + "\n"


def read_config(file: Path, source: str) -> EncoderConfig:
    """Read and check a ``config.json`` in timm's format.

    Args:
        file: The file.
        source: Name of the file for error messages.

    Raises:
        WeightsError: If the file cannot be read, or an entry has a wrong type or is out of range.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_CONFIG + 1)
        if len(content) > _MAX_CONFIG:
            raise WeightsError(f"cannot read {source}: it is larger than {_MAX_CONFIG} bytes")
        values = json.loads(content.decode("utf-8"), parse_constant=_reject_constant)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {source}: {first_line(error)}") from error
    except RecursionError as error:
        raise WeightsError(f"cannot read {source}: it is nested too deeply") from error
    return EncoderConfig(check_config(values, source))


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def find_folder(path: Path) -> Path:
    """Return the encoder folder at a path: the folder ``encoder/`` of a run, or the path itself.

    Raises:
        WeightsError: If neither holds an encoder.
    """
    for folder in (path / "encoder", path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if not path.is_dir():
        raise WeightsError(f"no such folder: {path}")
    raise WeightsError(f"no encoder in {path}: expected {CONFIG} and {WEIGHTS} there or in {path / 'encoder'}")


def check_folder(folder: Path) -> EncoderConfig:
    """Read a folder's config and compare the weights beside it with their checksum.

    Raises:
        WeightsError: If the checksum is wrong or a file cannot be read.
    """
    config = read_config(folder / CONFIG, str(folder / CONFIG))
    check_weights(folder / WEIGHTS, config, str(folder / WEIGHTS))
    return config


def check_weights(file: Path, config: EncoderConfig, source: str) -> None:
    """Compare a file of weights with the checksum in its config, if there is one.

    Args:
        file: The weights.
        config: The config that was written with them.
        source: Name of the file for error messages.

    Raises:
        WeightsError: If the checksum is wrong or the file cannot be read.
    """
    expected = config.provenance.get("sha256")
    if not expected:
        return
    try:
        found = sha256_of(file)
    except OSError as error:
        raise WeightsError(f"cannot read {source}: {error}") from error
    if found != expected:
        raise WeightsError(
            f"{source} was damaged or changed: its sha256 is {found[:12]}..., {CONFIG} expects {expected[:12]}...; "
            "download or copy it again"
        )


def save_encoder(
    encoder: nn.Module,
    folder: Path,
    *,
    image_size: tuple[int, int] | None = None,
    license: str | None = None,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
    card: bytes | None = None,
) -> None:
    """Write an encoder folder atomically.

    Args:
        encoder: A model from ``timm.create_model``.
        folder: The target; replaced if it exists.
        image_size: (H, W) of the training images in pixels; None for that of the model's config.
        license: Of the weights, as the Hub names licences; None if it is unknown.
        provenance: How the weights were made, as JSON types.
        half: Store float16, in half the size.
        card: Content of a README.md to store with the encoder.

    Raises:
        UserError: If the folder cannot be written, which leaves its old content, or timm could not build the model.
    """
    config = timm_config(encoder, image_size=image_size, license=license)
    tensors = {name: _stored(tensor, half) for name, tensor in encoder.state_dict().items()}
    written = json.loads(json.dumps({**config, "mim4d": {**(provenance or {}), "version": __version__}}))
    check_config(written, f"the encoder's {CONFIG}")  # never write what cannot be read again
    _check_buildable(config, tensors)
    if problem := not_finite(tensors):
        raise UserError(f"cannot write the encoder: {problem}")

    def fill(partial: Path) -> None:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        made = {"version": __version__, "sha256": sha256_of(partial / WEIGHTS), **(provenance or {})}
        (partial / CONFIG).write_text(EncoderConfig({**config, "mim4d": made}).text(), encoding="utf-8")
        if card is not None:
            (partial / CARD).write_bytes(card)

    write_folder(folder, fill, "the encoder")


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def timm_config(encoder: nn.Module, *, image_size: tuple[int, int] | None, license: str | None) -> dict[str, Any]:
    """Return the ``config.json`` of an encoder, in timm's format.

    Args:
        encoder: A model from ``timm.create_model``.
        image_size: As in :func:`save_encoder`.
        license: As in :func:`save_encoder`.

    Raises:
        UserError: If the encoder is not from ``timm.create_model``, or has arguments that JSON cannot represent.
    """
    model: Any = encoder
    cfg: dict[str, Any] | None = getattr(encoder, "pretrained_cfg", None)
    if cfg is None:
        raise UserError(f"cannot save this {type(encoder).__name__}: create it with timm.create_model")
    # timm lays out a ViT's position embeddings for the size in its config.
    fixed = bool(cfg.get("fixed_input_size"))
    height, width = cfg["input_size"][1:] if fixed or not image_size else image_size
    model_args = {k: v for k, v in getattr(encoder, "model_args", {}).items() if k not in _TRAINING_ARGS}
    try:
        json.dumps(model_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot store an argument of this encoder in {CONFIG}: {error}") from error
    stem = next(part for part in encoder.modules() if isinstance(part, nn.Conv2d))
    pool = getattr(model, "global_pool", None)  # some families store its name, others the module
    stride = max(stage["reduction"] for stage in model.feature_info)
    return {
        "architecture": cfg["architecture"].removeprefix(FAMILY),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": pool if isinstance(pool, str) else "avg",
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "tag": "mim4d",
            "custom_load": False,
            "input_size": [stem.in_channels, height, width],
            "fixed_input_size": fixed,
            "interpolation": cfg["interpolation"],
            "crop_pct": cfg["crop_pct"],
            "crop_mode": cfg["crop_mode"],
            "mean": list(cfg["mean"]),
            "std": list(cfg["std"]),
            "num_classes": model.num_classes,
            "pool_size": [height // stride, width // stride],
            "first_conv": cfg["first_conv"],
            "classifier": cfg["classifier"],
            **({"license": license} if license else {}),
        },
    }


def _check_buildable(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Check that timm's own model of this config has these tensors."""
    name, args = config["architecture"], config.get("model_args", {})
    with torch.device("meta"):
        plain = timm.create_model(
            name, num_classes=config["num_classes"], in_chans=config["pretrained_cfg"]["input_size"][0], **args
        )
    if problem := misfit(plain.state_dict(), tensors):
        raise UserError(f"cannot save this encoder, because timm could not load it as a {name}: {problem}")
