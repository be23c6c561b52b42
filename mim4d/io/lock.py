"""One writer per output folder, by a lock that the kernel releases when its process ends, however it ends."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The hidden file in a locked folder; it names the process that holds it."""

_TAKEN = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()
"""Folders that this process has locked: the kernel does not refuse a second lock of one process."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder and be its only writer; a folder that is still empty at the end is removed again.

    A record lock, and not ``flock`` as in ``filelock``: child processes do not inherit it, so that no data-loading
    worker keeps the folder of a killed run locked, and NFS servers grant it across machines.

    Args:
        folder: Made if it is missing. Its file ``.lock`` exists while the lock is held.

    Raises:
        UserError: If another process writes there, or the folder cannot be made or written.
    """
    folder = folder.resolve()
    if folder in _held:
        raise UserError(f"{folder} is in use by another run of this process: choose another `out`")
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    try:
        handle = _take(folder)
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.remove(folder)
        with suppress(OSError):
            (folder / LOCK).unlink()  # before the lock is released: nobody else's file is removed
        os.close(handle)
        with suppress(OSError):
            for path in made:
                path.rmdir()  # fails where there is something in it


def _take(folder: Path) -> int:
    """The open, locked file of a folder."""
    file = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # another process has just removed the folder that it found nothing to write to
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), file.stat()):
                break  # otherwise its holder has removed the file meanwhile, and the lock is on nothing
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _TAKEN:
                holder = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                by = f" ({holder})" if holder else ""
                raise UserError(
                    f"{folder} is in use by another process{by}: wait until it has ended, or choose another `out`"
                ) from error
            logger.warning(
                "%s is on a file system without locks (%s): make sure that nothing else writes there",
                folder,
                error.strerror,
            )
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle
