"""Verified files of the Hub, in the cache of the Hub's client.

Over plain HTTP the client compares sizes only, so it would cache and use damaged bytes of the right length. Therefore
every file is compared with its checksum on the Hub, its sha256 or git hash, each time that it is used, offline too.
"""

import logging
import os
import re
from dataclasses import KW_ONLY, dataclass
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

HUB_PREFIX = "hf-hub:"
"""How timm marks the name of a repository."""
TIMEOUT = 5.0
"""Seconds that the Hub has for its first answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hub, and how to access it."""

    name: str
    """``org/name``."""
    _: KW_ONLY
    revision: str | None = None
    """Branch, tag or commit; None for the default branch."""
    token: str | bool | None = None
    """As in ``huggingface_hub``: None for the token of the login."""
    cache_dir: str | Path | None = None
    """None for the client's own cache."""

    @classmethod
    def parse(
        cls,
        source: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> "HubRepo":
        """Return the repository that ``org/name`` or ``org/name@revision`` names, also after ``hf-hub:``.

        Raises:
            WeightsError: If ``source`` and ``revision`` name two revisions.

        >>> HubRepo.parse("hf-hub:org/name@v1.0").revision
        'v1.0'
        """
        name, _, named = source.removeprefix(HUB_PREFIX).partition("@")
        if revision and named and revision != named:
            raise WeightsError(f"{source} and revision {revision} name two revisions: give one of them")
        return cls(name, revision=revision or named or None, token=token, cache_dir=cache_dir)


def fetch(repo: HubRepo, filename: str) -> Path:
    """Download a file of a repository unless the cache has it, and verify its checksum.

    Args:
        repo: The repository.
        filename: Path in the repository.

    Returns:
        The file in the cache: ``.../snapshots/COMMIT/filename``.

    Raises:
        WeightsError: If the file cannot be downloaded, or its checksum is wrong; then it is removed from the cache.
    """
    try:
        cached = try_to_load_from_cache(repo.name, filename, cache_dir=repo.cache_dir, revision=repo.revision)
        if not isinstance(cached, str):
            # A single request: the client alone tries for 23 seconds before it reports that there is no network.
            url = hf_hub_url(repo.name, filename, revision=repo.revision)
            get_hf_file_metadata(url, token=repo.token, timeout=TIMEOUT)
        path = Path(
            hf_hub_download(
                repo.name,
                filename,
                revision=repo.revision,
                token=repo.token,
                cache_dir=repo.cache_dir,
                etag_timeout=TIMEOUT,
                library_name="mim4d",
                library_version=__version__,
            )
        )
        expected = _checksum_on_hub(path, repo, filename)
    except Exception as error:  # of the client, of its HTTP library, or OSError for a full disk
        raise hub_error(error, repo.name, revision=repo.revision, filename=filename) from error
    found = {64: sha256_of, 40: git_blob_of}[len(expected)](path) if expected else ""
    if found != expected:
        _remove_from_cache(path)
        raise WeightsError(
            f"{filename} of {repo.name} arrived damaged: its checksum is {found[:12]}..., expected {expected[:12]}...; "
            "it was removed from the cache, try again"
        )
    return path


def commit_of(path: Path, filename: str) -> str:
    """Return the commit of a file from :func:`fetch`."""
    return path.parents[filename.count("/")].name


def _checksum_on_hub(path: Path, repo: HubRepo, filename: str) -> str:
    """Return the Hub's sha256 (large files) or git hash (small files) of a cached file; empty if it is unknown."""
    if path.is_symlink():
        checksum = Path(os.readlink(path)).name  # the cache stores contents under their checksums
    elif constants.HF_HUB_OFFLINE:  # a file system without symbolic links stores no checksums
        return ""
    else:
        url = hf_hub_url(repo.name, filename, revision=commit_of(path, filename))
        checksum = get_hf_file_metadata(url, token=repo.token).etag or ""
    if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", checksum):
        return checksum
    logger.warning("%s of %s has no checksum on this server", filename, repo.name)
    return ""


def _remove_from_cache(path: Path) -> None:
    """Remove a file from the cache, with the content that it links to."""
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    for link in chain:
        link.unlink(missing_ok=True)
