"""Checkpoints to resume from: safetensors and JSON, no pickle, written atomically.

``checkpoints/step_00000100/`` holds ``model.safetensors``, ``optimizer.safetensors`` (moments by parameter name),
``ema.safetensors`` if there is an average, and ``state.json`` (step, model config, package version, the sha256 of each
file). Learning rate, data order and randomness follow from the step and the seed, so they are not saved.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..io.files import rename_folder, sha256_of, write_folder
from ..io.tensors import misfit, read_tensors
from ..version import __version__

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8})")
_STATE = "state.json"
_SUMS = "sha256"


class DamagedError(UserError):
    """A checkpoint is damaged; an older one may be intact."""


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in ``checkpoints/``, oldest first."""
    return sorted(path for path in folder.glob("step_*") if _NAME.fullmatch(path.name))


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
    identity: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and remove the oldest beyond ``keep``.

    Args:
        folder: The run's ``checkpoints/``.
        step: Number of steps done.
        model: The model, not wrapped.
        optimizer: Its optimiser, not wrapped.
        ema: The average of the model's weights, or None.
        identity: Settings that a resumed run must share, such as the model's config: flat values that JSON can hold.
        keep: Number of newest checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: If it cannot be written; the checkpoints before it stay as they are.
    """
    before = list_checkpoints(folder)
    path = folder / f"step_{step:08d}"

    def fill(partial: Path) -> None:
        save_file(_contiguous(model.state_dict()), partial / "model.safetensors")
        save_file(_moments(model, optimizer), partial / "optimizer.safetensors")
        if ema is not None:
            save_file(_contiguous(ema.state_dict()), partial / "ema.safetensors")
        state = {"step": step, "identity": identity, "mim4d": __version__}
        sums = {file.name: sha256_of(file) for file in sorted(partial.iterdir())} | {_STATE: _sum_of(state)}
        (partial / _STATE).write_text(json.dumps(state | {_SUMS: sums}, indent=1) + "\n")

    kept = f"; {before[-1].name} is complete: free some space and resume with --resume" if before else ""
    try:
        write_folder(path, fill, "a checkpoint")
    except UserError as error:
        raise UserError(f"{error}{kept}") from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def first_not_finite(model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> str | None:
    """Find NaN or infinity in the state of a checkpoint, waiting for the device once.

    Returns:
        The name of the first such tensor, such as ``the weight encoder.stem.0.bias``; None if all are finite.
    """
    tensors = {f"the weight {name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {
        f"the average of the weight {name}": tensor for name, tensor in (ema.state_dict() if ema else {}).items()
    }
    tensors |= {f"the optimiser's {name}": tensor for name, tensor in _moments(model, optimizer).items()}
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    return next((name for name, good in zip(floating, finite, strict=True) if not good), None)


def newest_whole(folder: Path) -> Path | None:
    """Find the newest undamaged checkpoint in ``checkpoints/``; None if there is no checkpoint.

    Damaged ones that are newer are renamed to ``step_*.damaged``, with a warning.

    Raises:
        UserError: If all are damaged; none is renamed.
    """
    damaged: list[tuple[Path, DamagedError]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            check_checkpoint(path)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for other, problem in damaged:
            aside = other.with_name(f"{other.name}.damaged")
            rename_folder(other, aside)
            logger.warning("%s; renamed to %s, resuming from %s", problem, aside.name, path.name)
        return path
    if damaged:
        raise UserError(
            f"{damaged[0][1]}; there is no other checkpoint in {folder}: start a new run with another --out"
        )
    return None


def check_checkpoint(path: Path, *names: str) -> None:
    """Compare the files of a checkpoint with their checksums; old checkpoints without checksums only have to open.

    Args:
        path: The checkpoint.
        names: Files to check; all if none are given.

    Raises:
        DamagedError: Naming the first file that is missing or differs.
    """
    state = _read_state(path)
    sums = state.pop(_SUMS, None)
    files = sums or dict.fromkeys(("model.safetensors", "optimizer.safetensors"))
    for name, expected in files.items():
        if names and name not in names:
            continue
        file = path / name
        try:
            if sums is None:
                with safe_open(file, framework="pt"):
                    continue
            found = _sum_of(state) if name == _STATE else sha256_of(file)
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"cannot read {file}: {' '.join(str(error).split())}") from error
        if found != expected:
            raise DamagedError(f"{file} is damaged: its sha256 differs from the one in state.json")


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
    identity: dict[str, Any],
) -> int:
    """Load a checkpoint into a model and its optimiser, strictly.

    Returns:
        Number of steps done.

    Raises:
        UserError: If it belongs to another model, a file is damaged, or a tensor is missing, unknown or of another
            shape.
    """
    state = _read_state(path)
    step, saved = int(state["step"]), state["identity"]
    for key in sorted(identity.keys() | saved.keys()):
        then, now = saved.get(key), identity.get(key)
        # Checkpoints lack settings that were added since, which must be off; early ones of 0.1.0 lack clips.
        if then != now and (key in saved or (now and key != "clips")):
            remedy = {
                "clips_per_step": f"; keep batch-size x accumulate x processes at {then}",
                "clips": "; the scenes or times of its data differ from those of --dataroot and --tolerance",
            }.get(key, "")
            raise UserError(f"{path} belongs to another run: {key} was {then}, now it is {now}{remedy}")
    try:
        load_strict(model, read_tensors(path / "model.safetensors"), path / "model.safetensors")
        if ema is not None:
            load_strict(ema, read_tensors(path / "ema.safetensors"), path / "ema.safetensors")
        _load_moments(model, optimizer, path / "optimizer.safetensors")
    except UserError as error:
        raise UserError(f"{error}; remove {path} to resume from the one before") from error
    return step


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / _STATE).read_text())
        if int(state["step"]) < 0 or not isinstance(state["identity"], dict):
            raise ValueError("no step or no identity")
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{_STATE} has no {error}" if isinstance(error, KeyError) else error
        raise DamagedError(f"cannot read the checkpoint {path}: {what}") from error


def _sum_of(state: dict[str, Any]) -> str:
    """Return the sha256 of ``state.json`` without its checksums."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_strict(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load exactly the module's tensors.

    Raises:
        UserError: If one is missing, unknown or of another shape, naming the first.
    """
    if problem := misfit(module.state_dict(), tensors):
        raise UserError(f"{source} does not fit this model: {problem}")
    module.load_state_dict(tensors)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as ``{parameter}.{exp_avg|exp_avg_sq|step}``."""
    return {
        f"{name}.{what}": tensor.contiguous()
        for name, parameter in model.named_parameters()
        for what, tensor in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    tensors = read_tensors(file)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments: dict[str, Tensor] = {}
        for what in ("exp_avg", "exp_avg_sq", "step"):
            tensor = tensors.pop(f"{name}.{what}", None)
            if tensor is None or (what != "step" and tensor.shape != parameter.shape):
                raise UserError(f"{file} does not fit this model: {name}.{what} is missing or of another shape")
            moments[what] = tensor.to(parameter.device, copy=True)
        optimizer.state[parameter] = moments
    if tensors:
        raise UserError(f"{file} does not fit this model: {next(iter(tensors))} is unknown")
