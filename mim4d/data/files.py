"""Reading files that may be missing or broken."""

import stat
from pathlib import Path

from ..errors import BadDataError

MOST_BYTES = 1 << 30
"""No image or sweep is larger; a file that is would only fill the memory."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(path: Path) -> bytes:
    """Read all of a file.

    Raises:
        BadDataError: If it is missing, empty, unreadable, larger than :data:`MOST_BYTES` or not a regular file (opening
            a named pipe would wait for ever).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise BadDataError(str(path), f"this is {kind} and not a file")
        if status.st_size > MOST_BYTES:
            raise BadDataError(str(path), f"the file has {status.st_size / 2**30:.1f} GiB, too many for one moment")
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadDataError(str(path), "no such file") from None
    except OSError as error:
        raise BadDataError(str(path), f"cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL byte, or half of a character
        raise BadDataError(repr(str(path)), "this cannot be the name of a file") from error
    if not data:
        raise BadDataError(str(path), "the file is empty")
    return data
