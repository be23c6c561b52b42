"""The format of ``config.json``: names, types and ranges of all entries that are used.

A config may come from anywhere, and its values reach the constructor of a model, a model card and a terminal. So it is
checked once, when it is read. Model arguments that are not listed are refused: timm's ``create_model`` would accept
paths of files among them.
"""

import re
import reprlib
from collections.abc import Callable
from typing import Any

from ..errors import WeightsError

Check = Callable[[Any], bool]
Rule = tuple[Check, str]
"""Whether a value is valid, and what was expected if it is not."""
MAX_CLASSES = 1_000_000
MAX_CHANNELS = 65_536
MAX_DEPTH = 12
"""Levels of nesting that recorded settings may have."""


def check_config(values: Any, source: str) -> dict[str, Any]:
    """Check all entries of a config that are used.

    Args:
        values: The parsed JSON.
        source: Name of the config for error messages.

    Returns:
        The config.

    Raises:
        WeightsError: If it is not in timm's format; the message names the first invalid entry.
    """
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("architecture"), str)
        or not isinstance(values.get("pretrained_cfg"), dict)
    ):
        raise WeightsError(f"{source} does not describe a timm model: expected architecture and pretrained_cfg")
    _check(values, _TOP, "", source)
    cfg = values["pretrained_cfg"]
    _check(cfg, {**_OTHER_SOURCES, **PRETRAINED}, "pretrained_cfg.", source)
    if len({len(cfg[name]) for name in ("mean", "std") if name in cfg}) > 1:
        raise WeightsError(f"{source}: pretrained_cfg.mean and .std differ in length; expected one value per channel")
    _check(values.get("mim4d") or {}, _PROVENANCE, "mim4d.", source)
    model_args = values.get("model_args") or {}
    if unknown := [name for name in model_args if name not in MODEL_ARGS]:
        allowed = ", ".join(MODEL_ARGS)
        raise WeightsError(f"{source}: model_args has an argument {reprlib.repr(unknown[0])}; allowed are {allowed}")
    _check(model_args, MODEL_ARGS, "model_args.", source)
    classes = values.get("num_classes", 0)
    if model_args.get("num_classes", classes) != classes:
        found = model_args["num_classes"]
        raise WeightsError(f"{source}: model_args.num_classes is {found}; expected {classes}, which is num_classes")
    return values


