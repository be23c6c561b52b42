"""To the Hub: three files and never another, in one commit, and none where nothing has changed."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, constants, metadata_load
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from torch import nn
from yaml import YAMLError

from ..errors import WeightsError
from ..io.files import git_blob_of, sha256_of
from ..version import __version__
from .card import make_card
from .faults import hub_error, unreachable
from .fetch import TIMEOUT
from .folder import CARD, CONFIG, WEIGHTS, EncoderConfig, save_encoder
from .licensing import hub_metadata
from .pull import open_encoder

State = Literal["new", "changed", "the same", "kept", "unknown"]


@dataclass(frozen=True)
class PlannedFile:
    """One file of a push."""

    name: str
    content: Path | bytes
    state: State
    """Against what is on the Hub, "unknown" if it was not asked; a card that was edited there is kept as long as its
    weights are."""

    def line(self) -> str:
        """The file for a reader."""
        size = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        return f"{self.state:8}  {self.name:17}  {size:>13,} bytes  sha256 {sha256_of(self.content)[:16]}"


@dataclass(frozen=True)
class PushPlan:
    """What a push will do, and nothing else."""

    repo: str
    files: list[PlannedFile]
    private: bool
    revision: str | None
    tag: str | None
    makes_repo: bool
    makes_branch: bool
    makes_tag: bool
    parent: str | None
    """The commit that the files were compared with; None for a repository that is not there yet."""
    message: str
    not_compared: str = ""
    """Why the Hub could not be asked, if it could not: then only the files are known."""

    @property
    def uploads(self) -> list[PlannedFile]:
        """The files that will be sent."""
        return [file for file in self.files if file.state in ("new", "changed")]

    def lines(self) -> Iterator[str]:
        """The plan for a reader."""
        if self.not_compared:
            yield f"not compared with the Hub: {self.not_compared}"
            yield f"files for {self.repo}{f'@{self.revision}' if self.revision else ''}:"
        if self.makes_repo:
            yield f"make the {'private' if self.private else 'public'} repository {self.repo}"
        if self.makes_branch:
            yield f"make the branch {self.revision}"
        for file in self.files:
            yield file.line()
        if self.makes_tag:
            yield f"make the tag {self.tag}"


@dataclass(frozen=True)
class Pushed:
    """Where the weights are now."""

    url: str
    """Of the commit that holds them."""
    committed: bool
    """Whether that commit is of this push."""


class Publisher:
    """Pushes encoder folders with one login."""

    def __init__(self, token: str | bool | None = None) -> None:
        """Make a client.

        Args:
            token: With the right to write; None for the one of ``hf auth login`` or HF_TOKEN.
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
        license: str | None = None,
        offline: bool = False,
    ) -> PushPlan:
        """Compare an encoder with what is on the Hub; nothing is changed there.

        Args:
            path: A run, or an encoder folder. A README.md in the folder is the card; else one is made.
            repo: ``org/name``.
            private: Whether the repository must be private.
            revision: Branch; None for the default one.
            tag: For the commit.
            license: In place of the one in ``config.json``.
            offline: Whether to make a plan without a comparison where the Hub cannot be reached, to be read only.

        Raises:
            UserError: If the folder is damaged, the repository public where it must be private, or the tag taken.
        """
        weights = open_encoder(path)
        assert weights.config is not None
        assert weights.file is not None
        config, folder = weights.config, weights.file.parent
        config = config.with_license(license) if license else config
        card = folder / CARD
        if card.is_symlink():
            raise WeightsError(f"{card} is a link: only a file of this folder is published; put the card itself there")
        if license and card.is_file() and _license_of(card) != hub_metadata(license)["license"]:
            raise WeightsError(f"{card} names another licence than {license}: put it right there, or remove the card")
        files: dict[str, Path | bytes] = {
            CONFIG: config.text().encode(),
            WEIGHTS: folder / WEIGHTS,
            CARD: card.read_bytes() if card.is_file() else make_card(config, repo).encode(),
        }
        try:
            remote, branch = self._look(repo, revision)
            tagged = self._tagged(repo, tag) if remote and tag else None
        except Exception as error:  # the client's own kinds and its HTTP library's
            if offline and unreachable(error):
                return PushPlan(
                    repo=repo,
                    files=[PlannedFile(name, content, "unknown") for name, content in files.items()],
                    private=private,
                    revision=revision,
                    tag=tag,
                    makes_repo=False,
                    makes_branch=False,
                    makes_tag=tag is not None,
                    parent=None,
                    message=_message(config),
                    not_compared=str(hub_error(error, repo, revision=revision, writing=True)),
                )
            raise hub_error(error, repo, revision=revision, writing=True) from error
        if remote and private and not remote.private:
            raise WeightsError(f"{repo} exists and is public: make it private on the Hub first, or choose another name")
        compared_with = branch or remote
        plan = PushPlan(
            repo=repo,
            files=_compare(files, compared_with, own_card=card.is_file()),
            private=private,
            revision=revision,
            tag=tag,
            makes_repo=remote is None,
            makes_branch=revision is not None and branch is None,
            makes_tag=tag is not None and tagged is None,
            parent=compared_with.sha if compared_with else None,
            message=_message(config),
        )
        if tagged and (plan.uploads or tagged != plan.parent):
            raise WeightsError(f"{repo} has a tag {tag} already, for commit {tagged[:12]}: choose another `tag`")
        return plan

    def _look(self, repo: str, revision: str | None) -> tuple[Any, Any]:
        """The repository on the Hub and its branch; None for what is not there or not to be seen."""
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

    def _tagged(self, repo: str, tag: str) -> str | None:
        """The commit that has a tag."""
        return next((ref.target_commit for ref in self._api.list_repo_refs(repo).tags if ref.name == tag), None)

    def push(self, plan: PushPlan) -> Pushed:
        """Carry out a plan. If it fails, run it again: contents that arrived are not sent twice.

        Raises:
            UserError: If the Hub refuses or cannot be reached; without a commit nothing is published.
        """
        try:
            return self._push(plan)
        except Exception as error:
            raise hub_error(error, plan.repo, revision=plan.revision, writing=True) from error

    def _push(self, plan: PushPlan) -> Pushed:
        api = self._api
        if plan.makes_repo:
            api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        if plan.makes_branch and plan.revision:
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
        if plan.makes_tag and plan.tag:
            api.create_tag(plan.repo, tag=plan.tag, revision=commit)
        return Pushed(f"{constants.ENDPOINT}/{plan.repo}/commit/{commit}", bool(plan.uploads))


