"""A lock on an output folder, so that only one process writes there.

The kernel releases the lock when its process ends, also after ``kill -9``.
"""

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
"""Name of the hidden file in a locked folder. It holds the number and the host of the process that has the lock."""

_LOCKED_ERRNOS = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()
"""Folders that this process has locked. The kernel would grant the same process a second lock."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside a ``with`` block.

    The folder is made if it is missing, and removed at the end if it was made here and is still empty. The lock is a
    POSIX record lock, not ``flock`` as in ``filelock``: child processes do not inherit it, so a data-loading worker
    does not keep the folder of a killed run locked, and NFS servers grant it across machines.

    Args:
        folder: The folder to lock. Its file ``.lock`` exists while the lock is held.

    Raises:
        UserError: If another process holds the lock, or the folder cannot be made or written.
    """
    folder = folder.resolve()
    if folder in _held:
        raise UserError(f"{folder} is in use by another run in this process: choose another `out`")
    made_here = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    try:
        handle = _open_locked(folder)
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.remove(folder)
        with suppress(OSError):
            (folder / LOCK).unlink()  # before the lock is released, so that it is still the file of this process
        os.close(handle)
        with suppress(OSError):
            for path in made_here:
                path.rmdir()  # fails if the folder is not empty


def _open_locked(folder: Path) -> int:
    """Open and lock the lock file of a folder.

    Returns:
        The file descriptor; closing it releases the lock.
    """
    file = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # another process has just removed the folder, which it left empty
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), file.stat()):
                break  # otherwise the former holder has removed the file meanwhile, and the lock is on nothing
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _LOCKED_ERRNOS:
                holder = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                by = f" ({holder})" if holder else ""
                raise UserError(
                    f"{folder} is in use by another process{by}: wait until it ends, or choose another `out`"
                ) from error
            logger.warning(
                "%s is on a file system without locks (%s): make sure that no other process writes there",
                folder,
                error.strerror,
            )
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle
