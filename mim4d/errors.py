"""What a user can put right, and how a command says it."""

import errno
import re


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


_SHORTAGES = (
    (
        r"Too many open files|items of ancdata",
        "too many open files: raise the limit (ulimit -n 4096), or lower `workers`",
    ),
    (
        r"Bus error|shared memory|\(shm\)|</torch_|torch_shm_manager",
        "out of shared memory for the data that workers read: lower `workers` (0 needs none), or enlarge /dev/shm "
        "(docker run --shm-size=8g, or --ipc=host)",
    ),
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "a worker that reads data was killed, perhaps because memory ran out: lower `workers`, then run again with "
        "`resume`",
    ),
    (
        r"CPUAllocator|can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation",
        "out of memory on the CPU: {remedy}",
    ),
    (r"(?i)out of memory|STATUS_ALLOC_FAILED", "out of memory on the GPU: {remedy}"),
    (
        r"Connection (closed|reset) by peer|Broken pipe|Socket closed|remote process exited",
        "another process of this run has ended: see its own message, and run again with `resume`",
    ),
    (
        r"Could not determine home directory",
        "this user has no home folder: set MIM4D_CACHE to a folder that can be written to, and give paths without ~",
    ),
)
"""What the messages of torch and Python look like when a machine runs out of something, and what to do."""


def shortage(error: BaseException, remedy: str = "use smaller inputs") -> str | None:
    """Say in a line what a machine has run out of; None if an error is of another kind.

    Args:
        error: Of torch, of a data-loading worker, or of Python.
        remedy: What to lower if it was memory.
    """
    if isinstance(error, MemoryError):
        return f"out of memory on the CPU: {remedy}"
    if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return None
    if isinstance(error, (RuntimeError, OSError)):  # torch.OutOfMemoryError is a RuntimeError
        return next((line.format(remedy=remedy) for known, line in _SHORTAGES if re.search(known, str(error))), None)
    return None


def printable(text: str) -> str:
    r"""Escape what would steer a terminal, such as colours and cursor moves in a text from elsewhere; lines stay.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
