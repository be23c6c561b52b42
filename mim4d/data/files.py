"""Reading files that may be missing or broken."""

from pathlib import Path

from ..errors import BadDataError


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        BadDataError: If it is missing, empty or unreadable.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadDataError(str(path), "no such file") from None
    except OSError as error:
        raise BadDataError(str(path), f"cannot be read ({error.strerror})") from error
    if not data:
        raise BadDataError(str(path), "the file is empty")
    return data
