"""The model card of an encoder, generated from its ``config.json``.

The same encoder always gives the same card, so pushing it again changes nothing.
"""

import dataclasses
import re
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump
from timm.models import PretrainedCfg

from .folder import EncoderConfig
from .licensing import NUSCENES, OFFICIAL_VERSIONS, hub_metadata
from .scores import PICTURE, ReleaseScores

TAGS = ["image-feature-extraction", "timm", "mim4d", "autonomous-driving", "self-supervised-learning", "bird-eye-view"]
PIPELINE = "image-feature-extraction"
_PAPER = "[arXiv 2403.08760](https://arxiv.org/abs/2403.08760)"
DEPTH_SUFFIXES = ("_depth", "_abs_rel", "_delta", "_depth_hidden", "_depth_visible")
"""Endings of the names of depth measures."""
_MEASURES = {
    "loss": "loss",
    "rgb": "colour, mean absolute error of values from 0 to 1",
    "depth": "depth, mean absolute error in metres",
    "psnr": "colour, PSNR in dB",
    "abs_rel": "depth, mean relative error",
    "delta": "depth, fraction within a factor of 1.25",
    "hidden": "for rays through hidden patches only",
    "visible": "for rays through visible patches only",
}
"""Meaning of a measure by the ending of its name."""


