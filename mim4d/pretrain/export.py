"""What a run is for: the encoder in a folder that plain timm loads."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt

from ..version import __version__
from .checkpoint import write_folder


def export_encoder(
    encoder: ConvNeXt, folder: Path, *, image_size: tuple[int, int], license: str | None, provenance: dict[str, Any]
) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all.

    ``timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True)`` reads them without this package.

    Args:
        encoder: Trained weights; its keys are timm's own.
        folder: Where to.
        image_size: (H, W) of training, pixels.
        license: Of the weights that training started from; None if there were none.
        provenance: What made the weights, fit for JSON; timm does not read it.

    Raises:
        UserError: If the folder cannot be written; what was there stays.
    """
    config = timm_config(encoder, image_size=image_size, license=license)
    config["mim4d"] = {"version": __version__, **provenance}

    def fill(partial: Path) -> None:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})

    write_folder(folder, fill, "the encoder")


def timm_config(encoder: ConvNeXt, *, image_size: tuple[int, int], license: str | None) -> dict[str, Any]:
    """The encoder's ``config.json`` in the form of ``timm.models.save_config_for_hf``.

    The architecture is timm's own (``convnext_small``), never ours, so that timm alone knows it.
    """
    about: dict[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]  # timm sets it from outside
    height, width = image_size
    return {
        "architecture": about["architecture"].removeprefix("mim4d_"),
        "num_classes": 0,
        "num_features": encoder.num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "mim4d",
            "custom_load": False,
            "input_size": [3, height, width],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(about["mean"]),
            "std": list(about["std"]),
            "num_classes": 0,
            "pool_size": [height // 32, width // 32],
            "first_conv": "stem.0",
            "classifier": "head.fc",
            **({"license": license} if license else {}),
        },
    }
