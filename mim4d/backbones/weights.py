"""Initial weights of an encoder, from timm, the Hub or a file."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..errors import WeightsError
from ..hub.folder import read_config
from ..hub.load import Loaded, load_weights
from ..hub.sources import Weights, from_anywhere, is_pretrained_name, is_team_name
from .encoder import MIM4DEncoder


def license_of(source: str) -> str | None:
    """Return the licence that a timm name or an exported folder declares; None if unknown without the network."""
    file = Path(source).expanduser() / "config.json"
    if file.is_file():
        try:
            return read_config(file, str(file)).pretrained_cfg.get("license")
        except WeightsError:  # initialise() reports it
            return None
    if is_team_name(source):  # the default config of its name is not that of its weights
        return None
    config = timm.get_pretrained_cfg(source) if is_pretrained_name(source) else None
    return config.license if config else None


HEADS = ("head.", "head_dist.", "fc.", "classifier.", "last_linear.")
"""Prefixes of classifiers' names in timm."""


def _named_by(encoder: Any, weights: Weights) -> Weights:
    """Rename weights for the encoder; timm's families know their older and original names."""
    own = encoder.state_dict()
    if isinstance(encoder, MIM4DEncoder) or own.keys() <= weights.tensors.keys():
        return weights
    rename = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    return dataclasses.replace(weights, tensors=rename(dict(weights.tensors), encoder)) if rename else weights


def load_backbone(encoder: nn.Module, weights: Weights) -> Loaded:
    """Load weights by any of the names that timm knows for them; every tensor except a classifier's must fit.

    Raises:
        WeightsError: If the weights do not fit the architecture; names the first difference.
    """
    return load_weights(encoder, _named_by(encoder, weights), optional=HEADS)


def initialise(encoder: nn.Module, source: str) -> str:
    """Load initial weights into an encoder; every tensor except a classifier's must fit.

    Args:
        encoder: The model that receives the weights: plain timm, or a :class:`mim4d.MIM4DEncoder`.
        source: The value of ``--init``, see :func:`mim4d.hub.sources.from_anywhere`.

    Returns:
        One line for the log: how many tensors were loaded, and which were missing or left out.

    Raises:
        WeightsError: If the weights cannot be read, or do not fit the architecture; names the first difference.
    """
    weights = from_anywhere(source)
    loaded = load_backbone(encoder, weights)
    whole = len(encoder.state_dict())
    line = f"{whole - len(loaded.missing)} of {whole} tensors from {source}, {len(loaded.missing)} missing"
    if loaded.unused:
        line += f", left out: {', '.join(sorted(loaded.unused))}"
    about: dict[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]  # timm sets it from outside
    for what in ("mean", "std"):
        theirs, ours = tuple(weights.pretrained_cfg.get(what, ())), tuple(about[what])
        if theirs and theirs != ours:
            line += f"; made for images with {what} {theirs}, this encoder uses {ours}"
    return line
