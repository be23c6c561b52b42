"""Publish encoders in one commit, and without one if nothing has changed.

The files are ``config.json``, ``model.safetensors`` and the card; of a released encoder also its scores and report.

In a team's folder, a commit is a folder ``NAME.TAG``, and ``NAME`` is a copy of the newest.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, constants, metadata_load
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from torch import nn
from yaml import YAMLError

from ..errors import WeightsError
from ..io.files import git_blob_of, sha256_of, write_folder
from ..io.lock import locked_folder
from ..version import __version__
from .card import make_card
from .faults import hub_error, unreachable
from .fetch import TIMEOUT
from .folder import CARD, CONFIG, WEIGHTS, EncoderConfig, save_encoder
from .licensing import hub_metadata
from .pull import open_encoder
from .scores import PICTURE, REPORT, SCORES, read_scores

State = Literal["new", "changed", "unchanged", "kept", "unknown"]
"""A file compared with the one on the Hub. "kept": the card was edited on the Hub, and stays while the weights are
unchanged. "unknown": the Hub could not be reached."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a push."""

    name: str
    content: Path | bytes
    state: State

    def line(self) -> str:
        """State, name, size and checksum in one line."""
        size = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        return f"{self.state:9}  {self.name:17}  {size:>13,} bytes  sha256 {sha256_of(self.content)[:16]}"


@dataclass(frozen=True, kw_only=True)
class PushPlan:
    """All that a push will do."""

    repo: str
    private: bool
    revision: str | None
    tag: str | None
    message: str
    """Message of the commit."""
    files: list[PlannedFile]
    creates_repo: bool
    creates_branch: bool
    creates_tag: bool
    parent: str | None
    """The commit that the files were compared with; None for a new repository."""
    offline_reason: str = ""
    """Why the Hub could not be reached; empty if it was."""

    @property
    def uploads(self) -> list[PlannedFile]:
        """The files to upload."""
        return [file for file in self.files if file.state in ("new", "changed")]

    def lines(self) -> Iterator[str]:
        """Describe the plan, one line per file and action."""
        if self.offline_reason:
            yield f"not compared with the Hub: {self.offline_reason}"
            yield f"files for {self.repo}{f'@{self.revision}' if self.revision else ''}:"
        if self.creates_repo:
            yield f"create the {'private' if self.private else 'public'} repository {self.repo}"
        if self.creates_branch:
            yield f"create the branch {self.revision}"
        for file in self.files:
            yield file.line()
        if self.creates_tag:
            yield f"create the tag {self.tag}"


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    """Address of the commit that holds the weights."""
    committed: bool
    """Whether this push made that commit."""


