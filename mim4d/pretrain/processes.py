"""What several processes, and the signals that stop them, need from a trainer."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Call ``action`` on the main process while the others wait; whatever it raises there ends every process.

    Returns:
        The action's result, on every process; it can be pickled.

    Raises:
        BaseException: On the main process, the action's own.
        SystemExit: With code 2 on the others, so that only the main process prints the error.
    """
    result: Result | None = None
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            result = action()
        except BaseException as error:
            failure = error
    failed, shared = broadcast_object_list([failure is not None, result])
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(2)
    return shared


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop after the step; the second has its usual effect.

    One that the process was told to ignore stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal's number; 0 before there is one."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there alone
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        self._before = {}
