"""Errors that a user can fix, and one-line messages for a lack of memory, files or shared memory."""

import errno
import re


class UserError(Exception):
    """Bad input. The message is one line that says what to do; commands print it and exit with code 2."""


class WeightsError(UserError, RuntimeError):
    """Weights cannot be found, read or loaded. It is a ``RuntimeError`` too, as timm's own errors are."""


class BadDataError(UserError):
    """A file or record is missing or broken, so that one clip cannot be read; other clips may.

    >>> str(BadDataError("samples/a.jpg", "no such file"))
    'samples/a.jpg: no such file'
    """

    def __init__(self, what: str, problem: str) -> None:
        """Name the file or record and the problem.

        Args:
            what: The whole path, or the sensor and the time of a missing record.
            problem: The problem, such as ``no such file``.
        """
        super().__init__(what, problem)  # both, because pickle calls the class with the arguments given here

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
        "the data-loading workers are out of shared memory: lower `workers` (0 needs no shared memory), or enlarge "
        "/dev/shm (docker run --shm-size=8g, or --ipc=host)",
    ),
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "a data-loading worker was killed, perhaps because memory ran out: lower `workers`",
    ),
    (
        r"CPUAllocator|can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation",
        "out of memory on the CPU: {remedy}",
    ),
    (r"(?i)out of memory|STATUS_ALLOC_FAILED", "out of memory on the GPU: {remedy}"),
    (
        r"Connection (closed|reset) by peer|Broken pipe|Socket closed|remote process exited",
        "another process of this run has ended: see its error message",
    ),
    (
        r"Could not determine home directory",
        "this user has no home folder: set MIM4D_CACHE to a folder that can be written, and use paths without ~",
    ),
)
"""Regular expressions of messages of torch and Python for a lack of some resource, and the message to show."""


def shortage(error: BaseException, remedy: str = "use smaller inputs") -> str | None:
    """Explain in one line which resource a machine has run out of.

    Args:
        error: An error of torch, of a data-loading worker or of Python.
        remedy: What to do if memory ran out.

    Returns:
        The message; None if the error has another cause.

    >>> shortage(MemoryError(), remedy="lower `batch_size`")
    'out of memory on the CPU: lower `batch_size`'
    >>> shortage(RuntimeError("size mismatch")) is None
    True
    """
    if isinstance(error, MemoryError):
        return f"out of memory on the CPU: {remedy}"
    if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return None
    if isinstance(error, (RuntimeError, OSError)):  # torch.OutOfMemoryError is a RuntimeError
        return next((line.format(remedy=remedy) for known, line in _SHORTAGES if re.search(known, str(error))), None)
    return None


def printable(text: str) -> str:
    r"""Escape unprintable characters, such as terminal codes in text from a file, but not line ends.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