class Publisher:
    """Publishes encoder folders with one login."""

    def __init__(self, token: str | bool | None = None) -> None:
        """Create the client.

        Args:
            token: A token that may write; None for the one of ``hf auth login`` or HF_TOKEN.
        """
        self._api = HfApi(token=token, library_name="mim4d", library_version=__version__)

    def plan(
        self,
        path: Path,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        tag: str | None = None,
        next_tag: bool = False,
        license: str | None = None,
        offline: bool = False,
    ) -> PushPlan:
        """Compare an encoder with the Hub, without changing anything there.

        Args:
            path: A run, or an encoder folder. A README.md in the folder is its card; otherwise a card is generated.
            repo: ``org/name``.
            private: Whether the repository must be private.
            revision: Branch; None for the default branch.
            tag: For the commit.
            next_tag: Whether to choose a tag, v1 or the next number, for files that no commit with a tag has.
            license: Replaces the licence in ``config.json``.
            offline: Whether to return a plan without comparison, for display, if the Hub cannot be reached.

        Raises:
            UserError: If the folder is damaged, the repository public where it must be private, or the tag taken.
        """
        weights = open_encoder(path)
        config = weights.config.with_license(license) if license else weights.config
        files = _files(weights.folder, config, repo, license)
        remote: Any = None
        branch: Any = None
        tagged, offline_reason = None, ""
        tags: dict[str, str] = {}
        try:
            remote, branch = self._remote(repo, revision)
            tags = self._tags(repo) if remote and (tag or next_tag) else {}
            tagged = tags.get(tag) if tag else None
        except Exception as error:  # of the client or of its HTTP library
            problem = hub_error(error, repo, revision=revision, writing=True)
            if not offline or not unreachable(error):
                raise problem from error
            offline_reason = str(problem)
        if remote and private and not remote.private:
            raise WeightsError(f"{repo} exists and is public: make it private on the Hub first, or choose another name")
        compared_with = branch or remote
        has_card = (weights.folder / CARD).is_file()
        states = _compare(files, compared_with, keep_card=not has_card)
        if next_tag and not offline_reason:
            changed = compared_with is None or {"new", "changed"} & set(states.values())
            tag = following_tag(tags) if changed or compared_with.sha not in tags.values() else None
        plan = PushPlan(
            repo=repo,
            private=private,
            revision=revision,
            tag=tag,
            message=_message(config),
            files=[
                PlannedFile(name, files[name], "unknown" if offline_reason else state) for name, state in states.items()
            ],
            creates_repo=remote is None and not offline_reason,
            creates_branch=revision is not None and branch is None and not offline_reason,
            creates_tag=tag is not None and tagged is None,
            parent=compared_with.sha if compared_with else None,
            offline_reason=offline_reason,
        )
        if tagged and (plan.uploads or tagged != plan.parent):
            raise WeightsError(f"{repo} has a tag {tag} already, at commit {tagged[:12]}: choose another `tag`")
        return plan

    def _remote(self, repo: str, revision: str | None) -> tuple[Any, Any]:
        """The repository on the Hub and its branch; None for what does not exist or may not be read."""
        try:
            remote = self._api.model_info(repo, timeout=TIMEOUT, files_metadata=True)
            if not revision:
                return remote, remote
            return remote, self._api.model_info(repo, revision=revision, timeout=TIMEOUT, files_metadata=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None, None
        except RevisionNotFoundError:
            return remote, None

    def _tags(self, repo: str) -> dict[str, str]:
        """The commits that tags name."""
        return {ref.name: ref.target_commit for ref in self._api.list_repo_refs(repo).tags}

    def push(self, plan: PushPlan) -> Pushed:
        """Carry out a plan. After an error, push again: uploaded files are not sent twice.

        Raises:
            UserError: If the Hub cannot be reached or rejects the push; without a commit nothing is published.
        """
        try:
            return self._push(plan)
        except Exception as error:
            raise hub_error(error, plan.repo, revision=plan.revision, writing=True) from error

    def _push(self, plan: PushPlan) -> Pushed:
        api = self._api
        if plan.creates_repo:
            api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        if plan.creates_branch and plan.revision:
            api.create_branch(plan.repo, branch=plan.revision, exist_ok=True)
        commit = plan.parent or ""
        if plan.uploads:
            made = api.create_commit(
                plan.repo,
                [CommitOperationAdd(file.name, file.content) for file in plan.uploads],
                commit_message=plan.message,
                revision=plan.revision,
                parent_commit=plan.parent,
            )
            commit = made.oid
        if plan.creates_tag and plan.tag:
            api.create_tag(plan.repo, tag=plan.tag, revision=commit)
        return Pushed(f"{constants.ENDPOINT}/{plan.repo}/commit/{commit}", bool(plan.uploads))


def following_tag(tags: Iterable[str]) -> str:
    """The tag of the next push.

    >>> following_tag([]), following_tag(["v1", "v2", "best"])
    ('v1', 'v3')
    """
    return f"v{max((int(tag[1:]) for tag in tags if re.fullmatch(r'v[0-9]{1,9}', tag)), default=0) + 1}"


def push_to_folder(
    path: Path, zoo: Path, *, tag: str | None = None, license: str | None = None, dry_run: bool = False
) -> Iterator[str]:
    """Publish an encoder in a team's folder, as ``NAME.TAG`` and, for names without a tag, ``NAME``.

    Args:
        path: A run, or an encoder folder.
        zoo: The team's folder.
        tag: None for v1 or the next number; weights that the folder has already get no second tag.
        license: Replaces the licence in ``config.json``.
        dry_run: Whether to write nothing.

    Yields:
        What is done, one line per step.

    Raises:
        UserError: If the encoder is damaged, the tag taken, or the folder cannot be written.
    """
    weights = open_encoder(path)
    config = weights.config.with_license(license) if license else weights.config
    files = _files(weights.folder, config, None, license)
    model = config.model
    if not zoo.is_dir():
        raise WeightsError(f"no such folder: {zoo}; make it first, or correct the setting of the hub")
    with locked_folder(zoo):
        tags = {folder.name.partition(".")[2]: folder for folder in zoo.glob(f"{model}.*") if folder.is_dir()}
        same = sorted(name for name, folder in tags.items() if _holds(folder, files))
        if same and tag in (None, same[-1]) and _holds(zoo / model, files):
            yield f"nothing to write: {tags[same[-1]]} has it"
            return
        if tag in tags and tag not in same:
            raise WeightsError(f"{tags[tag]} is there already: choose another `tag`")
        tag = tag or (same[-1] if same else following_tag(tags))
        for folder in (zoo / f"{model}.{tag}", zoo / model):
            if not _holds(folder, files):
                yield f"write {folder}"
                if not dry_run:
                    write_folder(folder, lambda partial: _write(files, partial), "the encoder")


def _holds(folder: Path, files: dict[str, Path | bytes]) -> bool:
    """Whether a folder has these weights, their config and scores; its card may have been edited."""
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == sha256_of(content)
        for name, content in files.items()
        if name != CARD
    )


