"""Progress of counted work: a bar on a terminal, lines elsewhere, and one estimate of the time left for both."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, rounded for a reader."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TimeLeft:
    """Time left from the mean time per item since the start: items that end together do not move it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._known = clock()
        self._start: int | None = None
        self._left: float | None = None

    def update(self, done: int, total: int) -> None:
        """Note how many items are done. The first call counts those that were done before."""
        now = self._clock()
        if self._start is None:
            self._start, self._began = done, now
        elif done > self._start:
            self._known, self._left = now, (now - self._began) / (done - self._start) * (total - done)

    def seconds(self) -> float | None:
        """The estimate, counted down since the last update; None before one item is done."""
        return None if self._left is None else max(0.0, self._left - (self._clock() - self._known))


class Bar:
    """A bar on a terminal, a line now and then where there is none."""

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
        """Prepare; nothing is shown before the bar is entered.

        Args:
            console: Where to.
            unit: What is counted, such as ``step``.
            start: Items done before.
            total: Items in all, if it is known by now.
            every: Seconds between lines where there is no terminal.
            clock: Of the time left.
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
        if not self._progress.disable:  # rich before 15 ends a bar that nobody sees with an empty line
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the bar as it is; what is printed afterwards stands below it."""
        if not self._progress.disable:
            self._progress.stop()

    def update(self, done: int, total: int, shown: str | None = None) -> None:
        """Show how many items are done.

        Args:
            done: Items.
            total: Items in all.
            shown: Measures of the last item; None leaves those that are shown.
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
