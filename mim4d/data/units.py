"""Units of the timestamps in tables."""

import numpy as np
from numpy.typing import NDArray

PER_MICROSECOND = {"seconds": 1e-6, "milliseconds": 1e-3, "nanoseconds": 1e3}
"""Other units of time that tables may use, per microsecond."""


def unit_of(times: NDArray[np.float64]) -> str | None:
    """Guess the unit of the sorted timestamps of a sensor.

    A unit fits if the median step is between 1 ms and 1 min in it and the last time is a date in 1998 .. 2103. Times
    need not be dates; then only steps that are too short or too long for microseconds show another unit.

    Args:
        times: [times] sorted.

    Returns:
        A key of :data:`PER_MICROSECOND`; None for microseconds and for a single time, which shows no unit.

    >>> start, half_seconds = 1_532_402_927, np.arange(4) / 2
    >>> [unit_of((start + half_seconds) * factor) for factor in (1, 1e3, 1e6, 1e9)]
    ['seconds', 'milliseconds', None, 'nanoseconds']
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return None
    step, last = float(np.median(steps)), float(times[-1])
    for unit, per_microsecond in PER_MICROSECOND.items():
        seconds = last / per_microsecond / 1e6
        if (
            9e8 < seconds < 4.2e9
            and 1e3 <= step / per_microsecond <= 6e7
            and not (step >= 1e3 and 9e14 < last < 4.2e15)
        ):
            return unit
    if 1e3 <= step <= 6e7 or 9e14 < last < 4.2e15:
        return None
    return "nanoseconds" if step > 6e7 else "milliseconds" if step >= 10 else "seconds"
