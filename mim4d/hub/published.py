"""Weights with a timm name: ``timm.create_model("MODEL.TAG", pretrained=True)``."""

import json
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import WeightsError
from .folder import CONFIG, WEIGHTS

BASE_CFG: dict[str, Any] = dict(
    num_classes=0,
    input_size=(3, 256, 704),
    pool_size=(8, 22),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    license="apache-2.0",
    paper_ids="arXiv:2403.08760",
    paper_name="MIM4D: Masked Modeling with Multi-View Video for Autonomous Driving Representation Learning",
)
"""Entries of ``pretrained_cfg`` that all mim4d models share."""

PACKAGED = Path(__file__).parents[1] / "weights"
"""Weights in the package: one encoder folder per set, named ``MODEL.TAG``."""

RELEASED: dict[str, dict[str, Any]] = {
    # The authors' release of arXiv 2403.08760: an OpenMMLab checkpoint of a whole detector, converted on loading.
    "mim4d_convnext_small.uvtr_nuscenes": dict(
        hf_hub_id="hustvl/MIM4D",
        hf_hub_filename="uvtrs_mim4d_vs0.075/uvtrs_mim4d_vs0.075_pretrain.pth",
        input_size=(3, 480, 800),
        pool_size=(15, 25),
        license="cc-by-nc-sa-4.0",  # imposed by nuScenes, the training data
        origin_url="https://github.com/hustvl/MIM4D",
    ),
}
"""Weights on the Hub by ``MODEL.TAG``: entries of ``pretrained_cfg`` that differ from those of the model."""


def with_tags(model: str, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All configs of a model for ``timm.models.generate_default_cfgs``: one per tag, and one without weights.

    ``pretrained=True`` without a tag loads weights from the package. Released weights are loaded by tag only.

    Args:
        model: mim4d's name of the architecture.
        own: The model's config without weights.
    """
    packaged = {folder.name: _packaged(folder) for folder in sorted(PACKAGED.glob(f"{model}.*"))}
    released = {name: config for name, config in RELEASED.items() if name.startswith(f"{model}.")}
    tagged = {name: {**own, **config} for name, config in {**packaged, **released}.items()}
    # In timm, a star marks the default config, which may have no weights.
    return {**tagged, (model if packaged or not released else f"{model}.*"): own}


def is_ours(model: str, tag: str | None) -> bool:
    """Return whether a name means weights of the package or a release of the authors, which no hub replaces."""
    if tag is None:
        return any(PACKAGED.glob(f"{model}.*"))
    return (PACKAGED / f"{model}.{tag}").is_dir() or f"{model}.{tag}" in RELEASED


def _packaged(folder: Path) -> dict[str, Any]:
    """Entries of ``pretrained_cfg`` for weights in the package."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["pretrained_cfg"]
    del config["tag"]  # the folder's name has it
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    return {**values, "file": str(folder / WEIGHTS)}


def no_weights_error(model: str, tag: str | None) -> WeightsError:
    """Return the error of ``pretrained=True`` for a model or tag without weights."""
    which = f"{model}.{tag}" if tag else f"{model} without a tag"
    names = ", ".join(timm.list_models("mim4d_*", pretrained=True, include_tags=True))
    return WeightsError(
        f"there are no weights for {which}, only for {names}: pretrain your own with "
        f"`mim4d-pretrain --model {model} --data nuscenes --dataroot DIR --out RUN`, or set MIM4D_HUB to the "
        "organisation or folder where your team publishes"
    )
