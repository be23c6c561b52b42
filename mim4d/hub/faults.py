"""Errors of the Hub's client as one line that says what to do.

The messages repeat nothing that the server sent, so that no token can be in them.
"""

import re
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import WeightsError
from ..io.tensors import first_line

LOGIN = "`hf auth login` or HF_TOKEN"


class NotFoundError(WeightsError):
    """A repository that the Hub does not have, or that the cache does not have while the Hub is out of reach."""


def hub_error(
    error: Exception, repo: str, *, revision: str | None = None, filename: str = "", writing: bool = False
) -> WeightsError:
    """Translate an error of the Hub's client.

    Args:
        error: The client's error.
        repo: ``org/name``.
        revision: The requested branch, tag or commit.
        filename: The requested file; empty for a request about the repository.
        writing: Whether the request would change the repository.
    """
    short = re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}$", r"\1", revision or "")  # commits are shown with 12 digits
    repo_at = f"{repo}@{short}" if short else repo
    requested = f"{filename} of {repo_at}" if filename else repo_at
    chain = list(_chain(error))
    status = next(
        (e.response.status_code for e in chain if isinstance(e, HfHubHTTPError) and e.response is not None), 0
    )

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if caused_by(HFValidationError):
        text = f"{repo} is not the name of a repository: expected org/name, in letters, digits and - _ ."
    elif writing and caused_by(OfflineModeIsEnabled):
        text = f"HF_HUB_OFFLINE is set: unset it to publish {repo}"
    elif caused_by(OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and not status):
        text = f"{requested} is not in the cache, and HF_HUB_OFFLINE is set: unset it and download {repo} once"
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        text = f"cannot write {requested} to the cache: {error}"  # the disk failed, not the network
    elif caused_by(GatedRepoError):
        text = f"{repo} is gated: request access at {constants.ENDPOINT}/{repo}, then log in ({LOGIN})"
    elif caused_by(RevisionNotFoundError):
        text = f"{repo} has no branch, tag or commit {revision or constants.DEFAULT_REVISION}"
    elif caused_by(EntryNotFoundError) and status == 404:
        text = f"{repo_at} has no file {filename}"
    elif caused_by(RepositoryNotFoundError) or status == 404:
        text = (
            f"{constants.ENDPOINT} has no repository {repo}, or it is private: check the name, or log in ({LOGIN}) "
            "with an account that may read it"
        )
    elif caused_by(LocalTokenNotFoundError) or status == 401:
        text = f"the Hub rejects the login for {repo}, the token is missing or expired: log in ({LOGIN})"
    elif status == 403:
        action = "write to" if writing else "read"
        text = f"the token may not {action} {repo}: log in ({LOGIN}) with one that may"
    elif status in (409, 412):
        text = f"{repo_at} was changed by someone else during this push: check that change, then run the command again"
    elif status == 400 and writing:
        text = f"the Hub rejects the files for {repo_at}: check the metadata at the top of README.md"
    elif status == 429 or status >= 500:
        uploads = "; uploaded files are not sent again" if writing else ""
        text = f"the Hub answers {status} for {requested}: try again later{uploads}"
    elif status:
        text = f"the Hub rejects the request for {requested} with status {status}"
    else:
        again = "run the command again, uploaded files are not sent again" if writing else "try again"
        text = f"the connection to {constants.ENDPOINT} failed for {requested} ({first_line(chain[-1])}): {again}"
    missing = caused_by(RepositoryNotFoundError) and not caused_by(GatedRepoError)  # GatedRepoError is a subclass
    not_found = missing or caused_by(OfflineModeIsEnabled) or (not status and unreachable(error))
    return NotFoundError(text) if not_found else WeightsError(text)


def unreachable(error: Exception) -> bool:
    """Return whether the Hub gave no answer: there is no network, or offline mode is on."""
    return not any(
        isinstance(e, (HFValidationError, LocalTokenNotFoundError))
        or (isinstance(e, HfHubHTTPError) and e.response is not None and not isinstance(e, OfflineModeIsEnabled))
        for e in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: the client wraps errors in errors."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
