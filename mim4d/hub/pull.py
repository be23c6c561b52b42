"""From the Hub or a folder: an encoder as a model, or as a folder of its own."""

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
from .fetch import TIMEOUT
from .folder import CARD, CONFIG, FAMILY, WEIGHTS, find_folder, save_encoder
from .load import fit_weights
from .published import BASE_CFG
from .sources import Weights, from_folder, from_hub, from_hub_or_nowhere, has_form_of_path, nothing_at


def encoder_from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """See :meth:`mim4d.MIM4DEncoder.from_pretrained`."""
    source = str(repo_or_folder)
    path = Path(source).expanduser()
    if path.exists():
        if revision:
            raise WeightsError(f"{source} is a folder here, and folders have no revision {revision}")
        return _made(from_folder(find_folder(path)), **kwargs)
    if isinstance(repo_or_folder, Path) or has_form_of_path(source):
        raise WeightsError(nothing_at(source))
    if "/" not in source:
        hint = f"; weights with a name: timm.create_model({source!r}, pretrained=True)" if timm.is_model(source) else ""
        raise WeightsError(f"no such folder: {source}, and a repository on the Hub is org/name{hint}")
    return _made(from_hub_or_nowhere(source, revision=revision, token=token, cache_dir=cache_dir), **kwargs)


def open_encoder(path: Path) -> Weights:
    """The encoder in a run or a folder, verified: see :func:`verify`.

    Raises:
        WeightsError: If there is none, it is damaged, or the weights are not those of an architecture of ours.
    """
    weights = from_folder(find_folder(path))
    verify(weights)
    return weights


def verify(weights: Weights) -> int:
    """See that weights are all that the architecture in their config needs, and nothing else.

    The architecture is laid out on the meta device first, so that a config costs no memory that its weights do not.

    Args:
        weights: With a config.

    Returns:
        The number of tensors that fit.

    Raises:
        WeightsError: If the architecture is none of ours, cannot be made, or the weights do not fit it.
    """
    name, arguments = _call(weights)
    try:
        with torch.device("meta"):
            empty = timm.create_model(name, **arguments)
    except Exception as error:  # timm's constructors raise all kinds, AssertionError and ZeroDivisionError among them
        raise WeightsError(f"{weights.source}: cannot make a {name}: {first_line(error)}") from error
    taken, _ = fit_weights(empty, weights)
    return len(taken)


def _call(weights: Weights) -> tuple[str, dict[str, Any]]:
    """What to call ``timm.create_model`` with: a name of ours, and arguments that were checked."""
    config = weights.config
    assert config is not None
    if not timm.is_model(config.model):
        raise WeightsError(f"{weights.source} is a {config.model}, which timm {timm.__version__} does not know")
    own: Any = timm.get_pretrained_cfg(config.model)
    modules = {"first_conv": own.first_conv, "classifier": own.classifier}
    about = {**weights.about, **modules} if weights.about else None
    return config.model, {"pretrained_cfg": about, **config.model_args}


def _made(weights: Weights, **kwargs: Any) -> Any:
    """The encoder that a config describes, with its weights.

    Raises:
        WeightsError: If it is no architecture of ours, or the weights do not fit it.
    """
    verify(weights)
    name, arguments = _call(weights)
    if name.startswith(FAMILY):
        given: dict[str, Any] = {"given_weights": weights}
    else:  # timm reads the file itself, which was verified
        arguments = {**arguments, "pretrained_cfg": {**arguments["pretrained_cfg"], "file": str(weights.file)}}
        given = {"pretrained": True}
    try:
        encoder = timm.create_model(name, **given, **{**arguments, **kwargs})
    except TypeError as error:  # an argument that the class does not have
        raise WeightsError(f"{weights.source}: cannot make a {name}: {error}") from error
    return encoder.eval()


def rewrite(weights: Weights, folder: Path, *, license: str | None, half: bool) -> None:
    """Write weights as an encoder folder.

    Args:
        weights: With a config.
        folder: Where to.
        license: In place of the one that the config has.
        half: Store float16, for half the size.

    Raises:
        UserError: If they do not fit the architecture, or the folder cannot be written or holds something else.
    """
    assert weights.config is not None
    _check_ours(folder)
    about = weights.config.provenance
    made_anew = ("version", "sha256")
    save_encoder(
        _made(weights),
        folder,
        # Not what the model's config would say: that is of the weights that come with the package.
        image_size=None if "input_size" in weights.config.about else BASE_CFG["input_size"][1:],
        license=license or weights.config.about.get("license"),
        provenance={name: value for name, value in about.items() if name not in made_anew},
        half=half,
    )


@dataclass(frozen=True)
class Pulled:
    """An encoder that was fetched."""

    model: str
    """Our name of its architecture."""
    folder: Path
    """With ``config.json`` and ``model.safetensors``."""
    license: str | None
    """Of the weights, where their config names it."""
    tensors: int
    """How many there are: names, shapes and types are the architecture's, and no value is NaN or infinite."""
    checksum: str | None
    """The weights' sha256 where their config names it: it is the file's."""


def pull(repo: str, *, revision: str | None = None, out: Path | None = None, token: str | bool | None = None) -> Pulled:
    """Fetch and verify an encoder, so that it is there without the network too.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit.
        out: A folder to copy it to; None leaves it in the client's cache.
        token: None for the one of the login.

    Raises:
        UserError: If it cannot be had, is damaged, or ``out`` cannot be written.
    """
    weights = from_hub(repo, revision=revision, token=token)
    tensors = verify(weights)
    assert weights.config is not None
    assert weights.file is not None
    config, folder = weights.config, weights.file.parent
    if out is not None:
        _check_ours(out)
        files = [folder / CONFIG, folder / WEIGHTS]
        write_folder(out, lambda partial: _copy(files, partial), "the encoder")
        folder = out
    return Pulled(config.model, folder, config.about.get("license"), tensors, config.provenance.get("sha256"))


def contents(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """What :func:`pull` would fetch: a line for each file.

    Raises:
        WeightsError: If the repository cannot be seen or is no encoder's.
    """
    try:
        info = HfApi(token=token, library_name="mim4d", library_version=__version__).model_info(
            repo, revision=revision, timeout=TIMEOUT, files_metadata=True
        )
    except Exception as error:  # the client's own kinds and its HTTP library's
        raise hub_error(error, repo, revision=revision) from error
    there = {file.rfilename: file for file in info.siblings or []}
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in there]:
        raise WeightsError(f"{repo} has no {missing[0]}: it is no encoder's repository")
    return [f"{name:17}  {there[name].size:>13,} bytes" for name in (CONFIG, WEIGHTS)]


def _check_ours(folder: Path) -> None:
    """See that a folder may be replaced: it is not there, or it holds an encoder or nothing."""
    if folder.exists() and not (
        folder.is_dir() and {file.name for file in folder.iterdir()} <= {CONFIG, WEIGHTS, CARD}
    ):
        raise WeightsError(f"{folder} exists and holds something else: name another folder")


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        shutil.copyfile(file, folder / file.name)