def _license_of(card: Path) -> str | None:
    """What a card names; None if nothing, or nothing that can be read."""
    try:
        return (metadata_load(card) or {}).get("license")
    except (ValueError, YAMLError):
        return None


def _compare(files: dict[str, Path | bytes], remote: Any, *, own_card: bool) -> list[PlannedFile]:
    """Each file against a commit on the Hub, or against nothing."""
    there = {file.rfilename: file for file in remote.siblings} if remote else {}

    def state(name: str) -> State:
        if name not in there:
            return "new"
        large, content = there[name].lfs, files[name]
        same = sha256_of(content) == large.sha256 if large else git_blob_of(content) == there[name].blob_id
        return "the same" if same else "changed"

    states = {name: state(name) for name in files}
    if states[CARD] == "changed" and states[WEIGHTS] == "the same" and not own_card:
        states[CARD] = "kept"
    return [PlannedFile(name, content, states[name]) for name, content in files.items()]


def _message(config: EncoderConfig) -> str:
    steps = config.provenance.get("steps")
    return f"{config.model}{f' after {steps} steps' if steps else ''}, by mim4d {__version__}"


def push_encoder(
    encoder: nn.Module,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
) -> str:
    """See :meth:`mim4d.MIM4DEncoder.push_to_hub`."""
    publisher = Publisher(token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "encoder"
        save_encoder(encoder, folder, license=license)
        plan = publisher.plan(folder, repo, private=private, revision=revision, tag=tag)
        return publisher.push(plan).url
