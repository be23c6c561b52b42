"""Load weights into a model, all of them or none, and build models with ``pretrained=True``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from ..errors import WeightsError
from ..io.tensors import FLOATS, misfit, not_finite
from .names import CLASSIFIERS, to_timm_names
from .published import no_weights_error
from .sources import EncoderWeights, Weights, from_config, from_team

SOURCES = ("state_dict", "file", "url", "hf_hub_id")
"""Entries of timm's pretrained config that point at weights."""
STEMS = ("stem.0.weight", "conv1.weight")
"""The convolution that reads the image: of a ConvNeXt, of a ResNet."""


@dataclass(frozen=True)
class Loaded:
    """Names of tensors that were not loaded."""

    missing: list[str]
    """Tensors that are in the model, but not in the weights."""
    unused: list[str]
    """Tensors that are in the weights, but not in the model."""


@contextmanager
def layers_left_out() -> Iterator[None]:
    """Silence timm's warning about weights of layers that a model with ``features_only=True`` does not have."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def build_encoder(
    model_class: type[nn.Module],
    model: str,
    pretrained: bool,
    defaults: dict[str, Any],
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    given_weights: Weights | None = None,
    **kwargs: Any,
) -> nn.Module:
    """timm's ``build_model_with_cfg``, with weights that are verified and loaded strictly.

    Args:
        model_class: The class to build.
        model: mim4d's name of the architecture.
        pretrained: Whether to load the weights of the config.
        defaults: The architecture's arguments; ``kwargs`` override them.
        pretrained_cfg: As timm passes it.
        pretrained_cfg_overlay: As timm passes it.
        cache_dir: Cache of the Hub's client; None for its default.
        given_weights: Weights to load instead of those of the config.
        kwargs: For the class, and timm's own: ``features_only``, ``out_indices``, ``feature_cfg``.

    Raises:
        WeightsError: If there are no such weights, or they are damaged or of another architecture.
    """
    pretrained_cfg_overlay = _replace_sources(pretrained_cfg_overlay)
    weights = given_weights
    if pretrained and not weights and (team := _team_weights(model, pretrained_cfg, pretrained_cfg_overlay, cache_dir)):
        own: Any = timm.get_pretrained_cfg(model)
        weights = team
        pretrained_cfg = {**team.pretrained_cfg, "first_conv": own.first_conv, "classifier": own.classifier}
        kwargs = {**team.config.model_args, **kwargs}
    if pretrained and not weights:
        weights = pretrained_weights(model, pretrained_cfg, pretrained_cfg_overlay, cache_dir)

    def build(**model_args: Any) -> nn.Module:
        made: Any = model_class(**model_args)
        plain = {
            **defaults,
            "num_classes": made.num_classes,
            "in_chans": model_args.get("in_chans"),
            "global_pool": "avg",
        }
        made.model_args = {
            name: value for name, value in model_args.items() if name not in plain or plain[name] != value
        }
        if weights:
            load_weights(made, weights)
        return made

    return build_model_with_cfg(
        build,
        model,
        pretrained=False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **{**defaults, **kwargs},
    )


def _team_weights(
    model: str, pretrained_cfg: Any, overlay: dict[str, Any] | None, cache_dir: str | Path | None
) -> EncoderWeights | None:
    """Return the weights of the team's hub, if a name means them; None if the caller names other weights."""
    if not isinstance(pretrained_cfg, (str, type(None))) or (overlay and any(map(overlay.get, SOURCES))):
        return None
    return from_team(f"{model}.{pretrained_cfg}" if pretrained_cfg else model, cache_dir=cache_dir)


def _replace_sources(overlay: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let an overlay that names weights replace all sources in the model's config, packaged weights too."""
    if not overlay or not any(overlay.get(source) for source in SOURCES):
        return overlay
    return {**dict.fromkeys(SOURCES), **overlay}


def pretrained_weights(
    model: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> Weights:
    """Return the weights of ``timm.create_model(model, pretrained=True, ...)``.

    Args:
        model: mim4d's name of the architecture.
        pretrained_cfg: As timm passes it: a tag, a config, or None.
        pretrained_cfg_overlay: Entries that override the config's.
        cache_dir: Cache of the Hub's client; None for its default.

    Raises:
        WeightsError: If there are no such weights, or they are damaged.
    """
    try:
        config = resolve_pretrained_cfg(model, pretrained_cfg, pretrained_cfg_overlay)
    except RuntimeError as error:  # timm does not know the tag
        raise no_weights_error(model, str(pretrained_cfg)) from error
    if not config.has_weights and not config.state_dict:
        raise no_weights_error(model, config.tag)
    return from_config(config, cache_dir=cache_dir)


def load_weights(model: nn.Module, weights: Weights, *, optional: tuple[str, ...] = ()) -> Loaded:
    """Load weights strictly. As in timm, a classifier for other classes is skipped, and an RGB stem is adapted.

    Args:
        model: The model; unchanged if the weights do not fit.
        weights: By timm's names, the original ConvNeXt's or OpenMMLab's.
        optional: Prefixes of names that may be missing, unknown or of another shape.

    Raises:
        WeightsError: If the weights are of another architecture, with the first difference, or not finite.
    """
    tensors, loaded = fit_weights(model, weights, optional=optional)
    model.load_state_dict(tensors, strict=False)
    return loaded


def fit_weights(
    model: nn.Module, weights: Weights, *, optional: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], Loaded]:
    """Check weights as :func:`load_weights` does, without loading them: the model may be on the meta device.

    Args:
        model: The model.
        weights: As for :func:`load_weights`.
        optional: As for :func:`load_weights`.

    Returns:
        The tensors to load by the model's names, and the names of the others.

    Raises:
        WeightsError: As for :func:`load_weights`.
    """
    own = model.state_dict()
    tensors = to_timm_names(weights.tensors, model, weights.source)
    _adapt_stem(own, tensors)
    other_classes = weights.pretrained_cfg.get("num_classes") != getattr(model, "num_classes", 0)
    skip_classifier = other_classes or not any(name.startswith(CLASSIFIERS) for name in own)
    tolerated = (*optional, *CLASSIFIERS) if skip_classifier else optional

    def is_skipped(name: str) -> bool:
        if skip_classifier and name.startswith(CLASSIFIERS):
            return True
        return name.startswith(tolerated) and (name not in own or own[name].shape != tensors[name].shape)

    used = {name: tensor for name, tensor in tensors.items() if not is_skipped(name)}
    required = {name: tensor for name, tensor in own.items() if name in used or not name.startswith(tolerated)}
    if problem := misfit(required, used):
        raise WeightsError(f"{weights.source} does not fit this encoder: {problem}")
    used = {name: tensor.to(own[name].dtype) for name, tensor in used.items()}  # 1e300 is infinite in float32
    if problem := not_finite(used):
        raise WeightsError(f"{weights.source}: {problem}; its training diverged or the file is damaged")
    return used, Loaded(
        missing=[name for name in own if name not in used], unused=[name for name in tensors if name not in used]
    )


def _adapt_stem(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Adapt an RGB stem's weights to images with other channels, as timm does."""
    for name in STEMS:
        if name in own and name in tensors and tensors[name].ndim == 4 and tensors[name].dtype in FLOATS:
            expected, found = own[name].shape[1], tensors[name].shape[1]
            if found == 3 and expected != found:
                tensors[name] = adapt_input_conv(expected, tensors[name])
