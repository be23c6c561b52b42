"""Where weights can come from: a folder, a file, the Hub, a timm name; read whole and compared with their checksums."""

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from ..errors import WeightsError
from ..io.tensors import first_line, read_tensors
from .faults import NotFoundError
from .fetch import commit_of, fetch
from .folder import CONFIG, WEIGHTS, EncoderConfig, check_folder, check_weights, find_folder, read_config
from .schema import PRETRAINED


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors as they were published, and what their publisher says about them."""

    tensors: dict[str, Tensor]
    """By name; timm's names, the original ConvNeXt's or OpenMMLab's."""
    source: str
    """What to call them in messages."""
    about: dict[str, Any] = field(default_factory=dict)
    """timm's pretrained config where there is one: ``num_classes``, ``mean``, ``std``, ``license``, ..."""
    config: EncoderConfig | None = None
    """The whole ``config.json`` where there is one."""
    file: Path | None = None
    """Where they were read from, if it is a file beside its ``config.json``."""


def from_anywhere(source: str) -> Weights:
    """Weights by one string.

    Args:
        source: A timm name (``convnext_base.dinov3_lvd1689m``), a Hub id (``hf-hub:org/name`` or ``org/name``, with
            ``@revision`` if it is not the newest), a file (``.safetensors``, or ``.pth`` whose pickle holds tensors
            alone), a run, or a folder with ``config.json`` and ``model.safetensors``.

    Raises:
        WeightsError: If nothing is found there or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return from_file(path)
    if path.is_dir():
        return from_folder(find_folder(path))
    if has_form_of_path(source):
        raise WeightsError(nothing_at(source))
    if "/" in source:
        return from_hub_or_nowhere(source)
    config = timm.get_pretrained_cfg(source) if known_name(source) else None
    if config is None or not config.has_weights:
        near = difflib.get_close_matches(source, timm.list_pretrained(), n=3, cutoff=0.4)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise WeightsError(f"timm has no weights {source}{hint}")
    return from_config(config)


def has_form_of_path(source: str) -> bool:
    """Whether a string can be nothing but a file's or folder's path, there or not: no timm name, no ``org/name``."""
    if source.startswith("hf-hub:"):
        return False
    suffixes = (".safetensors", ".pth", ".pt", ".bin")
    return (
        source.startswith((".", "/", "~", "runs/"))  # where our own commands write
        or source.endswith(suffixes)
        or source.count("/") > 1
        or ("/" in source and Path(source).parent.is_dir())
    )


def nothing_at(source: str) -> str:
    """What to say of a path where nothing is; it may have been meant as a Hub id."""
    hint = f" (for a repository on the Hub: hf-hub:{source})" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) else ""
    return f"no such file or folder: {source}{hint}"


def from_hub_or_nowhere(source: str, **how: Any) -> Weights:
    """Weights by a Hub id, for a string that is no path here but may have been meant as one.

    Args:
        source: ``org/name``, or ``hf-hub:org/name`` where only the Hub is meant; ``@revision`` if need be.
        how: As for :func:`from_hub`.

    Raises:
        WeightsError: If there are none on the Hub, saying that there is no such folder either.
    """
    repo, _, revision = source.removeprefix("hf-hub:").partition("@")
    try:
        return from_hub(repo, **{"revision": revision or None, **how})
    except NotFoundError as error:
        if source.startswith("hf-hub:"):
            raise
        raise NotFoundError(f"{error} (and there is no {Path(source).absolute()})") from error


def known_name(name: str) -> bool:
    """Whether timm has weights by this name, with a tag or without."""
    known = timm.list_pretrained()
    return name in known or name in {tagged.partition(".")[0] for tagged in known}


def from_file(file: Path) -> Weights:
    """A file of tensors; compared with the ``config.json`` beside it if it is one of ours.

    Raises:
        WeightsError: If it cannot be read.
    """
    if file.name == WEIGHTS and (file.parent / CONFIG).is_file():
        check_folder(file.parent)
    return Weights(tensors=read_tensors(file), source=str(file))


def from_folder(folder: Path) -> Weights:
    """An encoder folder.

    Raises:
        WeightsError: If it is incomplete, damaged or not in timm's form.
    """
    config = check_folder(folder)
    file = folder / WEIGHTS
    return Weights(
        tensors=read_tensors(file), source=str(folder), about=_of_timm(config.about), config=config, file=file
    )


def from_hub(
    repo: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Weights:
    """A repository on the Hub in timm's form; config and weights are of one commit.

    Raises:
        WeightsError: If it cannot be had, is damaged or not in timm's form.
    """
    config, weights = fetch_encoder(repo, revision=revision, token=token, cache_dir=cache_dir)
    about = _of_timm(config.about, hf_hub_id=repo, source="hf-hub")
    return Weights(tensors=read_tensors(weights), source=repo, about=about, config=config, file=weights)


def fetch_folder(source: str) -> Path:
    """The folder in the cache that holds a repository's config and weights.

    Args:
        source: ``hf-hub:org/name``, with ``@revision`` if it is not the newest.

    Raises:
        WeightsError: As :func:`fetch_encoder`.
    """
    repo, _, revision = source.removeprefix("hf-hub:").partition("@")
    return fetch_encoder(repo, revision=revision or None)[1].parent


def arguments_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """What ``timm.create_model`` makes an encoder folder's model of: its name, and arguments that were checked.

    timm's own ``local-dir:`` takes every argument that a folder names, and older versions prefer a pickle in it.

    Raises:
        WeightsError: If the folder is damaged or not in timm's form.
    """
    config = check_folder(folder)
    about = {**_of_timm(config.about), "file": str(folder / WEIGHTS)}
    return config.values["architecture"], {"pretrained_cfg": about, **config.model_args}


def fetch_encoder(
    repo: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[EncoderConfig, Path]:
    """Fetch a repository's config and the path of its weights in the cache; its config lies beside them.

    Raises:
        WeightsError: If they cannot be had, are damaged, or are not of each other.
    """
    file = fetch(repo, CONFIG, revision=revision, token=token, cache_dir=cache_dir)
    config = read_config(file, f"{CONFIG} of {repo}")
    weights = fetch(repo, WEIGHTS, revision=commit_of(file, CONFIG), token=token, cache_dir=cache_dir)
    check_weights(weights, config, f"{WEIGHTS} of {repo}")
    return config, weights


def from_config(config: PretrainedCfg, *, cache_dir: str | Path | None = None) -> Weights:
    """What one of timm's pretrained configs points at, looked for where timm looks and in timm's order.

    Raises:
        WeightsError: If it cannot be had or is damaged.
    """
    about = dataclasses.replace(config, state_dict=None).to_dict()

    def weights(tensors: dict[str, Tensor], source: str) -> Weights:
        return Weights(tensors=tensors, source=source, about=about)

    if config.source == "local-dir" and config.file:
        return from_folder(Path(config.file))
    if config.source != "hf-hub":
        if config.state_dict:
            return weights(config.state_dict, "the given state_dict")
        if config.file:
            return dataclasses.replace(from_file(Path(config.file)), about=about)
    if config.hf_hub_id:
        repo, _, revision = config.hf_hub_id.partition("@")
        filename = config.hf_hub_filename or WEIGHTS
        file = fetch(repo, filename, revision=revision or None, cache_dir=cache_dir)
        return weights(read_tensors(file), f"{repo}/{filename}")
    assert config.url, "callers see to it that there are weights"
    url = config.url if isinstance(config.url, str) else config.url[0]  # timm may name the file beside it
    return weights(_guard(lambda: _download(url, cache_dir), url), url)


def _download(url: str, cache_dir: str | Path | None) -> dict[str, Tensor]:
    return torch.hub.load_state_dict_from_url(
        url, str(cache_dir) if cache_dir else None, map_location="cpu", check_hash=True, weights_only=True
    )


def _guard(download: Callable[[], dict[str, Tensor]], url: str) -> dict[str, Tensor]:
    try:
        return download()
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"cannot download {url}: {first_line(error)}") from error


def _of_timm(about: dict[str, Any], **origin: str) -> dict[str, Any]:
    """The entries that are checked and that this version of timm knows, none of which says where weights are."""
    known = {f.name for f in dataclasses.fields(PretrainedCfg)} & PRETRAINED.keys()
    return {**{name: value for name, value in about.items() if name in known}, **origin}
