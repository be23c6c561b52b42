"""The model card: what the Hub shows and what a user must know, made from ``config.json`` alone.

The same encoder gives the same card to the letter, so that pushing it again changes nothing.
"""

import dataclasses
import re
from typing import Any

import timm
from huggingface_hub import ModelCardData
from huggingface_hub.utils import yaml_dump
from timm.models import PretrainedCfg

from .folder import EncoderConfig
from .licensing import NUSCENES, OFFICIAL_VERSIONS, hub_metadata

TAGS = ["image-feature-extraction", "timm", "mim4d", "autonomous-driving", "self-supervised-learning", "bird-eye-view"]
PIPELINE = "image-feature-extraction"
_PAPER = "[arXiv 2403.08760](https://arxiv.org/abs/2403.08760)"
DEPTH = ("_depth", "_abs_rel", "_delta", "_depth_hidden", "_depth_visible")
"""How the names of depth's measures end."""
_MEASURES = {
    "loss": "loss",
    "rgb": "colour, mean absolute error of 0..1",
    "depth": "depth, mean absolute error in metres",
    "psnr": "colour, PSNR in dB",
    "abs_rel": "depth, mean relative error",
    "delta": "depth, share within a factor of 1.25",
    "hidden": "the same of rays through hidden patches alone",
    "visible": "the same of rays through visible patches alone",
}


