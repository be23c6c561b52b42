"""From the Hub or a folder: an encoder as a model, or as a folder of its own."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi

from ..encoder import CONFIG as FAMILY
from ..errors import WeightsError
from ..files import write_folder
from ..version import __version__
from .faults import told
from .folder import CARD, CONFIG, WEIGHTS, find_folder, save_encoder
from .sources import Weights, fetch_encoder, from_folder, from_hub


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
        weights = from_folder(find_folder(path))
    elif isinstance(repo_or_folder, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise WeightsError(f"there is no folder {source}")
    else:
        weights = from_hub(source.removeprefix("hf-hub:"), revision=revision, token=token, cache_dir=cache_dir)
    return _made(weights, **kwargs)


def _made(weights: Weights, **kwargs: Any) -> Any:
    """The encoder that a config describes, with its weights.

    Raises:
        WeightsError: If it is no architecture of ours, or the weights do not fit it.
    """
    config = weights.config
    assert config is not None
    if not timm.is_model(config.model):
        name = config.values["architecture"]
        raise WeightsError(f"{weights.source} is a {name}, which is no architecture of mim4d's")
    try:
        encoder = timm.create_model(
            config.model, pretrained_cfg=weights.about, given_weights=weights, **{**config.model_args, **kwargs}
        )
    except TypeError as error:  # an argument that the class does not have
        raise WeightsError(f"{weights.source}: cannot make a {config.model}: {error}") from error
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
        image_size=None if "input_size" in weights.config.about else FAMILY["input_size"][1:],
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
    config, weights = fetch_encoder(repo, revision=revision, token=token)
    folder = weights.parent
    if out is not None:
        _check_ours(out)
        files = [folder / CONFIG, weights]
        write_folder(out, lambda partial: _copy(files, partial), "the encoder")
        folder = out
    return Pulled(config.model, folder, config.about.get("license"))


def contents(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """What :func:`pull` would fetch: a line for each file.

    Raises:
        WeightsError: If the repository cannot be seen or is no encoder's.
    """
    try:
        info = HfApi(token=token, library_name="mim4d", library_version=__version__).model_info(
            repo, revision=revision, files_metadata=True
        )
    except Exception as error:  # the client's own kinds and its HTTP library's
        raise told(error, repo, revision=revision) from error
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
