"""The encoder folder: ``config.json`` and ``model.safetensors``, one file set for timm, for the Hub and for us.

``config.json`` has timm's form and names timm's architecture (``convnext_small``), so that timm alone loads it:
``timm.create_model("local-dir:FOLDER", pretrained=True)`` here, ``"hf-hub:ORG/NAME"`` once it is pushed. timm passes
over the entry ``mim4d``, where this package keeps the checksum of the weights and what is known of their making.
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
"""What our names have before timm's: ``mim4d_convnext_small``."""
_LARGEST = 1 << 20
"""Bytes that a config may have; one of ours has some 5,000."""
_PASSING = ("drop_rate", "drop_path_rate", "device", "dtype")
"""Arguments that a model was made with which are no part of what it computes."""


@dataclass(frozen=True)
class EncoderConfig:
    """What a ``config.json`` says."""

    values: dict[str, Any]

    @property
    def model(self) -> str:
        """Our name for the architecture; timm's, where it is none of ours."""
        plain = self.values["architecture"].removeprefix(FAMILY)
        return FAMILY + plain if timm.is_model(FAMILY + plain) else plain

    @property
    def about(self) -> dict[str, Any]:
        """timm's pretrained config: ``input_size``, ``mean``, ``std``, ``num_classes``, ``license``, ..."""
        return {**self.values["pretrained_cfg"], "num_classes": self.values.get("num_classes", 0)}

    @property
    def model_args(self) -> dict[str, Any]:
        """What to make the model with beside its name."""
        return self.values.get("model_args") or {}

    @property
    def provenance(self) -> dict[str, Any]:
        """What is known of the making: ``version``, ``sha256``, ``init``, ``data``, ``steps``, ...; may be empty."""
        return self.values.get("mim4d") or {}

    def with_license(self, license: str) -> "EncoderConfig":
        """The same with another licence."""
        return EncoderConfig({**self.values, "pretrained_cfg": {**self.values["pretrained_cfg"], "license": license}})

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.values, indent=2) + "\n"


