"""The logs of a run: ``metrics.jsonl``, TensorBoard, other trackers, and a bar or plain lines in the terminal."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from ..errors import UserError
from ..io.files import write_file
from ..io.progress import Bar
from .trackers import Tracker

Row = Mapping[str, float]
"""One logged step: ``step`` and its measurements."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line that names the file.

    Raises:
        UserError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


class MetricsFile:
    """``metrics.jsonl``: one JSON object per logged step, steps strictly increasing."""

    def __init__(self, path: Path, after: int) -> None:
        """Open the file for appending, without rows beyond the checkpoint that the run resumes from.

        Args:
            path: The file; created if it is missing.
            after: Rows of later steps are removed, and so are damaged lines.

        Raises:
            UserError: If the disk is full.
        """
        rows, self.damaged = _read_rows(path) if path.exists() else ([], 0)
        rows = [row for row in rows if row["step"] <= after]
        write_file(path, lambda partial: partial.write_text("".join(json.dumps(row) + "\n" for row in rows)))
        with _writing(path):
            self._file = path.open("a")
        self.last: dict[str, float] = rows[-1] if rows else {}
        self._path = path

    def write(self, row: Row) -> None:
        """Append one row; it is in the file when this returns.

        Raises:
            UserError: If the disk is full.
        """
        with _writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. All complete rows are in it already; :meth:`write` reports a full disk."""
        with suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a ``metrics.jsonl``, without damaged lines or a last line that was cut off."""
    return _read_rows(path)[0]


def _read_rows(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return the rows and the number of damaged lines: a power cut may leave zeros, a full disk half a line."""
    rows: list[dict[str, float]] = []
    damaged = 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            later = row["step"] > (rows[-1]["step"] if rows else -1)
            if not later or not all(isinstance(value, (int, float)) for value in row.values()):
                raise ValueError("not a row of numbers, or not of a later step")
        except (ValueError, TypeError, LookupError, AttributeError):
            damaged += 1
        else:
            rows.append(row)
    return rows, damaged


class RunLog:
    """All logs of a run; they do nothing on processes other than the main one."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        start: int,
        main: bool,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Open the run's logs.

        Args:
            folder: The run folder.
            steps: The run's last step.
            start: The step that the run resumes from.
            main: Whether this is the main process.
            tensorboard: Whether to write TensorBoard's files.
            trackers: Other trackers; each first gets the rows of a resumed run that it does not have yet.
        """
        self._console = Console(stderr=True, highlight=False, quiet=not main)
        self._main = main
        self._steps = steps
        if not main:
            return
        self._metrics = MetricsFile(folder / "metrics.jsonl", after=start)
        self._board_folder = folder / "tensorboard"
        with _writing(self._board_folder):
            self._board = SummaryWriter(self._board_folder, purge_step=start + 1) if tensorboard else None
        self._trackers = trackers
        if trackers:
            for row in read_metrics(folder / "metrics.jsonl"):
                self._track(row)
        if self._metrics.damaged:
            self.say(f"warning: {self._metrics.damaged} damaged lines of {folder / 'metrics.jsonl'} are ignored")
        self._bar = Bar(self._console, "step", start=start, total=steps)

    def __enter__(self) -> "RunLog":
        if self._main:
            self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._main:
            self._bar.stop()
            self._metrics.close()
            for tracker in self._trackers:
                tracker.close(failed=error is not None)
            with suppress(UserError) if error else nullcontext(), _writing(self._board_folder):
                if self._board:
                    self._board.close()

    def last(self, name: str) -> float:
        """Return a value from the last row of the run that is resumed; 0 if there is none."""
        return self._metrics.last.get(name, 0.0) if self._main else 0.0

    def say(self, message: str, *, to_copy: bool = False) -> None:
        """Print one line to the terminal.

        Args:
            message: The line; a terminal wraps it between words.
            to_copy: Whether it stays one line, so that a command can be copied from it.
        """
        self._console.print(message, markup=False, soft_wrap=to_copy or not self._console.is_terminal)

    def end(self) -> None:
        """Close the bar, so that further lines appear below it."""
        if self._main:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Advance the bar by one step; the device may still compute its values."""
        if self._main and self._console.is_terminal:
            self._bar.update(step, self._steps)

    def row(self, row: Row) -> None:
        """Report one logged step, without values that are NaN or infinite: JSON has neither."""
        if not self._main:
            return
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        step = int(row["step"])
        self._metrics.write(row)
        with _writing(self._board_folder):
            for name, value in row.items():
                if name != "step" and self._board:
                    self._board.add_scalar(_board_name(name), value, step)
        self._track(row)
        shown = _listed({name: value for name, value in row.items() if not name.startswith("val_")})
        held_out = _listed({name[4:]: value for name, value in row.items() if name.startswith("val_")})
        self._bar.update(step, self._steps, shown)
        if held_out:
            self.say(f"step {step}/{self._steps}  held out: {held_out}")

    def picture(self, step: int, path: Path) -> None:
        """Add a picture to TensorBoard and the other trackers."""
        if self._board:
            with Image.open(path) as image, _writing(self._board_folder):
                self._board.add_image("held_out", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        for tracker in self._trackers:
            tracker.picture(step, path)

    def _track(self, row: Row) -> None:
        values = {_board_name(name): value for name, value in row.items() if name != "step"}
        for tracker in self._trackers:
            tracker.row(int(row["step"]), values)


_SHOWN = {"rgb": "rgb {:.3f}", "depth": "depth {:.2f} m"}
"""Errors of each kind of rendering."""


def _listed(values: Row) -> str:
    """Format the losses as one line: colour error (0 to 1) and depth error of each rendering, where measured."""
    parts = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    if values.get("rays") == 0:  # a loss of 0 would read as perfect
        parts = ["no ray to compare with"]
    for kind in ("direct", "temporal", "zero", "mean"):
        errors = [text.format(values[name]) for what, text in _SHOWN.items() if (name := f"{kind}_{what}") in values]
        if errors:
            parts.append(f"{kind} {' '.join(errors)}")
    if "clips_per_s" in values:  # before what a narrow terminal cuts off
        parts.insert(1, speed(values["clips_per_s"]))
    return ", ".join(parts)


def speed(clips_per_s: float) -> str:
    """Format clips per second, or seconds per clip where that is less than one."""
    return f"{clips_per_s:.1f} clips/s" if clips_per_s >= 1 else f"{1 / max(clips_per_s, 1e-9):.1f} s/clip"


def _board_name(name: str) -> str:
    """Return the name in TensorBoard, which groups by the part before the slash."""
    if name.startswith("probe_"):
        return f"probe/{name.removeprefix('probe_')}"
    return f"held_out/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
