"""Encoders from the Hub or a folder, as a model or as a folder of their own."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi

from ..errors import WeightsError
from ..io.files import write_folder
from ..io.tensors import first_line
from ..version import __version__
from .faults import hub_error
from .fetch import TIMEOUT, HubRepo
from .folder import CARD, CONFIG, FAMILY, WEIGHTS, find_folder, save_encoder
from .load import fit_weights, layers_left_out
from .published import BASE_CFG
from .sources import EncoderWeights, from_folder, from_hub, from_hub_id, looks_like_path, not_found


def encoder_from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """Load an encoder; see :meth:`mim4d.MIM4DEncoder.from_pretrained`."""
    source = str(repo_or_folder)
    path = Path(source).expanduser()
    if path.exists():
        if revision:
            raise WeightsError(f"{source} is a folder, which has no revision {revision}: leave out revision")
        return _build(from_folder(find_folder(path)), **kwargs)
    if isinstance(repo_or_folder, Path) or looks_like_path(source):
        raise WeightsError(not_found(source))
    if "/" not in source:
        hint = f"; for its own weights: timm.create_model({source!r}, pretrained=True)" if timm.is_model(source) else ""
        raise WeightsError(f"no such folder: {source}; expected a folder, or org/name for the Hub{hint}")
    repo = HubRepo.parse(source, revision=revision, token=token, cache_dir=cache_dir)
    return _build(from_hub_id(source, repo), **kwargs)


def open_encoder(path: Path) -> EncoderWeights:
    """Load the encoder of a run or an encoder folder, and verify it with :func:`verify`.

    Raises:
        WeightsError: If there is none, it is damaged, or the weights do not fit their architecture.
    """
    weights = from_folder(find_folder(path))
    verify(weights)
    return weights


def verify(weights: EncoderWeights) -> int:
    """Check that weights have exactly the tensors that their architecture needs.

    The architecture is built on the meta device, so that a config cannot allocate memory.

    Args:
        weights: The weights.

    Returns:
        The number of tensors that fit.

    Raises:
        WeightsError: If timm does not know the architecture or cannot build it, or the weights do not fit it.
    """
    name, arguments = _create_model_args(weights)
    try:
        with torch.device("meta"):
            empty = timm.create_model(name, **arguments)
    except Exception as error:  # timm's constructors raise all kinds, AssertionError and ZeroDivisionError among them
        raise WeightsError(f"{weights.source}: cannot build a {name}: {first_line(error)}") from error
    tensors, _ = fit_weights(empty, weights)
    return len(tensors)


def _create_model_args(weights: EncoderWeights) -> tuple[str, dict[str, Any]]:
    """Return the name and checked arguments with which ``timm.create_model`` builds the model of weights."""
    config = weights.config
    if not timm.is_model(config.model):
        raise WeightsError(f"{weights.source} is a {config.model}, which timm {timm.__version__} does not know")
    own: Any = timm.get_pretrained_cfg(config.model)
    modules = {"first_conv": own.first_conv, "classifier": own.classifier}
    cfg = {**weights.pretrained_cfg, **modules} if weights.pretrained_cfg else None
    return config.model, {"pretrained_cfg": cfg, **config.model_args}


def _build(weights: EncoderWeights, **kwargs: Any) -> Any:
    """Build the model of weights and load them.

    Raises:
        WeightsError: If timm does not know the architecture, or the weights do not fit it.
    """
    verify(weights)
    name, arguments = _create_model_args(weights)
    if name.startswith(FAMILY):
        arguments["given_weights"] = weights
    else:  # timm reads the verified file itself
        arguments["pretrained_cfg"] = {**arguments["pretrained_cfg"], "file": str(weights.file)}
        arguments["pretrained"] = True
    try:
        with layers_left_out():
            encoder = timm.create_model(name, **{**arguments, **kwargs})
    except TypeError as error:  # an argument that the class does not have
        raise WeightsError(f"{weights.source}: cannot build a {name}: {error}") from error
    return encoder.eval()


def rewrite(weights: EncoderWeights, folder: Path, *, license: str | None, half: bool) -> None:
    """Write weights as an encoder folder.

    Args:
        weights: The weights.
        folder: The target.
        license: Replaces the config's licence; None keeps it.
        half: Store float16, in half the size.

    Raises:
        UserError: If the weights do not fit the architecture, or the folder cannot be written or holds other files.
    """
    _check_replaceable(folder)
    cfg = weights.config.pretrained_cfg
    save_encoder(
        _build(weights),
        folder,
        # Not from the model's own config, which is that of the packaged weights.
        image_size=None if "input_size" in cfg else BASE_CFG["input_size"][1:],
        license=license or cfg.get("license"),
        provenance={
            name: value for name, value in weights.config.provenance.items() if name not in ("version", "sha256")
        },
        half=half,
    )


@dataclass(frozen=True)
class Pulled:
    """A downloaded and verified encoder."""

    model: str
    """mim4d's name of the architecture."""
    folder: Path
    """Holds ``config.json`` and ``model.safetensors``."""
    license: str | None
    """Licence of the weights; None if their config has none."""
    tensors: int
    """Number of tensors. Names, shapes and types are those of the architecture, and all values are finite."""
    checksum: str | None
    """The verified sha256 of the weights; None if their config has none."""


def pull(repo: str, *, revision: str | None = None, out: Path | None = None, token: str | bool | None = None) -> Pulled:
    """Download and verify an encoder, which is then available offline too.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit.
        out: A folder to copy the encoder to; None leaves it in the client's cache.
        token: None for the token of the login.

    Raises:
        UserError: If it cannot be downloaded, is damaged, or ``out`` cannot be written.
    """
    weights = from_hub(HubRepo(repo, revision=revision, token=token))
    tensors = verify(weights)
    config, folder = weights.config, weights.folder
    if out is not None:
        _check_replaceable(out)
        files = [folder / CONFIG, folder / WEIGHTS]
        write_folder(out, lambda partial: _copy(files, partial), "the encoder")
        folder = out
    license, checksum = config.pretrained_cfg.get("license"), config.provenance.get("sha256")
    return Pulled(config.model, folder, license, tensors, checksum)


def contents(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """List the files that :func:`pull` would download, one line per file.

    Args:
        repo: As for :func:`pull`.
        revision: As for :func:`pull`.
        token: As for :func:`pull`.

    Raises:
        WeightsError: If the repository cannot be read or is not that of an encoder.
    """
    try:
        info = HfApi(token=token, library_name="mim4d", library_version=__version__).model_info(
            repo, revision=revision, timeout=TIMEOUT, files_metadata=True
        )
    except Exception as error:  # of the client or of its HTTP library
        raise hub_error(error, repo, revision=revision) from error
    files = {file.rfilename: file for file in info.siblings or []}
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in files]:
        raise WeightsError(f"{repo} has no {missing[0]}: expected an encoder, with {CONFIG} and {WEIGHTS}")
    return [f"{name:17}  {files[name].size:>13,} bytes" for name in (CONFIG, WEIGHTS)]


def _check_replaceable(folder: Path) -> None:
    """Check that a folder does not exist, is empty or holds an encoder only."""
    if folder.exists() and not (
        folder.is_dir() and {file.name for file in folder.iterdir()} <= {CONFIG, WEIGHTS, CARD}
    ):
        raise WeightsError(f"{folder} exists and holds other files than an encoder: choose another folder")


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        shutil.copyfile(file, folder / file.name)
