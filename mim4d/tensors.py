"""Tensors in files, and whether they fit a model. Nothing here runs code that a file brings."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import Tensor

from .errors import WeightsError

UNREADABLE = (
    *(OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError),
    *(AttributeError, LookupError, TypeError),  # what unpickling, and timm's look into tables, make of other files
)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Args:
        file: A ``.safetensors`` file, or a checkpoint that ``torch.save`` wrote: of the tables in it the average's is
            taken before the model's.

    Raises:
        WeightsError: If it is missing, broken, or holds more than tensors and plain values: that is refused unread.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = load_state_dict(str(file), use_ema=True, device="cpu", weights_only=True)
    except UNREADABLE as error:
        objects = _objects(file)
        if objects:
            raise WeightsError(
                f"cannot read {file}: it holds pickled objects ({', '.join(objects)}), which are never unpickled here; "
                "if you trust it, save its table of tensors alone"
            ) from error
        raise WeightsError(f"cannot read {file}: {first_line(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"cannot read {file}: there is no table of tensors in it")
    if not tensors:
        raise WeightsError(f"cannot read {file}: its table of tensors is empty")
    return tensors


def _objects(file: Path) -> list[str]:
    """Names of the classes that a checkpoint asks to be made, as far as this version of torch can tell."""
    listed = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        return sorted(listed(str(file))) if listed else []
    except UNREADABLE:
        return []


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
    """All differences in names and shapes between a model's tensors and others, a phrase each."""
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)} in place of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return problems
