"""Where an encoder starts from: any ConvNeXt weights that timm, the Hub or a file can give."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import (
    load_model_config_from_hf,
    load_state_dict,
    load_state_dict_from_hf,
)
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor

from ..errors import UserError
from .checkpoint import read_tensors


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors as they were published, and what their publisher says about them."""

    tensors: dict[str, Tensor]
    """By name; ours, timm's or the original ConvNeXt's names."""
    about: dict[str, Any] = field(default_factory=dict)
    """timm's pretrained config where there is one: ``mean``, ``std``, ``license``, ..."""


def read_weights(source: str) -> Weights:
    """Fetch weights.

    Args:
        source: A timm name (``convnext_base.dinov3_lvd1689m``), a Hub id (``hf-hub:org/name`` or ``org/name``), a file
            (``.safetensors``, or ``.pth`` whose pickle holds tensors alone) or a folder that a run exported.

    Raises:
        UserError: If nothing is found there or it cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return Weights(tensors=load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True))
        if path.is_dir():
            about = json.loads((path / "config.json").read_text()).get("pretrained_cfg", {})
            return Weights(tensors=read_tensors(path / "model.safetensors"), about=about)
        if path.suffix in (".safetensors", ".pth", ".pt", ".bin") or source.startswith((".", "/", "~")):
            raise FileNotFoundError("no such file or folder")
        if "/" in source:
            hub_id = source.removeprefix("hf-hub:")
            about = load_model_config_from_hf(hub_id)[0]
            return Weights(tensors=load_state_dict_from_hf(hub_id), about=about)
        return _read_named(source)
    except UserError:
        raise
    except Exception as error:  # the libraries below raise their own kinds for no network, no file, bad pickle, ...
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--init {source}: cannot read these weights: {reason[0]}") from error


def _read_named(name: str) -> Weights:
    config = timm.get_pretrained_cfg(name) if _is_named(name) else None
    if config is None or config.hf_hub_id is None:
        near = difflib.get_close_matches(name, timm.list_pretrained("*convnext*"), n=3, cutoff=0.4)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise UserError(f"--init {name}: timm has no such ConvNeXt weights{hint}")
    file = config.hf_hub_filename or "model.safetensors"
    return Weights(tensors=load_state_dict_from_hf(config.hf_hub_id, file), about=config.to_dict())


def _is_named(name: str) -> bool:
    """Whether timm has ConvNeXt weights by this name, with a tag or without."""
    known = timm.list_pretrained("*convnext*")
    return name in known or name in {tagged.partition(".")[0] for tagged in known}


def license_of(source: str) -> str | None:
    """The licence that a timm name or an exported folder declares; None where it is not known without the network."""
    file = Path(source).expanduser() / "config.json"
    if file.is_file():
        return json.loads(file.read_text()).get("pretrained_cfg", {}).get("license")
    config = timm.get_pretrained_cfg(source) if _is_named(source) else None
    return config.license if config else None


def load_encoder(encoder: ConvNeXt, weights: Weights, source: str) -> str:
    """Put weights into an encoder: every tensor must fit, but for those of a classifier's head.

    Args:
        encoder: Receives them.
        weights: From :func:`read_weights`.
        source: What to call them in messages.

    Returns:
        One line for the log: what was loaded, missing and left out.

    Raises:
        UserError: If they are another architecture's, naming the first difference.
    """
    own = encoder.state_dict()
    try:
        tensors = checkpoint_filter_fn(dict(weights.tensors), encoder)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"--init {source}: not the weights of a ConvNeXt ({error} has no place in one)") from error
    missing = [name for name in own if name not in tensors]
    left_out = [name for name in tensors if name not in own]
    problems = [f"{name} is missing" for name in missing if not name.startswith("head.")]
    problems += [f"{name} is unknown" for name in left_out if not name.startswith("head.")]
    problems += [
        f"{name} is {list(tensors[name].shape)} in place of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"--init {source} does not fit this encoder: {problems[0]}{more}; choose --model to match")
    with torch.no_grad():
        encoder.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own}, strict=False)
    told = f"{len(own) - len(missing)} of {len(own)} tensors from {source}, {len(missing)} missing"
    if left_out:
        told += f", left out: {', '.join(sorted(left_out))}"
    about: dict[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]  # timm sets it from outside
    for what in ("mean", "std"):
        theirs, ours = tuple(weights.about.get(what, ())), tuple(about[what])
        if theirs and theirs != ours:
            told += f"; made for images of {what} {theirs}, here it is {ours}"
    return told