def _write(files: dict[str, Path | bytes], folder: Path) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)


def _files(folder: Path, config: EncoderConfig, repo: str | None, license: str | None) -> dict[str, Path | bytes]:
    """The files of a push by name.

    Raises:
        WeightsError: If the card in the folder is a link, or names another licence.
    """
    card = folder / CARD
    if card.is_symlink():
        raise WeightsError(f"{card} is a link, and links are not published: replace it with the card itself")
    if license and card.is_file() and _license_of(card) != hub_metadata(license)["license"]:
        raise WeightsError(f"{card} names another licence than {license}: change it there, or remove the card")
    scores = read_scores(folder, config)
    beside = [name for name in (SCORES, PICTURE, REPORT) if scores and (folder / name).is_file()]
    return {
        CONFIG: config.text().encode(),
        WEIGHTS: folder / WEIGHTS,
        CARD: card.read_bytes() if card.is_file() else make_card(config, repo, scores).encode(),
        **{name: (folder / name).read_bytes() for name in beside},
    }


def _license_of(card: Path) -> str | None:
    """The licence in a card's metadata; None if there is none or it cannot be read."""
    try:
        return (metadata_load(card) or {}).get("license")
    except (ValueError, YAMLError):
        return None


def _compare(files: dict[str, Path | bytes], remote: Any, *, keep_card: bool) -> dict[str, State]:
    """Compare files with a commit on the Hub, or with none.

    Args:
        files: By name.
        remote: The Hub's description of the commit; None for a new repository.
        keep_card: Whether a card that was edited on the Hub stays while weights and scores are unchanged.
    """
    on_hub = {file.rfilename: file for file in remote.siblings} if remote else {}

    def state(name: str) -> State:
        if name not in on_hub:
            return "new"
        lfs, content = on_hub[name].lfs, files[name]
        same = sha256_of(content) == lfs.sha256 if lfs else git_blob_of(content) == on_hub[name].blob_id
        return "unchanged" if same else "changed"

    states = {name: state(name) for name in files}
    same = states[WEIGHTS] == states.get(SCORES, "unchanged") == "unchanged"
    if states[CARD] == "changed" and same and keep_card:
        states[CARD] = "kept"
    return states


def _message(config: EncoderConfig) -> str:
    """The message of a commit."""
    steps = config.provenance.get("steps")
    return f"{config.model}{f' after {steps} steps' if steps else ''}, by mim4d {__version__}"


def push_encoder(
    encoder: nn.Module, repo: str, *, license: str | None = None, token: str | bool | None = None, **options: Any
) -> str:
    """Publish a model; see :meth:`mim4d.MIM4DEncoder.push_to_hub`."""
    publisher = Publisher(token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "encoder"
        save_encoder(encoder, folder, license=license)
        return publisher.push(publisher.plan(folder, repo, **options)).url