def _check(values: dict[str, Any], rules: dict[str, Rule], prefix: str, source: str) -> None:
    for name, (is_valid, expected) in rules.items():
        if name in values and not is_valid(values[name]):
            raise WeightsError(f"{source}: {prefix}{name} is {reprlib.repr(values[name])}; expected {expected}")


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _one_of(*choices: Any) -> Check:
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def _list_of(item: Check, shortest: int, longest: int) -> Check:
    return lambda value: isinstance(value, list) and shortest <= len(value) <= longest and all(map(item, value))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _matches(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_text(value: Any) -> bool:
    """Return whether a value is one line of text without control characters."""
    return isinstance(value, str) and len(value) <= 65_536 and value.isprintable()


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_plain(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Return whether a value is plain JSON, at most so many levels deep."""
    if isinstance(value, dict):
        return levels > 0 and all(_is_text(name) and _is_plain(item, levels - 1) for name, item in value.items())
    if isinstance(value, list):
        return levels > 0 and all(_is_plain(item, levels - 1) for item in value)
    return value is None or _is_text(value) or isinstance(value, bool) or _number(-1e300, 1e300)(value)


def _is_measured(value: Any) -> bool:
    """Return whether a value holds the first and last row of a log: numbers by name, ``step`` among them."""
    number = _number(-1e300, 1e300)
    return isinstance(value, dict) and all(
        isinstance(row, dict)
        and (not row or "step" in row)
        and all(_is_text(name) and number(figure) for name, figure in row.items())
        for row in (value.get("first", {}), value.get("last", {}))
    )


_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "prelu", "celu", "selu", "gelu", "gelu_tanh", "quick_gelu", "silu"),
    *("swish", "mish", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "identity"),
)
_NORMS = (
    *("batchnorm", "batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "rmsnorm", "rmsnorm2d"),
    *("simplenorm", "simplenorm2d"),
)
_POOLS = tuple(fast + pool for fast in ("", "fast") for pool in ("", "avg", "max", "avgmax", "catavgmax"))

_BOOL: Rule = (lambda value: isinstance(value, bool), "true or false")
_FRACTION: Rule = (_number(0, 1), "a fraction from 0 to 1")
_CLASSES: Rule = (_integer(0, MAX_CLASSES), f"0 to {MAX_CLASSES} classes")
_DEPTHS: Rule = (_list_of(_integer(1, 100), 4, 4), "4 depths from 1 to 100")
_WIDTHS: Rule = (_list_of(_integer(1, MAX_CHANNELS), 4, 4), "4 widths")
_WIDTH: Rule = (_integer(1, 4096), "1 to 4096 channels")

MODEL_ARGS: dict[str, Rule] = {
    "in_chans": (_integer(1, 1024), "1 to 1024 channels"),
    "num_classes": _CLASSES,
    "global_pool": (_one_of(*_POOLS), "the name of a timm pooling, such as 'avg'"),
    "output_stride": (_one_of(8, 16, 32), "8, 16 or 32"),
    "drop_rate": _FRACTION,
    "drop_path_rate": _FRACTION,
    "act_layer": (_one_of(*_ACTIVATIONS), "the name of a timm activation"),
    "norm_layer": (_or_null(_one_of(*_NORMS)), "the name of a timm norm"),
    "stem_type": (
        _one_of("", "deep", "deep_tiered", "patch", "overlap", "overlap_tiered", "overlap_act"),
        "the name of a timm stem, such as 'patch'",
    ),
    # ConvNeXt
    "depths": _DEPTHS,
    "dims": _WIDTHS,
    "kernel_sizes": (
        lambda value: _integer(1, 63)(value) or _list_of(_integer(1, 63), 4, 4)(value),
        "a size from 1 to 63, or 4 of them",
    ),
    "ls_init_value": (_or_null(_number(0, 1e3)), "null or a number from 0 to 1000"),
    "patch_size": (_integer(1, 64), "1 to 64 pixels"),
    "head_init_scale": (_number(-1e6, 1e6), "a number"),
    "head_norm_first": _BOOL,
    "head_hidden_size": (_or_null(_integer(1, MAX_CHANNELS)), f"null or 1 to {MAX_CHANNELS}"),
    "conv_mlp": _BOOL,
    "conv_bias": _BOOL,
    "use_grn": _BOOL,
    "norm_eps": (_or_null(_number(0, 1)), "null or a number from 0 to 1"),
    # ResNet
    "layers": _DEPTHS,
    "channels": _WIDTHS,
    "cardinality": (_integer(1, 1024), "1 to 1024 groups"),
    "base_width": _WIDTH,
    "stem_width": _WIDTH,
    "replace_stem_pool": _BOOL,
    "block_reduce_first": (_integer(1, 64), "1 to 64"),
    "down_kernel_size": (_one_of(1, 3), "1 or 3"),
    "avg_down": _BOOL,
    "drop_block_rate": _FRACTION,
    "zero_init_last": _BOOL,
    # ViT
    "img_size": (_list_of(_integer(1, 8192), 2, 2), "[height, width]"),
    "dynamic_img_size": _BOOL,
}
"""Arguments that a config may pass to the constructor of a timm model. No argument is a class or a path."""

_TOP: dict[str, Rule] = {
    "architecture": (_matches(r"[a-z0-9][a-z0-9_]{0,99}"), "the name of a timm architecture"),
    "num_classes": _CLASSES,
    "model_args": (_or_null(_is_dict), "arguments by name"),
    "mim4d": (_or_null(_is_dict), "entries by name"),
}
_SIZE = _list_of(_integer(1, MAX_CHANNELS), 3, 3)
_POOL_SIZE = _list_of(_integer(1, MAX_CHANNELS), 2, 2)
_NAME: Rule = (_is_text, "a name")
_LINE: Rule = (_or_null(_is_text), "a line of text")
_MODULE: Rule = (_or_null(lambda value: _is_text(value) or _list_of(_is_text, 1, 16)(value)), "a module's name")
PRETRAINED: dict[str, Rule] = {
    "input_size": (_SIZE, "[channels, height, width]"),
    "test_input_size": (_or_null(_SIZE), "[channels, height, width]"),
    "min_input_size": (_or_null(_SIZE), "[channels, height, width]"),
    "pool_size": (_or_null(_POOL_SIZE), "[height, width]"),
    "test_pool_size": (_or_null(_POOL_SIZE), "[height, width]"),
    "fixed_input_size": _BOOL,
    "num_classes": _CLASSES,
    "mean": (_list_of(_number(-1e6, 1e6), 1, 1024), "one number per channel"),
    "std": (_list_of(_number(1e-6, 1e6), 1, 1024), "one positive number per channel"),
    "interpolation": _NAME,
    "crop_mode": _NAME,
    "crop_pct": (_or_null(_number(1e-3, 10)), "a fraction"),
    "test_crop_pct": (_or_null(_number(1e-3, 10)), "a fraction"),
    "first_conv": _MODULE,
    "classifier": _MODULE,
    "license": (_or_null(_matches(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")), "the name of a licence"),
    "tag": _LINE,
    "description": _LINE,
    "origin_url": _LINE,
    "paper_name": _LINE,
}
"""Entries of timm's pretrained config that are used; others are ignored."""
_OTHER_SOURCES: dict[str, Rule] = dict.fromkeys(
    ("file", "state_dict", "custom_load"), (lambda value: not value, "nothing: the weights are in model.safetensors")
)
"""Entries that would make timm load other weights."""
_COUNT: Rule = (_or_null(_integer(0, 10**12)), "a count")
_SHA256: Rule = (_or_null(_matches("[0-9a-f]{64}")), "64 hexadecimal digits")
_PROVENANCE: dict[str, Rule] = {
    "sha256": _SHA256,
    **dict.fromkeys(("version", "init", "data", "dataset", "split", "converted_from"), _LINE),
    "converted_from_sha256": _SHA256,
    "steps": _COUNT,
    "clips_per_step": _COUNT,
    "settings": (
        _or_null(lambda value: _is_dict(value) and _is_plain(value)),
        f"plain values by name, at most {MAX_DEPTH} levels deep",
    ),
    "measured": (_or_null(_is_measured), "the first and last rows of numbers by name, each with its step"),
}
