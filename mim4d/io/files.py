"""Files written whole or not at all, and what they hold by checksum."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import UserError


def write_folder(folder: Path, fill: Callable[[Path], None], what: str) -> None:
    """Let ``fill`` write into a temporary folder beside ``folder``, then put it in place at once.

    Args:
        folder: Where the result goes; replaced if it exists.
        fill: Writes files into the folder that it is given.
        what: What is written, for the message.

    Raises:
        UserError: If the disk is full or refuses; nothing is left behind and what was there stays.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")  # stays, whole, if the process is killed between the two renames
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        for file in partial.iterdir():
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors gives others no access, whatever the umask
            _sync(file)
        _sync(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            with suppress(OSError):
                old.rename(folder)
        raise UserError(f"cannot write {what} to {folder}: {error}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, where they are missing.

    Raises:
        UserError: If the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_file(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` write a temporary file beside ``path``, then put it in place at once.

    Args:
        path: Where the result goes; replaced if it exists.
        fill: Writes the file that it is given.

    Raises:
        UserError: If the disk is full or refuses; nothing is left behind and what was there stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # a link of that name would be written through
        fill(partial)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(content: Path | bytes) -> str:
    """The sha256 of a file or of bytes, hexadecimal: what the Hub calls large files by."""
    return _digest(content, hashlib.sha256())


def git_blob_of(content: Path | bytes) -> str:
    """git's name for a file or for bytes, hexadecimal: what the Hub calls small files by."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return _digest(content, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def _digest(content: Path | bytes, digest: "hashlib._Hash") -> str:
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where things that can be made again are kept: ``MIM4D_CACHE``, or ``~/.cache/mim4d``.

    Raises:
        UserError: If the user has no home folder.
    """
    folder = Path(os.environ.get("MIM4D_CACHE") or "~/.cache/mim4d")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise UserError(f"no home folder for {folder}: set MIM4D_CACHE to a folder that can be written to") from error
