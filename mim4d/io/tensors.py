"""Tensors in files, and whether they fit a model. Nothing here runs code that a file brings."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import WeightsError

UNREADABLE = (
    *(OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError),
    *(AttributeError, LookupError, TypeError, AssertionError, MemoryError, ImportError),  # unpickling of other files
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that a model's parameters and statistics can be stored in."""
TABLES = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state_dict")
"""Where training scripts keep the weights in a checkpoint; averaged ones come first. ``module`` is SparK's."""


class _Inert:
    """Stands for an object in a checkpoint that is not needed: made of any arguments, it keeps and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _inert(name: str) -> type[_Inert]:
    module, _, short = name.rpartition(".")
    return type(short, (_Inert,), {"__module__": module, "__qualname__": short})


HARMLESS = [
    _inert(name)
    for name in (
        "argparse.Namespace",  # timm's training script keeps its arguments
        "builtins.getattr",  # how a history buffer names its methods
        "mmengine.logging.history_buffer.HistoryBuffer",
        *("numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in ("_reconstruct", "scalar")),
        *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
        *("datetime.datetime", "datetime.timedelta"),
    )
]
"""What training scripts leave beside the tensors. None of it is imported or made: inert classes stand in by name."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, on the CPU.

    Args:
        file: A ``.safetensors`` file, or a checkpoint that ``torch.save`` wrote: of the :data:`TABLES` in it the first
            is taken.

    Raises:
        WeightsError: If it is missing or broken, holds no dense tensors, or needs code to be run.
    """
    tensors = _read_safetensors(file) if file.suffix == ".safetensors" else _find_table(_unpickle(file))
    if tensors is None:
        raise WeightsError(f"cannot read {file}: there is no table of tensors in it")
    if not tensors:
        raise WeightsError(f"cannot read {file}: its table of tensors is empty")
    for name, tensor in tensors.items():
        if problem := _unusable(tensor):
            raise WeightsError(f"cannot read {file}: {name} is {problem}; expected a dense tensor")
    return tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except UNREADABLE as error:
        with file.open("rb") if file.is_file() else nullcontext() as stream:
            start = stream.read(4) if stream else b""
        pickled = start == b"PK\3\4" or start[:1] == b"\x80"
        what = "it is a pickle by another name, not safetensors" if pickled else first_line(error)
        raise WeightsError(f"cannot read {file}: {what}") from error


def _unpickle(file: Path) -> Any:
    """What ``torch.save`` wrote, as far as it is tensors and plain values; :data:`HARMLESS` objects become inert."""
    allowed = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with allowed(HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        with allowed(HARMLESS):
            objects = _objects(file)
        if objects := objects or _objects(file):  # harmless ones, if they are called
            raise WeightsError(
                f"cannot read {file}: it holds pickled objects ({', '.join(objects)}), which are never unpickled here; "
                "if you trust it, save its table of tensors alone"
            ) from error
        told = "it is no checkpoint of torch's" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise WeightsError(f"cannot read {file}: {told}") from error


def _objects(file: Path) -> list[str]:
    """Names of the classes that a checkpoint asks to be made, as far as this version of torch can tell."""
    listed = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        return sorted(listed(str(file))) if listed else []
    except UNREADABLE:
        return []


def _find_table(checkpoint: Any) -> dict[str, Tensor] | None:
    """The table of tensors in a checkpoint, or the checkpoint itself; None where there is none."""
    for _ in TABLES:  # tables within tables
        if not isinstance(checkpoint, dict):
            return None
        inner = next((checkpoint[name] for name in TABLES if isinstance(checkpoint.get(name), dict)), None)
        if inner is None:
            break
        checkpoint = inner
    # Modules may keep more than tensors there: a quantiser's or a metric's extra state.
    table = {name: value for name, value in checkpoint.items() if not str(name).endswith("_extra_state")}
    good = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in table.items())
    return table if good else None


def _unusable(tensor: Tensor) -> str:
    """What a tensor is other than numbers in memory; empty if it is just that."""
    if tensor.is_nested or type(tensor) not in (Tensor, torch.nn.Parameter):
        return "nested" if tensor.is_nested else f"a {type(tensor).__name__}"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    return "" if tensor.device.type == "cpu" else f"without data (on the device {tensor.device})"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def misfit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The first difference between a model's tensors and others that should fit it, and how many more there are.

    Args:
        own: The model's, by name.
        tensors: The others, by name.

    Returns:
        A phrase such as "stem.0.weight is missing (and 3 more)"; empty if they fit.
    """
    problems = differences(own, tensors)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """All differences in names, shapes and kinds of numbers between a model's tensors and others, a phrase each."""
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    both = [(name, tensor, tensors[name]) for name, tensor in own.items() if name in tensors]
    problems += [
        f"{name} is {list(other.shape)} in place of {list(tensor.shape)}"
        for name, tensor, other in both
        if other.shape != tensor.shape
    ]
    return problems + list(_other_kinds(both))


def _other_kinds(both: list[tuple[str, Tensor, Tensor]]) -> Iterator[str]:
    for name, tensor, other in both:
        if tensor.is_floating_point():
            fits, wanted = other.dtype in FLOATS, "float16, bfloat16, float32 or float64"
        elif tensor.dtype == torch.bool:
            fits, wanted = other.dtype == torch.bool, "bool"
        else:
            whole = not (other.is_floating_point() or other.is_complex() or other.dtype == torch.bool)
            fits, wanted = whole, "integers"
        if not fits:
            yield f"{name} is {str(other.dtype).removeprefix('torch.')} in place of {wanted}"


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with a value that is NaN or infinite, and how many more there are, as :func:`misfit` says it."""
    names = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]} holds NaN or infinity{more}" if names else ""
