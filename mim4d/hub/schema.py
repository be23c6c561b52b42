"""What a ``config.json`` may say: everything that is used of it, by name, type and range.

A config may come from anywhere. What it says reaches the constructor of a model, a model card and a terminal, so it is
checked once, here, when it is read. Arguments of the model that are not listed are refused: timm's ``create_model``
takes paths of files among them.
"""

import re
import reprlib
from collections.abc import Callable
from typing import Any

from ..errors import WeightsError

Check = Callable[[Any], bool]
CLASSES = 1_000_000
CHANNELS = 65_536
DEEP = 12
"""Levels of nesting that recorded settings may have."""


def check_config(values: Any, what: str) -> dict[str, Any]:
    """See that a config's entries are what they must be.

    Args:
        values: The parsed JSON.
        what: What to call the config in messages.

    Returns:
        The config.

    Raises:
        WeightsError: If it is not in timm's form, naming the first entry that is wrong.
    """
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("architecture"), str)
        or not isinstance(values.get("pretrained_cfg"), dict)
    ):
        raise WeightsError(f"{what} does not describe a timm model: it has no architecture and pretrained_cfg")
    _check(values, _TOP, "", what)
    about = values["pretrained_cfg"]
    _check(about, {**_ELSEWHERE, **PRETRAINED}, "pretrained_cfg.", what)
    if len({len(about[name]) for name in ("mean", "std") if name in about}) > 1:
        raise WeightsError(f"{what}: pretrained_cfg.mean and pretrained_cfg.std are of different lengths")
    _check(values.get("mim4d") or {}, _PROVENANCE, "mim4d.", what)
    model_args = values.get("model_args") or {}
    if unknown := [name for name in model_args if name not in MODEL_ARGS]:
        allowed = ", ".join(MODEL_ARGS)
        raise WeightsError(f"{what}: the argument {reprlib.repr(unknown[0])} in model_args is none of {allowed}")
    _check(model_args, MODEL_ARGS, "model_args.", what)
    classes = values.get("num_classes", 0)
    if model_args.get("num_classes", classes) != classes:
        raise WeightsError(
            f"{what}: model_args.num_classes is {model_args['num_classes']}, but num_classes is {classes}"
        )
    return values


def _check(values: dict[str, Any], entries: dict[str, tuple[Check, str]], prefix: str, what: str) -> None:
    for name, (good, wanted) in entries.items():
        if name in values and not good(values[name]):
            raise WeightsError(f"{what}: {prefix}{name} is {reprlib.repr(values[name])}; expected {wanted}")


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _one_of(*names: Any) -> Check:
    return lambda value: any(type(value) is type(name) and value == name for name in names)


def _list_of(good: Check, least: int, most: int) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(good, value))


