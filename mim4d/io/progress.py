"""Progress of a count: a bar on a terminal, lines elsewhere, with one estimate of the time left for both."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


def duration(seconds: float) -> str:
    """Format a time span in seconds, minutes or hours.

    >>> [duration(seconds) for seconds in (3.2, 89, 90, 5399, 5400)]
    ['3 s', '89 s', '2 min', '90 min', '1.5 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TimeLeft:
    """An estimate of the time left, from the mean time per item since the start.

    >>> now = iter([0.0, 0.0, 10.0, 12.0])  # seconds that the clock shows at each call
    >>> left = TimeLeft(clock=lambda: next(now))
    >>> left.update(0, 5), left.update(1, 5)  # one item took 10 s, so four items take 40 s
    (None, None)
    >>> left.seconds()  # of which 2 s have passed
    38.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._known = clock()
        self._start: int | None = None
        self._left: float | None = None

    def update(self, done: int, total: int) -> None:
        """Set how many items are done. Items that are done at the first call do not count as speed."""
        now = self._clock()
        if self._start is None:
            self._start, self._began = done, now
        elif done > self._start:
            self._known, self._left = now, (now - self._began) / (done - self._start) * (total - done)

    def seconds(self) -> float | None:
        """Return the estimate in seconds, counted down since the last update; None until one item is done."""
        return None if self._left is None else max(0.0, self._left - (self._clock() - self._known))


class Bar:
    """A progress bar on a terminal; elsewhere one line every few seconds."""

    def __init__(
        self,
        console: Console,
        unit: str,
        *,
        start: int = 0,
        total: int | None = None,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a bar; it is shown from the start of its ``with`` block.

        Args:
            console: Console to print to.
            unit: Name of the items, such as ``step``.
            start: Number of items that are done already.
            total: Number of all items, if it is known.
            every: Seconds between lines if the console is no terminal.
            clock: Function that returns the time in seconds.
        """
        self._console, self._unit, self._every, self._clock = console, unit, every, clock
        self.time_left = TimeLeft(clock)
        if total is not None:
            self.time_left.update(start, total)
        self._line_at: float | None = None
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _LeftColumn(self.time_left),
            TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        hidden = not console.is_terminal or console.quiet
        self._progress = Progress(*columns, console=console, disable=hidden, expand=True)
        self._task = self._progress.add_task(unit, total=total, completed=start, shown="")

    def __enter__(self) -> "Bar":
        if not self._progress.disable:  # rich before 15 prints an empty line at the end of a hidden bar
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop updating the bar; later output appears below it."""
        if not self._progress.disable:
            self._progress.stop()

    def update(self, done: int, total: int, shown: str | None = None) -> None:
        """Show how many items are done.

        Args:
            done: Number of items that are done.
            total: Number of all items.
            shown: Text beside the bar, such as the loss of the last step; None keeps the present text.
        """
        self.time_left.update(done, total)
        self._progress.update(self._task, completed=done, total=total)
        if shown is not None:
            self._progress.update(self._task, shown=shown)
        if not self._console.is_terminal:
            self._line(done, total, shown)

    def _line(self, done: int, total: int, shown: str | None) -> None:
        now = self._clock()
        if self._line_at is not None and now - self._line_at < self._every and done != total:
            return
        self._line_at = now
        left = self.time_left.seconds()
        parts = [part for part in (shown, None if left is None else f"{duration(left)} left") if part]
        self._console.print(f"{self._unit} {done}/{total}  {', '.join(parts)}".rstrip(), markup=False, soft_wrap=True)


class _LeftColumn(ProgressColumn):
    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._time_left = time_left

    def render(self, task: Task) -> Text:
        left = self._time_left.seconds()
        return Text("" if left is None or task.finished else f"{duration(left)} left", style="progress.remaining")
