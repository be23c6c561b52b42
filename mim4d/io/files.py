"""Atomic writes of files and folders, checksums, and the cache folder."""

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
    """Write a folder with :func:`replace_folder`, with a message that names what it holds.

    Args:
        folder: Where the result goes; replaced if it exists.
        fill: Writes files into the folder that it is given.
        what: What is written, for the message.

    Raises:
        UserError: If a file cannot be written, for example because the disk is full.
    """
    try:
        replace_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {what} to {folder}: {error}") from error


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder atomically: ``fill`` writes a temporary folder beside it, which is then renamed.

    A process that reads ``folder`` meanwhile finds the old one, none, or the whole new one. The folder is on disk when
    this returns. If an error is raised, the temporary folder is removed and the old folder stays. If the process is
    killed between the two renames, the old folder stays, whole, as ``.NAME.old``.

    Args:
        folder: Where the result goes; replaced if it exists.
        fill: Writes files into the folder that it is given.

    Raises:
        OSError: If a file cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
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
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            with suppress(OSError):
                old.rename(folder)
        raise


def rename_folder(folder: Path, target: Path) -> None:
    """Rename a folder; another one at ``target`` is removed first.

    Raises:
        UserError: If it cannot be renamed.
    """
    try:
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    except OSError as error:
        raise UserError(f"cannot rename {folder} to {target.name}: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_file(path: Path, fill: Callable[[Path], Any]) -> None:
    """Write a file atomically: ``fill`` writes a temporary file beside it, which is then renamed.

    A process that reads ``path`` meanwhile finds the old file, none, or the whole new one.

    Args:
        path: Where the result goes; replaced if it exists.
        fill: Writes the file that it is given.

    Raises:
        UserError: If the file cannot be written, for example because the disk is full; the old file stays.
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` with :func:`write_file`, in a folder that is made if it is missing.

    Raises:
        UserError: If the folder or the file cannot be written.
    """
    make_folder(path.parent)
    write_file(path, lambda partial: partial.write_bytes(data))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(content: Path | bytes) -> str:
    """Return the sha256 of a file or of bytes, as the Hub uses it for large files.

    Returns:
        64 hexadecimal digits.

    >>> sha256_of(b"")[:16]
    'e3b0c44298fc1c14'
    """
    return _digest(content, hashlib.sha256())


def git_blob_of(content: Path | bytes) -> str:
    """Return the hash that git gives a file or bytes, as the Hub uses it for small files.

    Returns:
        40 hexadecimal digits: the sha1 of ``blob``, the size and the content.

    >>> git_blob_of(b"")  # git hash-object /dev/null
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
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
    """Return the folder for files that can be made again: ``MIM4D_CACHE``, or ``~/.cache/mim4d``.

    Raises:
        UserError: If the path begins with ``~`` and the user has no home folder.
    """
    folder = Path(os.environ.get("MIM4D_CACHE") or "~/.cache/mim4d")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"this user has no home folder for the cache {folder}: set MIM4D_CACHE to a folder that can be written"
        ) from error
