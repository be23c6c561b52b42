"""Reading files that may be missing or broken."""

from pathlib import Path

from ..errors import UserError


class BadDataError(UserError):
    """One file or record is missing or broken: the clip that needs it cannot be read, others can."""

    def __init__(self, what: str, problem: str) -> None:
        """Name the file or record in full and say what is wrong with it.

        Args:
            what: The path, or the sensor and the moment whose record is missing.
            problem: Such as ``no such file``.
        """
        super().__init__(what, problem)  # both, so that it comes whole out of a worker's pickle

    def __str__(self) -> str:
        what, problem = self.args
        return f"{what}: {problem}. Put it right, or leave such clips out with --on-error skip"


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
