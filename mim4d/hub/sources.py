"""Weights from a folder, a file, the Hub or a timm name, verified by their checksums."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from ..errors import WeightsError
from ..io.tensors import first_line, read_tensors
from .faults import NotFoundError
from .fetch import HUB_PREFIX, HubRepo, commit_of, fetch
from .folder import CONFIG, FAMILY, WEIGHTS, EncoderConfig, check_folder, check_weights, find_folder, read_config
from .published import is_ours
from .schema import PRETRAINED
from .team import team_hub


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors as they were published, with the metadata of their publisher."""

    tensors: Mapping[str, Tensor]
    """By timm's names, the original ConvNeXt's or OpenMMLab's."""
    source: str
    """Their name for messages."""
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    """timm's pretrained config, such as ``num_classes``, ``mean``, ``std`` and ``license``; empty if unknown."""


@dataclass(frozen=True, kw_only=True)
class EncoderWeights(Weights):
    """Weights with their ``config.json``, from which their model can be built."""

    config: EncoderConfig
    file: Path | None = None
    """The weights beside their ``config.json``; None if they were converted in memory."""

    @property
    def folder(self) -> Path:
        """The encoder folder that holds the weights."""
        assert self.file is not None, "converted weights have no folder"
        return self.file.parent


def from_anywhere(source: str) -> Weights:
    """Load weights from any kind of source.

    Args:
        source: A timm name (``convnext_base.dinov3_lvd1689m``); a repository on the Hub (``org/name`` or
            ``hf-hub:org/name``, with ``@revision`` for another than the newest); a run; a folder with ``config.json``
            and ``model.safetensors``; or a file (``.safetensors``, or ``.pth`` whose pickle holds tensors only).

    Raises:
        WeightsError: If there are no such weights or they cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return from_file(path)
    if path.is_dir():
        return from_folder(find_folder(path))
    if looks_like_path(source):
        raise WeightsError(not_found(source))
    if "/" in source:
        return from_hub_id(source, HubRepo.parse(source))
    if weights := from_team(source):
        return weights
    config = timm.get_pretrained_cfg(source) if is_pretrained_name(source) else None
    if config is None or not config.has_weights:
        close = difflib.get_close_matches(source, timm.list_pretrained(), n=3, cutoff=0.4)
        hint = f"; similar names are {', '.join(close)}" if close else ""
        raise WeightsError(f"timm has no weights {source}{hint}")
    return from_config(config)


def is_team_name(name: str) -> bool:
    """Return whether a name means weights of the team's hub: there is one, and the name is not the package's own.

    Raises:
        UserError: If the setting of the hub is wrong.
    """
    model, _, tag = name.partition(".")
    return model.startswith(FAMILY) and timm.is_model(model) and not is_ours(model, tag or None) and bool(team_hub())


def from_team(name: str, *, cache_dir: str | Path | None = None) -> "EncoderWeights | None":
    """Load weights from the team's hub.

    Args:
        name: ``mim4d_convnext_base``, or with a tag ``mim4d_convnext_base.v1``.
        cache_dir: Cache of the Hub's client; None for its default.

    Returns:
        None if no hub is named, or the name is that of packaged or released weights.

    Raises:
        UserError: If the hub has no such weights, they are damaged, or of another architecture.
    """
    hub = team_hub() if is_team_name(name) else None
    if hub is None:
        return None
    model, _, tag = name.partition(".")
    where = hub.where(model, tag or None)
    try:
        if hub.folder:
            weights = from_folder(find_folder(Path(where)))
        else:
            weights = from_hub(HubRepo.parse(where, cache_dir=cache_dir))
    except WeightsError as error:
        raise type(error)(f"{error} ({hub.set_by})") from error
    if weights.config.model != model:
        raise WeightsError(f"{where} holds a {weights.config.model}, expected a {model} ({hub.set_by})")
    return dataclasses.replace(weights, pretrained_cfg={**weights.pretrained_cfg, "tag": tag or None})


def looks_like_path(source: str) -> bool:
    """Return whether a string can only be the path of a file or folder, not a timm name and not ``org/name``.

    >>> looks_like_path("runs/demo"), looks_like_path("org/name"), looks_like_path("w.pth")
    (True, False, True)
    """
    if source.startswith(HUB_PREFIX):
        return False
    suffixes = (".safetensors", ".pth", ".pt", ".bin")
    return (
        source.startswith((".", "/", "~", "runs/"))  # mim4d's commands write to runs/
        or source.endswith(suffixes)
        or source.count("/") > 1
        or ("/" in source and Path(source).parent.is_dir())
    )


def not_found(source: str) -> str:
    """Return the message for a path that does not exist; with a hint if it may have been meant for the Hub."""
    hint = f" (for a repository on the Hub: {HUB_PREFIX}{source})" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) else ""
    return f"no such file or folder: {source}{hint}"


def from_hub_id(source: str, repo: HubRepo) -> EncoderWeights:
    """Load weights from the Hub, by a string that could also have been meant as a path.

    Args:
        source: The string: ``org/name``, or ``hf-hub:org/name`` where only the Hub is meant.
        repo: The repository that it names.

    Raises:
        WeightsError: If the Hub has no such weights; the message says that there is no such folder either.
    """
    try:
        return from_hub(repo)
    except NotFoundError as error:
        if source.startswith(HUB_PREFIX):
            raise
        raise NotFoundError(f"{error} (and there is no folder {Path(source).absolute()})") from error


def is_pretrained_name(name: str) -> bool:
    """Return whether timm has weights by this name, with or without a tag."""
    names = timm.list_pretrained()
    return name in names or name in {tagged.partition(".")[0] for tagged in names}


def from_file(file: Path) -> Weights:
    """Load a file of tensors; if it is a ``model.safetensors`` beside its ``config.json``, verify the checksum.

    Raises:
        WeightsError: If it cannot be read.
    """
    if file.name == WEIGHTS and (file.parent / CONFIG).is_file():
        check_folder(file.parent)
    return Weights(tensors=read_tensors(file), source=str(file))


def from_folder(folder: Path) -> EncoderWeights:
    """Load an encoder folder.

    Raises:
        WeightsError: If it is incomplete, damaged or not in timm's format.
    """
    config, file = check_folder(folder), folder / WEIGHTS
    return EncoderWeights(
        tensors=read_tensors(file),
        source=str(folder),
        pretrained_cfg=_known_entries(config.pretrained_cfg),
        config=config,
        file=file,
    )


def from_hub(repo: HubRepo) -> EncoderWeights:
    """Load a repository in timm's format; config and weights are of one commit.

    Raises:
        WeightsError: If it cannot be downloaded, is damaged or not in timm's format.
    """
    config, file = fetch_encoder(repo)
    cfg = {**_known_entries(config.pretrained_cfg), "hf_hub_id": repo.name, "source": "hf-hub"}
    return EncoderWeights(tensors=read_tensors(file), source=repo.name, pretrained_cfg=cfg, config=config, file=file)


def create_model_args(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and checked arguments with which ``timm.create_model`` builds the model of an encoder folder.

    timm's own ``local-dir:`` accepts every argument that a folder names, and older versions prefer a pickle in it.

    Raises:
        WeightsError: If the folder is damaged or not in timm's format.
    """
    config = check_folder(folder)
    cfg = {**_known_entries(config.pretrained_cfg), "file": str(folder / WEIGHTS)}
    return config.values["architecture"], {"pretrained_cfg": cfg, **config.model_args}


