"""Read files that may be missing or broken."""

import stat
from pathlib import Path

from ..errors import BadDataError

MOST_BYTES = 1 << 30
"""Limit for one image or sweep, so that a wrong file does not fill the memory."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        BadDataError: If it is missing, empty, unreadable, larger than :data:`MOST_BYTES` or not a regular file. (To
            open a named pipe would block.)
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise BadDataError(str(path), f"expected a regular file, found {kind}")
        if status.st_size > MOST_BYTES:
            size, most = (f"{count / 2**30:.1f} GiB" for count in (status.st_size, MOST_BYTES))
            raise BadDataError(str(path), f"expected a file of at most {most}, found {size}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadDataError(str(path), "no such file") from None
    except OSError as error:
        raise BadDataError(str(path), f"cannot read the file ({error.strerror})") from error
    except ValueError as error:  # a NUL byte or a lone surrogate
        raise BadDataError(repr(str(path)), "not a valid file name") from error
    if not data:
        raise BadDataError(str(path), "the file is empty")
    return data
