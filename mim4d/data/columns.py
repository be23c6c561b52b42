"""Read JSON tables column by column, and check every value.

A value that cannot be right is a fault with its table, row and column. Faults are collected, so that one check reports
all kinds of them.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FARTHEST = 1e9
"""Largest coordinate of a position, metres."""

_MISSING = object()
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """One kind of fault: a column of a table with values that cannot be right."""

    table: str
    """File name of the table, such as ``sample_data.json``."""
    problem: str
    """Name of the column and what was expected; the same for all rows of this kind."""
    where: str = ""
    """The first row with this fault: its number, from 0, and its token."""
    found: str = ""
    """The value in the first row."""
    count: int = 1
    """Number of rows with this fault, or of what ``unit`` names."""
    unit: str = "rows"

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{f'{self.where}, ' if self.where else ''}{self.problem}{found}"


class Table:
    """The rows of a table, read column by column. Bad values are added to the faults and replaced by a default."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        """Read a table. If that fails, a fault is added and the table has no rows."""
        self.name, self._faults = path.name, faults
        self.rows: list[dict[str, Any]] = []
        try:
            self.rows = _read_rows(path)
        except ValueError as error:
            faults.append(Fault(path.name, str(error)))
        self.numbers: Sequence[int] = range(len(self.rows))
        """Number of each row in the file."""
        self._tokens: dict[str, int] | None = None

    def only(self, rows: Sequence[int]) -> "Table":
        """Select rows of the table."""
        part = object.__new__(Table)
        part.name, part._faults, part._tokens = self.name, self._faults, None
        part.rows, part.numbers = [self.rows[i] for i in rows], [self.numbers[i] for i in rows]
        return part

    def column(self, name: str, good: Callable[[Any], bool], expected: str, default: Any) -> list[Any]:
        """Read the values of a column, one per row.

        Args:
            name: Name of the column.
            good: Function that returns whether a value is valid.
            expected: What ``good`` accepts, for the message.
            default: Replaces an invalid value.
        """
        values = [row.get(name, _MISSING) for row in self.rows]
        bad = [i for i, value in enumerate(values) if value is _MISSING or not good(value)]
        if bad:
            self.fault(bad, f"{name}: expected {expected}", shown(values[bad[0]]))
        for i in bad:
            values[i] = default
        return values

    def tokens(self) -> dict[str, int]:
        """Map the token of each row to its number."""
        if self._tokens is None:
            values = self.column("token", _is_token, "a text that is not empty", "")
            self._tokens = {}
            twice = [i for i, token in enumerate(values) if self._tokens.setdefault(token, i) != i and token]
            if twice:
                first = self._tokens[values[twice[0]]]
                self.fault(twice, "token: expected one row per token", f"it in row {first} too")
        return self._tokens

    def refer(self, name: str, other: "Table") -> NDArray[np.int64]:
        """Read a column of tokens of ``other`` as row numbers of ``other``, [rows]."""
        tokens = other.tokens()
        expected = f"a token of {other.name}"
        column = self.column(name, lambda value: isinstance(value, str) and value in tokens, expected, None)
        return np.array([tokens.get(token, 0) for token in column], dtype=np.int64)

    def texts(self, name: str) -> list[str]:
        """Read a column of names: text without control characters."""
        return self.column(name, is_name, "a name without control characters", "")

    def vectors(self, name: str, length: int) -> NDArray[np.float64]:
        """Read a column of vectors in metres, [rows, length]."""
        expected = f"{length} numbers of at most {FARTHEST:.0e}"
        values = self.column(name, lambda value: is_vector(value, length), expected, [0.0] * length)
        return np.array(values, dtype=np.float64).reshape(-1, length)

    def rotations(self, name: str = "rotation") -> NDArray[np.float64]:
        """Read a column of quaternions (w, x, y, z) of any length except 0, [rows, 4]."""
        values = self.column(name, is_rotation, "a quaternion (w, x, y, z) that is not zero", [1.0, 0.0, 0.0, 0.0])
        return np.array(values, dtype=np.float64).reshape(-1, 4)

    def times(self) -> NDArray[np.float64]:
        """Read the timestamps, [rows], without rounding."""
        values = self.column("timestamp", _is_time, "a number of microseconds", 0)
        return np.array(values, dtype=np.float64)

    def fault(self, bad: Sequence[int], problem: str, found: str) -> None:
        """Add a fault of some rows."""
        token = self.rows[bad[0]].get("token", _MISSING)
        where = f"row {self.numbers[bad[0]]}" + ("" if token is _MISSING else f" (token {shown(token)})")
        self._faults.append(Fault(self.name, problem, where, found, len(bad)))


def shown(value: Any, most: int = 60) -> str:
    """Format a value of a table for a message: as JSON in printable ASCII, shortened to ``most`` characters.

    >>> shown(["a", None]), shown("x" * 100, most=8)
    ('["a", null]', '"xxxx...')
    """
    if value is _MISSING:
        return "nothing"
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_name(value: Any) -> bool:
    """Return whether a value is text that is not blank and can be printed in one line."""
    return isinstance(value, str) and value.strip() != "" and not _CONTROL.search(value)


def is_vector(value: Any, length: int, limit: float = FARTHEST) -> bool:
    """Return whether a value is a list of ``length`` finite numbers of magnitude at most ``limit``."""
    return isinstance(value, list) and len(value) == length and all(is_number(number, limit) for number in value)


def is_number(value: Any, limit: float = FARTHEST) -> bool:
    """Return whether a value is a finite number of magnitude at most ``limit``.

    >>> is_number(1.5), is_number(float("nan")), is_number(True), is_number(3, limit=2)
    (True, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= limit


def is_rotation(value: Any) -> bool:
    """Return whether a value is a quaternion that can be normalised."""
    return is_vector(value, 4, 1e6) and sum(part * part for part in value) > 1e-12


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_time(value: Any) -> bool:
    return is_number(value, 9e18)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON table, in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: If the file is not a table.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of rows, found {shown(rows)}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number}: expected an object, found {shown(row)}")
    return rows


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file does not exist or is not JSON.
    """
    if not path.is_file():
        raise ValueError("no such file: is the download complete?")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the table ({error.strerror})") from error
    except RecursionError as error:
        raise ValueError("not a table (nested too deeply)") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON (byte {error.start} is not {error.encoding})") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