def make_card(config: EncoderConfig, repo: str | None = None, scores: ReleaseScores | None = None) -> str:
    """A model card in Markdown, with the Hub's metadata.

    Args:
        config: The encoder's config.
        repo: ``org/name``, for the code examples; None for a folder that is not published.
        scores: Of the encoder; None if it was not scored.
    """
    made = config.provenance
    parts = [
        f"---\n{_metadata(config, scores).to_yaml()}\n---",
        f"# {repo.partition('/')[2] if repo else config.model}",
        _summary(config),
        "## Use\n\n" + _use(config, repo),
        *(["## Scores\n\n" + _scores(scores)] if scores else []),
        "## Training\n\n" + _training(made),
        "## Limits\n\n" + _limits(config),
        "## Licence\n\n" + _licence(config.pretrained_cfg.get("license"), made),
        *(["## Measured in training\n\n" + table] if (table := _measured(made)) else []),
        *(["## Settings\n\n" + _settings(made["settings"])] if made.get("settings") else []),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(scores: ReleaseScores) -> str:
    picture = f"![Scores, with their 95 % intervals]({PICTURE})"
    return "\n\n".join([*scores.tables, picture, "Measured by `mim4d-hub release`."])


def _results(scores: ReleaseScores) -> list[EvalResult]:
    """The scores as metadata, from which the Hub and the table of a collection read them."""
    return [
        EvalResult(
            task_type=PIPELINE,
            dataset_type=result.task,
            dataset_name=f"{result.data}, {100 * result.labels:.3g} % of the labels",
            metric_type=result.name,
            metric_value=round(result.mean, 1),
            metric_name=result.name,
        )
        for result in scores.results
    ]


def _metadata(config: EncoderConfig, scores: ReleaseScores | None) -> ModelCardData:
    made = config.provenance
    license: dict[str, Any] = hub_metadata(config.pretrained_cfg.get("license"))
    scored: dict[str, Any] = {"model_name": config.model, "eval_results": _results(scores)} if scores else {}
    return ModelCardData(
        library_name="timm",
        pipeline_tag=PIPELINE,
        tags=TAGS,
        **license,
        datasets=_datasets(made) or None,
        base_model=_base_model(made.get("init") or ""),
        **scored,
    )


def _base_model(init: str) -> str | None:
    """The Hub's repository of the initial weights, if they were a Hub id or a timm name with a tag."""
    if "/" in init:
        return init.removeprefix("hf-hub:").partition("@")[0]
    return f"timm/{init}" if re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", init) and timm.is_model(init) else None


def _datasets(made: dict[str, Any]) -> list[str]:
    """The Hub's names of the training data; a fleet's own recordings in nuScenes format have none."""
    if made.get("data") == "synthetic":
        return ["mim4d-world"]
    return ["nuscenes"] if made.get("dataset") in OFFICIAL_VERSIONS else []


def _summary(config: EncoderConfig) -> str:
    made = config.provenance
    name = f"timm's `{config.values['architecture']}`, `{config.model}` in mim4d"
    what = f"An image backbone for driving perception ({name})"
    settings = made.get("settings") or {}
    rendered = "colour" if settings.get("supervision") == "rgb" else "colour and depth"
    if settings.get("frames") == 1:
        return (
            f"{what}, pretrained without labels on single frames of several cameras by the spatial half of MIM4D "
            f"({_PAPER}), which resembles UniPAD: patches are hidden, and the model renders {rendered} from the rest."
        )
    if "steps" in made:
        return (
            f"{what}, pretrained without labels on multi-camera video by MIM4D ({_PAPER}): patches are hidden in "
            f"space, a whole frame is dropped in time, and the model renders {rendered} of what is missing."
        )
    if "converted_from" in made:
        return f"{what}, converted from the checkpoint `{made['converted_from']}`."
    return f"{what}."


def _use(config: EncoderConfig, repo: str | None) -> str:
    where = f"hf-hub:{repo}" if repo else "local-dir:FOLDER"
    cfg = {**dataclasses.asdict(PretrainedCfg()), **config.pretrained_cfg}  # with timm's defaults
    channels, height, width = cfg["input_size"]
    mean, std = (", ".join(f"{value:g}" for value in cfg[name]) for name in ("mean", "std"))
    return f"""With timm alone:

```python
import timm

backbone = timm.create_model(
    "{where}", pretrained=True, features_only=True, out_indices=(-4, -3, -2, -1)
).eval()
features = backbone(images)  # four maps, strides 4, 8, 16, 32
```

With mim4d, which adds the masked forward:

```python
from mim4d import MIM4DEncoder

encoder = MIM4DEncoder.from_pretrained("{repo or "FOLDER"}")
```

- Images: RGB from 0 to 1, normalised with mean {mean} and standard deviation {std}.
- Shape: [N, {channels}, H, W], H and W multiples of 32. The default size is {height} x {width} pixels.
- Weights: safetensors; `config.json` has their sha256."""


def _training(made: dict[str, Any]) -> str:
    rows = {
        "Initial weights": made.get("init"),
        "Data": _data(made),
        "Steps": made.get("steps"),
        "Clips per step": made.get("clips_per_step"),
        "Converted from": made.get("converted_from"),
        "Made with": f"mim4d {made['version']}" if made.get("version") else None,
    }
    lines = [f"- {name}: {value}" for name, value in rows.items() if value is not None]
    if "steps" not in made:
        lines.insert(0, "- How these weights were trained is not recorded.")
    return "\n".join(lines)


def _data(made: dict[str, Any]) -> str | None:
    which = f"{made.get('dataset', '')}, {made.get('split', '')}"
    if made.get("data") == "synthetic":
        return f"synthetic world (`mim4d-world`, {which}); no real images"
    if made.get("data") == "nuscenes":
        return f"driving video in nuScenes format ({which})"
    return None


def _measured(made: dict[str, Any]) -> str:
    """A table of the first and last logged measures; empty if there are none."""
    measured = made.get("measured") or {}
    first, last = measured.get("first", {}), measured.get("last", {})
    names = [name for name in {**last, **first} if name != "step"]
    if (made.get("settings") or {}).get("supervision") == "rgb":  # version 0.1 wrote depth errors of 0 without LiDAR
        names = [name for name in names if not name.endswith(DEPTH_SUFFIXES)]
    if not names:
        return ""
    lines = [f"| | step {first['step']:g} | step {last['step']:g} |", "| --- | --- | --- |"]
    lines += [f"| {name} | {first.get(name, '')} | {last.get(name, '')} |" for name in names]
    endings = (f"`{end}`: {meaning}" for end, meaning in _MEASURES.items() if any(n.endswith(end) for n in names))
    legend = f"Names by their endings: {'; '.join(endings)}."
    if any(name.startswith("val_") for name in names):
        legend += " `val_`: on held-out clips."
    if any(name.startswith("val_mean_") for name in names):
        legend += (
            " The temporal path must beat `val_zero_` and `val_mean_`: the dropped frame's "
            "features replaced by zeros, and by the mean of the other frames, warped."
        )
    return "\n".join(lines) + f"\n\n{legend}"


def _limits(config: EncoderConfig) -> str:
    made = config.provenance
    lines = [
        "- This is a backbone, not a detector: it gives feature maps for a model that you train.",
        "- No gain on a downstream task was measured with these weights, unless this card says so.",
    ]
    if "steps" in made:
        norm = ", and the norm of the timm head was not trained" if "convnext" in config.model else ""
        lines.append(f"- Only the backbone was kept from pretraining{norm}.")
    if made.get("data") == "synthetic":
        lines.insert(0, "- It was trained on a synthetic world only: use it to try the tools, not on real images.")
    elif made.get("data") == "nuscenes":
        lines.insert(
            0, "- It was trained on the cities, cameras and weather of its data: test it before use elsewhere."
        )
    return "\n".join(lines)


def _licence(license: str | None, made: dict[str, Any]) -> str:
    why = "Weights inherit the terms of their training data and of their initial weights"
    if license is None:
        return f"Not stated. {why}."
    if license == NUSCENES and made.get("data") == "nuscenes":
        return (
            f"{license}. {why}: nuScenes is free for non-commercial use only "
            "([terms](https://www.nuscenes.org/terms-of-use))."
        )
    return f"{license}. {why}."


def _settings(settings: dict[str, Any]) -> str:
    text = yaml_dump(settings, sort_keys=False)
    return f"In the format of `mim4d-pretrain --config FILE`.\n\n<details>\n\n```yaml\n{text}```\n\n</details>"
