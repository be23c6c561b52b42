"""Files of the Hub, in the client's cache, with their checksums compared.

Over plain HTTP the client compares sizes only: wrong bytes of the right length would be cached and used. So every file
is compared with the name that the Hub gave it, its sha256 or git's name for it, each time that it is used, offline too.
"""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

from ..errors import WeightsError
from ..io.files import git_blob_of, sha256_of
from ..version import __version__
from .faults import hub_error

TIMEOUT = 5.0
"""Seconds that the Hub has for its first answer."""

logger = logging.getLogger(__name__)


def fetch(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """One file of a repository, downloaded unless it is in the cache.

    Args:
        repo: ``org/name``.
        filename: Path in the repository.
        revision: Branch, tag or commit; None for the default branch.
        token: As in ``huggingface_hub``: None for the one of the login.
        cache_dir: None for the client's own.

    Returns:
        Where the file lies in the cache: ``.../snapshots/COMMIT/filename``.

    Raises:
        WeightsError: If it cannot be had, or is not what the Hub says it is; then it is gone from the cache.
    """
    try:
        if not isinstance(try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision), str):
            # Asked once: the client tries for 23 seconds before it says that there is no network.
            get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision), token=token, timeout=TIMEOUT)
        path = Path(
            hf_hub_download(
                repo,
                filename,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                etag_timeout=TIMEOUT,
                library_name="mim4d",
                library_version=__version__,
            )
        )
        expected = _name_on_the_hub(path, repo, filename, token)
    except Exception as error:  # the client's own kinds, its HTTP library's, and OSError for a full disk
        raise hub_error(error, repo, revision=revision, filename=filename) from error
    found = {64: sha256_of, 40: git_blob_of}[len(expected)](path) if expected else ""
    if found != expected:
        _forget(path)
        raise WeightsError(
            f"{filename} of {repo} arrived damaged: its checksum is {found[:12]}..., the Hub's is {expected[:12]}...; "
            "it is gone from the cache, so try again"
        )
    return path


def commit_of(path: Path, filename: str) -> str:
    """The commit that a file from :func:`fetch` belongs to."""
    return path.parents[filename.count("/")].name


def _name_on_the_hub(path: Path, repo: str, filename: str, token: str | bool | None) -> str:
    """A cached file's sha256 (large files) or git name (small ones) according to the Hub; empty if it is not known."""
    if path.is_symlink():
        name = Path(os.readlink(path)).name  # the cache keeps contents under the names that the Hub gave them
    elif constants.HF_HUB_OFFLINE:  # a file system without links keeps no names
        return ""
    else:
        url = hf_hub_url(repo, filename, revision=commit_of(path, filename))
        name = get_hf_file_metadata(url, token=token).etag or ""
    if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", name):
        return name
    logger.warning("%s of %s has no checksum on this server", filename, repo)
    return ""


def _forget(path: Path) -> None:
    """Remove a file from the cache, with the content that it links to."""
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    for link in chain:
        link.unlink(missing_ok=True)