def fetch_encoder(repo: HubRepo) -> tuple[EncoderConfig, Path]:
    """Download a repository's config and weights.

    Returns:
        The config, and the file of weights in the cache, which lies beside its config.

    Raises:
        WeightsError: If they cannot be downloaded, are damaged, or do not belong together.
    """
    file = fetch(repo, CONFIG)
    config = read_config(file, f"{CONFIG} of {repo.name}")
    weights = fetch(dataclasses.replace(repo, revision=commit_of(file, CONFIG)), WEIGHTS)
    check_weights(weights, config, f"{WEIGHTS} of {repo.name}")
    return config, weights


def from_config(config: PretrainedCfg, *, cache_dir: str | Path | None = None) -> Weights:
    """Load the weights of a timm pretrained config, from the same place as timm.

    Args:
        config: A config with weights.
        cache_dir: Cache for downloads; None for the default ones.

    Raises:
        WeightsError: If they cannot be downloaded or are damaged.
    """
    cfg = dataclasses.replace(config, state_dict=None).to_dict()
    if config.source == "local-dir" and config.file:
        return from_folder(Path(config.file))
    if config.source != "hf-hub":
        if config.state_dict:
            return Weights(tensors=config.state_dict, source="the given state_dict", pretrained_cfg=cfg)
        if config.file:
            return dataclasses.replace(from_file(Path(config.file)), pretrained_cfg=cfg)
    if config.hf_hub_id:
        repo, filename = HubRepo.parse(config.hf_hub_id, cache_dir=cache_dir), config.hf_hub_filename or WEIGHTS
        tensors, source = read_tensors(fetch(repo, filename)), f"{repo.name}/{filename}"
    else:
        assert config.url, "callers check that there are weights"
        source = config.url if isinstance(config.url, str) else config.url[0]  # timm may add the name of the file
        tensors = _download(source, cache_dir)
    return Weights(tensors=tensors, source=source, pretrained_cfg=cfg)


def _download(url: str, cache_dir: str | Path | None) -> dict[str, Tensor]:
    folder = str(cache_dir) if cache_dir else None
    try:
        return torch.hub.load_state_dict_from_url(url, folder, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError
        raise WeightsError(f"cannot download {url}: {first_line(error)}") from error


def _known_entries(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a pretrained config that were checked and that this version of timm knows."""
    known = {f.name for f in dataclasses.fields(PretrainedCfg)} & PRETRAINED.keys()
    return {name: value for name, value in cfg.items() if name in known}