def _or_null(good: Check) -> Check:
    return lambda value: value is None or good(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    """Whether a value is a line of text without control characters."""
    return isinstance(value, str) and len(value) <= 65_536 and value.isprintable()


def _matches(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _tree(value: Any, levels: int = DEEP) -> bool:
    """Plain values under names, a few levels deep."""
    if isinstance(value, dict):
        return levels > 0 and all(text(name) and _tree(below, levels - 1) for name, below in value.items())
    if isinstance(value, list):
        return levels > 0 and all(_tree(below, levels - 1) for below in value)
    return value is None or text(value) or _flag(value) or _number(-1e300, 1e300)(value)


def _settings(value: Any) -> bool:
    return isinstance(value, dict) and _tree(value)


def _measured(value: Any) -> bool:
    """The first and the last row of a log: numbers by name, ``step`` among them."""
    number = _number(-1e300, 1e300)
    return isinstance(value, dict) and all(
        isinstance(row, dict)
        and (not row or "step" in row)
        and all(text(name) and number(figure) for name, figure in row.items())
        for row in (value.get("first", {}), value.get("last", {}))
    )


_four = _list_of(_whole(1, CHANNELS), 4, 4)
_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "prelu", "celu", "selu", "gelu", "gelu_tanh", "quick_gelu", "silu"),
    *("swish", "mish", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "identity"),
)
_NORMS = (
    *("batchnorm", "batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "rmsnorm", "rmsnorm2d"),
    *("simplenorm", "simplenorm2d"),
)
_POOLS = tuple(fast + pool for fast in ("", "fast") for pool in ("", "avg", "max", "avgmax", "catavgmax"))

MODEL_ARGS: dict[str, tuple[Check, str]] = {
    "in_chans": (_whole(1, 1024), "1 to 1024 channels"),
    "num_classes": (_whole(0, CLASSES), f"0 to {CLASSES} classes"),
    "global_pool": (_one_of(*_POOLS), "one of timm's poolings, such as 'avg'"),
    "output_stride": (_one_of(8, 16, 32), "8, 16 or 32"),
    "drop_rate": (_number(0, 1), "a fraction from 0 to 1"),
    "drop_path_rate": (_number(0, 1), "a fraction from 0 to 1"),
    "act_layer": (_one_of(*_ACTIVATIONS), "the name of one of timm's activations"),
    "norm_layer": (_or_null(_one_of(*_NORMS)), "the name of one of timm's norms"),
    "stem_type": (
        _one_of("", "deep", "deep_tiered", "patch", "overlap", "overlap_tiered", "overlap_act"),
        "one of timm's stems, such as 'patch'",
    ),
    # ConvNeXt
    "depths": (_list_of(_whole(1, 100), 4, 4), "4 depths from 1 to 100"),
    "dims": (_four, "4 widths"),
    "kernel_sizes": (
        lambda value: _whole(1, 63)(value) or _list_of(_whole(1, 63), 4, 4)(value),
        "a size from 1 to 63, or 4 of them",
    ),
    "ls_init_value": (_or_null(_number(0, 1e3)), "null or a number from 0 to 1000"),
    "patch_size": (_whole(1, 64), "1 to 64 pixels"),
    "head_init_scale": (_number(-1e6, 1e6), "a number"),
    "head_norm_first": (_flag, "true or false"),
    "head_hidden_size": (_or_null(_whole(1, CHANNELS)), f"null or 1 to {CHANNELS}"),
    "conv_mlp": (_flag, "true or false"),
    "conv_bias": (_flag, "true or false"),
    "use_grn": (_flag, "true or false"),
    "norm_eps": (_or_null(_number(0, 1)), "null or a number from 0 to 1"),
    # ResNet
    "layers": (_list_of(_whole(1, 100), 4, 4), "4 depths from 1 to 100"),
    "channels": (_four, "4 widths"),
    "cardinality": (_whole(1, 1024), "1 to 1024 groups"),
    "base_width": (_whole(1, 4096), "1 to 4096 channels"),
    "stem_width": (_whole(1, 4096), "1 to 4096 channels"),
    "replace_stem_pool": (_flag, "true or false"),
    "block_reduce_first": (_whole(1, 64), "1 to 64"),
    "down_kernel_size": (_one_of(1, 3), "1 or 3"),
    "avg_down": (_flag, "true or false"),
    "drop_block_rate": (_number(0, 1), "a fraction from 0 to 1"),
    # ViT
    "img_size": (_list_of(_whole(1, 8192), 2, 2), "[height, width]"),
    "dynamic_img_size": (_flag, "true or false"),
    "zero_init_last": (_flag, "true or false"),
}
"""The arguments that a config may give to the constructor of timm's ConvNeXt or ResNet; classes and paths are none."""

_TOP: dict[str, tuple[Check, str]] = {
    "architecture": (_matches(r"[a-z0-9][a-z0-9_]{0,99}"), "a timm architecture's name"),
    "num_classes": (_whole(0, CLASSES), f"0 to {CLASSES} classes"),
    "model_args": (_or_null(lambda value: isinstance(value, dict)), "arguments by name"),
    "mim4d": (_or_null(lambda value: isinstance(value, dict)), "entries by name"),
}
_size = _list_of(_whole(1, CHANNELS), 3, 3)
_channels = _list_of(_number(-1e6, 1e6), 1, 1024)
_module = _or_null(lambda value: text(value) or _list_of(text, 1, 16)(value))
_NO_SOURCE = (lambda value: not value, "nothing: the weights are in model.safetensors")
PRETRAINED: dict[str, tuple[Check, str]] = {
    "input_size": (_size, "[channels, height, width]"),
    "test_input_size": (_or_null(_size), "[channels, height, width]"),
    "min_input_size": (_or_null(_size), "[channels, height, width]"),
    "pool_size": (_or_null(_list_of(_whole(1, CHANNELS), 2, 2)), "[height, width]"),
    "test_pool_size": (_or_null(_list_of(_whole(1, CHANNELS), 2, 2)), "[height, width]"),
    "fixed_input_size": (_flag, "true or false"),
    "num_classes": (_whole(0, CLASSES), f"0 to {CLASSES} classes"),
    "mean": (_channels, "a number for each channel"),
    "std": (_list_of(_number(1e-6, 1e6), 1, 1024), "a positive number for each channel"),
    "interpolation": (text, "a name"),
    "crop_mode": (text, "a name"),
    "crop_pct": (_or_null(_number(1e-3, 10)), "a fraction"),
    "test_crop_pct": (_or_null(_number(1e-3, 10)), "a fraction"),
    "first_conv": (_module, "a module's name"),
    "classifier": (_module, "a module's name"),
    "license": (_or_null(_matches(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")), "a licence's name"),
    "tag": (_or_null(text), "a name"),
    "description": (_or_null(text), "a line of text"),
    "origin_url": (_or_null(text), "a line of text"),
    "paper_name": (_or_null(text), "a line of text"),
}
"""The entries of timm's pretrained config that are used; others are left alone."""
_ELSEWHERE = dict.fromkeys(("file", "state_dict", "custom_load"), _NO_SOURCE)
"""Entries that would have timm load something else."""
_LINE = (_or_null(text), "a line of text")
_PROVENANCE: dict[str, tuple[Check, str]] = {
    "sha256": (_or_null(_matches("[0-9a-f]{64}")), "64 hexadecimal digits"),
    **dict.fromkeys(
        ("version", "init", "data", "dataset", "split", "converted_from"), (_or_null(text), "a line of text")
    ),
    "converted_from_sha256": (_or_null(_matches("[0-9a-f]{64}")), "64 hexadecimal digits"),
    "steps": (_or_null(_whole(0, 10**12)), "a count"),
    "clips_per_step": (_or_null(_whole(0, 10**12)), "a count"),
    "settings": (_or_null(_settings), f"plain values by name, at most {DEEP} levels deep"),
    "measured": (_or_null(_measured), "first and last rows of numbers by name, with their step"),
}
