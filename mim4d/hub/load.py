"""Put weights into a model, all of them or none, and make a model with ``pretrained=True``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from ..errors import WeightsError
from ..io.tensors import FLOATS, misfit, not_finite
from .names import CLASSIFIERS, to_timm_names
from .published import nothing_published
from .sources import Weights, from_config

SOURCES = ("state_dict", "file", "url", "hf_hub_id")
"""Where a config of timm's may point at weights."""
STEMS = ("stem.0.weight", "conv1.weight")
"""The convolution that sees the image."""


@dataclass(frozen=True)
class Loaded:
    """What became of the tensors."""

    missing: list[str]
    """The model's, that the weights do not have."""
    left_out: list[str]
    """The weights', that the model has no place for."""


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
    """timm's ``build_model_with_cfg``, but for how weights are loaded: verified, and strictly.

    Args:
        model_class: What to make.
        model: Our name of the architecture.
        pretrained: Whether to load the weights that the config points at.
        defaults: The architecture's arguments; ``kwargs`` may say otherwise.
        pretrained_cfg: As timm passes it on.
        pretrained_cfg_overlay: As timm passes it on.
        cache_dir: Where the Hub's client keeps files; None for its own place.
        given_weights: To load in place of those that the config points at.
        kwargs: For the class, and timm's own: ``features_only``, ``out_indices``, ``feature_cfg``.

    Raises:
        WeightsError: If there are no such weights, they cannot be had, are damaged or of another architecture.
    """
    pretrained_cfg_overlay = _one_source(pretrained_cfg_overlay)
    weights = given_weights
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


def _one_source(overlay: dict[str, Any] | None) -> dict[str, Any] | None:
    """An overlay that names weights takes the place of all others that the model's config knows, packaged ones too."""
    if not overlay or not any(overlay.get(source) for source in SOURCES):
        return overlay
    return {**dict.fromkeys(SOURCES), **overlay}


def pretrained_weights(
    model: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> Weights:
    """The weights that ``timm.create_model(model, pretrained=True, ...)`` asks for.

    Args:
        model: Our name of the architecture.
        pretrained_cfg: As timm passes it on: a tag, a config, or None.
        pretrained_cfg_overlay: Entries in place of the config's.
        cache_dir: Of the Hub's client; None for its own.

    Raises:
        WeightsError: If there are none, or they cannot be had or are damaged.
    """
    try:
        config = resolve_pretrained_cfg(model, pretrained_cfg, pretrained_cfg_overlay)
    except RuntimeError as error:  # timm does not know the tag
        raise nothing_published(model, str(pretrained_cfg)) from error
    if not config.has_weights and not config.state_dict:
        raise nothing_published(model, config.tag)
    return from_config(config, cache_dir=cache_dir)


def load_weights(model: nn.Module, weights: Weights, *, optional: tuple[str, ...] = ()) -> Loaded:
    """Load weights strictly. As in timm, a classifier for other classes stays as it was, and an RGB stem is adapted.

    Args:
        model: Receives them; untouched if they do not fit.
        weights: In timm's names, the original ConvNeXt's or OpenMMLab's.
        optional: Beginnings of names that may be missing, unknown or of another shape.

    Raises:
        WeightsError: If they are of another architecture, naming the first difference, or not finite.
    """
    taken, loaded = fit_weights(model, weights, optional=optional)
    model.load_state_dict(taken, strict=False)
    return loaded


def fit_weights(
    model: nn.Module, weights: Weights, *, optional: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], Loaded]:
    """Like :func:`load_weights`, but leave the model as it is: it may be on the meta device.

    Returns:
        The tensors to load by the model's names, and what becomes of the others.
    """
    own = model.state_dict()
    tensors = to_timm_names(weights.tensors, model, weights.source)
    _adapt_stem(own, tensors)
    other_classes = weights.about.get("num_classes") != getattr(model, "num_classes", 0)
    own_classifier = other_classes or not any(name.startswith(CLASSIFIERS) for name in own)
    loose = (*optional, *CLASSIFIERS) if own_classifier else optional

    def passed_over(name: str) -> bool:
        if own_classifier and name.startswith(CLASSIFIERS):
            return True
        return name.startswith(loose) and (name not in own or own[name].shape != tensors[name].shape)

    taken = {name: tensor for name, tensor in tensors.items() if not passed_over(name)}
    wanted = {name: tensor for name, tensor in own.items() if name in taken or not name.startswith(loose)}
    if problem := misfit(wanted, taken):
        raise WeightsError(f"{weights.source} does not fit this encoder: {problem}")
    taken = {name: tensor.to(own[name].dtype) for name, tensor in taken.items()}  # 1e300 is infinite in float32
    if problem := not_finite(taken):
        raise WeightsError(f"{weights.source}: {problem}; the training that made it diverged, or the file is damaged")
    return taken, Loaded(
        missing=[name for name in own if name not in taken], left_out=[name for name in tensors if name not in taken]
    )


def _adapt_stem(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Fit a stem's weights for RGB to images of other channels, as timm does."""
    for name in STEMS:
        if name in own and name in tensors and tensors[name].ndim == 4 and tensors[name].dtype in FLOATS:
            wanted, given = own[name].shape[1], tensors[name].shape[1]
            if given == 3 and wanted != given:
                tensors[name] = adapt_input_conv(wanted, tensors[name])