def read_config(file: Path, what: str) -> EncoderConfig:
    """Read a ``config.json`` in timm's form.

    Args:
        file: The file.
        what: What to call it in messages.

    Raises:
        WeightsError: If it is not one, or an entry has another type or range than it may have.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise WeightsError(f"cannot read {what}: it is larger than {_LARGEST} bytes")
        values = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {what}: {first_line(error)}") from error
    except RecursionError as error:
        raise WeightsError(f"cannot read {what}: it is nested too deeply") from error
    return EncoderConfig(check_config(values, what))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def find_folder(path: Path) -> Path:
    """The encoder folder at a path: a run's ``encoder/``, or the folder itself.

    Raises:
        WeightsError: If there is none.
    """
    for folder in (path / "encoder", path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if not path.is_dir():
        raise WeightsError(f"there is no folder {path}")
    raise WeightsError(f"{path} holds no encoder: neither it nor its encoder/ has {CONFIG} and {WEIGHTS}")


def check_folder(folder: Path) -> EncoderConfig:
    """Read a folder's config and see that the weights beside it are the ones that it was written with.

    Raises:
        WeightsError: If they are not, or a file cannot be read.
    """
    config = read_config(folder / CONFIG, str(folder / CONFIG))
    check_weights(folder / WEIGHTS, config, str(folder / WEIGHTS))
    return config


def check_weights(file: Path, config: EncoderConfig, what: str) -> None:
    """See that a weights file is the one that its config was written with, as far as the config knows.

    Raises:
        WeightsError: If it is not.
    """
    expected = config.provenance.get("sha256")
    if not expected:
        return
    try:
        found = sha256_of(file)
    except OSError as error:
        raise WeightsError(f"cannot read {what}: {error}") from error
    if found != expected:
        raise WeightsError(
            f"{what} is not the file that its {CONFIG} was written with: sha256 {found[:12]}... in place of "
            f"{expected[:12]}...; it is damaged or was changed, get it again"
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
    """Write an encoder folder, whole or not at all.

    Args:
        encoder: Made by ``timm.create_model("mim4d_...")``.
        folder: Where to; replaced if it exists.
        image_size: (H, W) of training in pixels; None for what the model's config says.
        license: Of the weights, as the Hub names licences; None if it is not known.
        provenance: What made the weights, fit for JSON.
        half: Store float16, for half the size.
        card: A README.md to go with it, as it is.

    Raises:
        UserError: If the folder cannot be written, or timm alone could not build the model; what was there stays.
    """
    config = timm_config(encoder, image_size=image_size, license=license)
    tensors = {name: _stored(tensor, half) for name, tensor in encoder.state_dict().items()}
    written = json.loads(json.dumps({**config, "mim4d": {**(provenance or {}), "version": __version__}}))
    check_config(written, f"the encoder's {CONFIG}")  # what is written can be read
    _check_buildable(config, tensors)
    if problem := not_finite(tensors):
        raise UserError(f"cannot write the encoder: {problem}")

    def fill(partial: Path) -> None:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        about = {"version": __version__, "sha256": sha256_of(partial / WEIGHTS), **(provenance or {})}
        (partial / CONFIG).write_text(EncoderConfig({**config, "mim4d": about}).text(), encoding="utf-8")
        if card is not None:
            (partial / CARD).write_bytes(card)

    write_folder(folder, fill, "the encoder")


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def timm_config(encoder: nn.Module, *, image_size: tuple[int, int] | None, license: str | None) -> dict[str, Any]:
    """The encoder's ``config.json`` in timm's form.

    Raises:
        UserError: If the encoder was not made by name, or with arguments that JSON cannot hold.
    """
    made: Any = encoder
    about: dict[str, Any] | None = getattr(encoder, "pretrained_cfg", None)
    if about is None:
        raise UserError("this encoder has no name: make it with timm.create_model")
    # timm lays out a ViT's position embeddings for the size in its config.
    fixed = bool(about.get("fixed_input_size"))
    height, width = about["input_size"][1:] if fixed or not image_size else image_size
    model_args = {k: v for k, v in getattr(encoder, "model_args", {}).items() if k not in _PASSING}
    try:
        json.dumps(model_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"this encoder was made with arguments that {CONFIG} cannot hold: {error}") from error
    stem = next(part for part in encoder.modules() if isinstance(part, nn.Conv2d))
    pool = getattr(made, "global_pool", None)  # for some families the name, for others the module
    stride = max(stage["reduction"] for stage in made.feature_info)
    return {
        "architecture": about["architecture"].removeprefix(FAMILY),
        "num_classes": made.num_classes,
        "num_features": made.num_features,
        "global_pool": pool if isinstance(pool, str) else "avg",
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "tag": "mim4d",
            "custom_load": False,
            "input_size": [stem.in_channels, height, width],
            "fixed_input_size": fixed,
            "interpolation": about["interpolation"],
            "crop_pct": about["crop_pct"],
            "crop_mode": about["crop_mode"],
            "mean": list(about["mean"]),
            "std": list(about["std"]),
            "num_classes": made.num_classes,
            "pool_size": [height // stride, width // stride],
            "first_conv": about["first_conv"],
            "classifier": about["classifier"],
            **({"license": license} if license else {}),
        },
    }


def _check_buildable(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """See that timm's own architecture takes these tensors."""
    name, args = config["architecture"], config.get("model_args", {})
    with torch.device("meta"):
        plain = timm.create_model(
            name, num_classes=config["num_classes"], in_chans=config["pretrained_cfg"]["input_size"][0], **args
        )
    if problem := misfit(plain.state_dict(), tensors):
        raise UserError(f"this encoder is not timm's {name}, so timm alone could not load it: {problem}")
