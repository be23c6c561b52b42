"""What a user can put right, and how a command says it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input, named in one line that says what to do. The command line prints it and exits with code 2."""


class WeightsError(UserError, RuntimeError):
    """Weights that cannot be had, read or fitted; a ``RuntimeError`` because timm's own ones are."""


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
        return f"{what}: {problem}"


@contextmanager
def in_one_line() -> Iterator[None]:
    """What stops a command: what the user or the machine's keeper can put right is one line and exit code 2."""
    try:
        yield
    except (UserError, OSError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            told = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