def make_card(config: EncoderConfig, repo: str | None = None) -> str:
    """A model card in Markdown with the Hub's metadata.

    Args:
        config: Of the encoder folder.
        repo: ``org/name``, for the lines of code in it; None for a folder that is not published.
    """
    about = config.provenance
    parts = [
        f"---\n{_metadata(config).to_yaml()}\n---",
        f"# {repo.partition('/')[2] if repo else config.model}",
        _summary(config),
        "## Use\n\n" + _use(config, repo),
        "## Training\n\n" + _training(about),
        *(["## Measured in training\n\n" + table] if (table := _measured(about)) else []),
        "## Limits\n\n" + _limits(config),
        "## Licence\n\n" + _licence(config.about.get("license"), about),
        *(["## Settings\n\n" + _settings(about["settings"])] if about.get("settings") else []),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(config: EncoderConfig) -> ModelCardData:
    about = config.provenance
    license: dict[str, Any] = hub_metadata(config.about.get("license"))
    return ModelCardData(
        library_name="timm",
        pipeline_tag=PIPELINE,
        tags=TAGS,
        **license,
        datasets=_datasets(about) or None,
        base_model=_base_model(about.get("init") or ""),
    )


def _base_model(init: str) -> str | None:
    """The repository of the first weights, where they are of one: a Hub id, or a timm name with a tag."""
    if "/" in init:
        return init.removeprefix("hf-hub:").partition("@")[0]
    return f"timm/{init}" if re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", init) and timm.is_model(init) else None


def _datasets(about: dict[str, Any]) -> list[str]:
    if about.get("data") == "synthetic":
        return ["mim4d-world"]
    # The Hub's name of nuScenes itself; a fleet's own recordings come in its format as well.
    return ["nuscenes"] if about.get("dataset") in OFFICIAL_VERSIONS else []


def _summary(config: EncoderConfig) -> str:
    about = config.provenance
    name = f"timm's `{config.values['architecture']}`, `{config.model}` in mim4d"
    what = f"An image backbone for driving perception ({name})"
    settings = about.get("settings") or {}
    seen = "colour" if settings.get("supervision") == "rgb" else "colour and depth"
    if settings.get("frames") == 1:
        return (
            f"{what}, pretrained without labels on single frames of several cameras, by the spatial half of MIM4D "
            f"({_PAPER}), which is much like UniPAD: patches are hidden, and {seen} rendered from what is left."
        )
    if "steps" in about:
        return (
            f"{what}, pretrained without labels on multi-camera video by MIM4D ({_PAPER}): patches are hidden in "
            f"space, a whole frame is dropped in time, and what is missing is rendered back in {seen}."
        )
    if "converted_from" in about:
        return f"{what}, taken out of the checkpoint `{about['converted_from']}` and renamed for timm."
    return f"{what}."


def _use(config: EncoderConfig, repo: str | None) -> str:
    where = f"hf-hub:{repo}" if repo else "local-dir:FOLDER"
    about = {**dataclasses.asdict(PretrainedCfg()), **config.about}  # what timm supposes where nothing is said
    channels, height, width = about["input_size"]
    mean, std = (", ".join(f"{value:g}" for value in about[what]) for what in ("mean", "std"))
    return f"""With timm alone:

```python
import timm

backbone = timm.create_model(
    "{where}", pretrained=True, features_only=True, out_indices=(-4, -3, -2, -1)
).eval()
features = backbone(images)  # four maps, strides 4, 8, 16, 32
```

With mim4d, for the masked forward as well:

```python
from mim4d import MIM4DEncoder

encoder = MIM4DEncoder.from_pretrained("{repo or "FOLDER"}")
```

- Images: RGB in 0..1, normalised by mean {mean} and standard deviation {std}.
- Shape: [N, {channels}, H, W], H and W multiples of 32. Its own size is {height} x {width} pixels.
- Weights: safetensors; `config.json` has their sha256."""


def _training(about: dict[str, Any]) -> str:
    rows = {
        "First weights": about.get("init"),
        "Data": _data(about),
        "Steps": about.get("steps"),
        "Clips a step": about.get("clips_per_step"),
        "Converted from": about.get("converted_from"),
        "Made with": f"mim4d {about['version']}" if about.get("version") else None,
    }
    lines = [f"- {name}: {value}" for name, value in rows.items() if value is not None]
    if "steps" not in about:
        lines.insert(0, "- How these weights were trained was not recorded with them.")
    return "\n".join(lines)


def _data(about: dict[str, Any]) -> str | None:
    which = f"{about.get('dataset', '')}, {about.get('split', '')}"
    if about.get("data") == "synthetic":
        return f"procedural streets that mim4d draws itself (`mim4d-world`, {which}); no real image at all"
    if about.get("data") == "nuscenes":
        return f"driving video in nuScenes format ({which})"
    return None


def _measured(about: dict[str, Any]) -> str:
    """First and last logged losses, side by side."""
    measured = about.get("measured") or {}
    first, last = measured.get("first", {}), measured.get("last", {})
    names = [name for name in {**last, **first} if name != "step"]
    if (about.get("settings") or {}).get("supervision") == "rgb":  # version 0.1 wrote depth errors of 0 without LiDAR
        names = [name for name in names if not name.endswith(DEPTH)]
    if not names:
        return ""
    lines = [f"| | step {first['step']:g} | step {last['step']:g} |", "| --- | --- | --- |"]
    lines += [f"| {name} | {first.get(name, '')} | {last.get(name, '')} |" for name in names]
    units = "; ".join(f"`{end}`: {what}" for end, what in _MEASURES.items() if any(n.endswith(end) for n in names))
    told = f"The ends of the names say what was measured: {units}."
    if any(name.startswith("val_") for name in names):
        told += " `val_`: on held-out clips, where `val_zero_` and `val_mean_` are what the temporal path has to beat."
    return "\n".join(lines) + f"\n\n{told}"


def _limits(config: EncoderConfig) -> str:
    about = config.provenance
    lines = [
        "- A backbone, not a detector: it gives feature maps for a model that is yet to be trained.",
        "- No downstream gain was measured with these weights unless this card says so.",
    ]
    if "steps" in about:
        norm = "; the norm of the timm head was not trained" if "convnext" in config.model else ""
        lines.append(f"- Only the backbone was kept of the pretraining{norm}.")
    if about.get("data") == "synthetic":
        lines.insert(0, "- It saw drawn streets alone: good for trying the tools, not for real images.")
    elif about.get("data") == "nuscenes":
        lines.insert(0, "- It knows the cities, cameras and weather of its data; elsewhere it has to be tested first.")
    return "\n".join(lines)


def _licence(license: str | None, about: dict[str, Any]) -> str:
    if license is None:
        return "Not stated. Weights carry the terms of the data and of the first weights that they were made from."
    why = "Weights carry the terms of the data and of the first weights that they were made from"
    if license == NUSCENES and about.get("data") == "nuscenes":
        return f"{license}. {why}: nuScenes is free for non-commercial use only ([terms](https://www.nuscenes.org/terms-of-use))."
    return f"{license}. {why}."


def _settings(settings: dict[str, Any]) -> str:
    text = yaml_dump(settings, sort_keys=False)
    return f"As `mim4d-pretrain --config FILE` reads them.\n\n<details>\n\n```yaml\n{text}```\n\n</details>"
