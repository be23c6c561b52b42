"""Read tensors from files and compare them with those of a model. No code in a file is ever run."""

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
    *(AttributeError, LookupError, TypeError, AssertionError, MemoryError, ImportError),  # from unpickling
)
"""What reading a broken file may raise."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Data types in which a model's parameters and statistics may be stored."""
TABLES = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts store weights, averaged weights first. ``module`` is SparK's."""


class _Inert:
    """Replaces an object in a checkpoint that is not needed: accepts any arguments and does nothing."""

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
        "builtins.getattr",  # a history buffer pickles its methods so
        "mmengine.logging.history_buffer.HistoryBuffer",
        *("numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in ("_reconstruct", "scalar")),
        *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
        *("datetime.datetime", "datetime.timedelta"),
    )
]
"""Classes of what training scripts store beside the tensors. None of them is imported: inert classes replace them."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors in a file.

    Args:
        file: A ``.safetensors`` file, or a checkpoint of ``torch.save``, of which the first of the :data:`TABLES` is
            read.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        WeightsError: If the file is missing or broken, holds other things than dense tensors, or would run code.
    """
    tensors = _read_safetensors(file) if file.suffix == ".safetensors" else _find_table(_unpickle(file))
    if tensors is None:
        raise WeightsError(f"cannot read {file}: it holds no table of tensors (a state dict)")
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
        problem = "it is a pickle, not safetensors" if pickled else first_line(error)
        raise WeightsError(f"cannot read {file}: {problem}") from error


def _unpickle(file: Path) -> Any:
    """Read tensors and plain values that ``torch.save`` wrote; objects of :data:`HARMLESS` classes become inert."""
    allowed = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with allowed(HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        with allowed(HARMLESS):
            classes = _pickled_classes(file)
        if classes := classes or _pickled_classes(file):  # without HARMLESS: they fail too if the pickle calls them
            raise WeightsError(
                f"cannot read {file}: it holds pickled objects ({', '.join(classes)}), which mim4d does not unpickle; "
                "if you trust the file, load it with torch and save only its table of tensors"
            ) from error
        problem = "it is not a torch checkpoint" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise WeightsError(f"cannot read {file}: {problem}") from error


def _pickled_classes(file: Path) -> list[str]:
    """Names of the classes of objects in a checkpoint; empty if this version of torch cannot list them."""
    listed = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        return sorted(listed(str(file))) if listed else []
    except UNREADABLE:
        return []


def _find_table(checkpoint: Any) -> dict[str, Tensor] | None:
    """Return the table of tensors in a checkpoint, or the checkpoint itself if it is one; None if there is none."""
    for _ in TABLES:  # tables may be nested
        if not isinstance(checkpoint, dict):
            return None
        inner = next((checkpoint[name] for name in TABLES if isinstance(checkpoint.get(name), dict)), None)
        if inner is None:
            break
        checkpoint = inner
    # A module's extra state (of a quantiser, of a metric) need not be a tensor.
    table = {name: value for name, value in checkpoint.items() if not str(name).endswith("_extra_state")}
    good = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in table.items())
    return table if good else None


def _unusable(tensor: Tensor) -> str:
    """Say what makes a tensor other than dense numbers in memory; empty if nothing does."""
    if tensor.is_nested or type(tensor) not in (Tensor, torch.nn.Parameter):
        return "nested" if tensor.is_nested else f"a {type(tensor).__name__}"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    return "" if tensor.device.type == "cpu" else f"without data (on the device {tensor.device})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if it has none.

    >>> first_line(ValueError("bad header\\n(in line 3)")), first_line(KeyError())
    ('bad header', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def misfit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Describe the first difference between a model's tensors and others that should fit it.

    Args:
        own: The model's tensors by name.
        tensors: The other tensors by name.

    Returns:
        A phrase with the number of further differences; empty if the tensors fit.

    >>> misfit({"w": torch.ones(3, 2), "b": torch.ones(3)}, {"w": torch.ones(3, 4)})
    'b is missing (and 1 more)'
    """
    problems = differences(own, tensors)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Describe all differences in name, shape and data type between a model's tensors and others, one phrase each.

    >>> differences({"w": torch.ones(3, 2)}, {"w": torch.ones(3, 4)})
    ['w has shape [3, 4], expected [3, 2]']
    """
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    both = [(name, tensor, tensors[name]) for name, tensor in own.items() if name in tensors]
    problems += [
        f"{name} has shape {list(other.shape)}, expected {list(tensor.shape)}"
        for name, tensor, other in both
        if other.shape != tensor.shape
    ]
    return problems + list(_dtype_differences(both))


def _dtype_differences(both: list[tuple[str, Tensor, Tensor]]) -> Iterator[str]:
    for name, tensor, other in both:
        if tensor.is_floating_point():
            fits, expected = other.dtype in FLOATS, "float16, bfloat16, float32 or float64"
        elif tensor.dtype == torch.bool:
            fits, expected = other.dtype == torch.bool, "bool"
        else:
            whole = not (other.is_floating_point() or other.is_complex() or other.dtype == torch.bool)
            fits, expected = whole, "integers"
        if not fits:
            yield f"{name} is {str(other.dtype).removeprefix('torch.')}, expected {expected}"


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name the first tensor with NaN or infinity and the number of further ones; empty if all are finite.

    >>> not_finite({"w": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)})
    'w holds NaN or infinity'
    """
    names = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]} holds NaN or infinity{more}" if names else ""
