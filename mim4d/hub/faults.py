"""What the Hub's client raises, in one line that says what to do.

Messages are made here from what is known to be harmless: nothing that a server sends back is repeated, so no token can
come along.
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
    """A repository that is not on the Hub, or not in the cache while the Hub cannot be asked."""


def hub_error(
    error: Exception, repo: str, *, revision: str | None = None, filename: str = "", writing: bool = False
) -> WeightsError:
    """An error of the Hub's client as ours.

    Args:
        error: What the client raised.
        repo: ``org/name``.
        revision: Branch, tag or commit that was asked for.
        filename: The file that was asked for, if it was one.
        writing: Whether the repository was to be changed.
    """
    short = re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}$", r"\1", revision or "")  # a commit, as people write it
    at = f"{repo}@{short}" if short else repo
    what = f"{filename} of {at}" if filename else at
    chain = list(_chain(error))
    status = next(
        (e.response.status_code for e in chain if isinstance(e, HfHubHTTPError) and e.response is not None), 0
    )

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if caused_by(HFValidationError):
        text = f"{repo} is not a name on the Hub: it is org/name, in letters, digits and - _ ."
    elif writing and caused_by(OfflineModeIsEnabled):
        text = f"HF_HUB_OFFLINE is set: unset it to publish {repo}"
    elif caused_by(OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and not status):
        text = f"{what} is not in the cache, and HF_HUB_OFFLINE is set: fetch it once without"
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        text = f"cannot keep {what}: {error}"  # the disk, not the network
    elif caused_by(GatedRepoError):
        text = f"{repo} is gated: ask for access at {constants.ENDPOINT}/{repo}, then log in ({LOGIN})"
    elif caused_by(RevisionNotFoundError):
        text = f"{repo} has no revision {revision or constants.DEFAULT_REVISION}"
    elif caused_by(EntryNotFoundError) and status == 404:
        text = f"{at} has no {filename}"
    elif caused_by(RepositoryNotFoundError) or status == 404:
        text = (
            f"there is no {repo} at {constants.ENDPOINT}, or it is private: check the name, and log in ({LOGIN}) with "
            "an account that may read it"
        )
    elif caused_by(LocalTokenNotFoundError) or status == 401:
        text = f"the Hub does not know who asks for {repo}: the token is missing or no longer good; log in ({LOGIN})"
    elif status == 403:
        deed = "write to" if writing else "read"
        text = f"the token may not {deed} {repo}: log in ({LOGIN}) with one that may"
    elif status in (409, 412):
        text = f"{at} was changed by someone else meanwhile: look at it and run this again"
    elif status == 400 and writing:
        text = f"the Hub does not accept what was sent for {at}: see whether the metadata atop README.md is valid"
    elif status == 429 or status >= 500:
        again = "; what was uploaded is not sent again" if writing else ""
        text = f"the Hub answers {status} for {what}: try again later{again}"
    elif status:
        text = f"the Hub refuses {what} with status {status}"
    else:
        again = "run this again, what was uploaded is not sent again" if writing else "try again"
        text = f"the connection to {constants.ENDPOINT} failed for {what} ({first_line(chain[-1])}): {again}"
    nowhere = caused_by(RepositoryNotFoundError) and not caused_by(GatedRepoError)  # a kind of the former
    unknown = nowhere or caused_by(OfflineModeIsEnabled) or (not status and unreachable(error))
    return NotFoundError(text) if unknown else WeightsError(text)


def unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer at all: no network, or none is wanted."""
    return not any(
        isinstance(e, (HFValidationError, LocalTokenNotFoundError))
        or (isinstance(e, HfHubHTTPError) and e.response is not None and not isinstance(e, OfflineModeIsEnabled))
        for e in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, as the client wraps errors in errors."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
