"""Work shared out among processes that end when it does, however it ends."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import Any

from .errors import UserError


def share_out(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    ended: Callable[[tuple[Any, ...], "Future[Any]"], None],
) -> None:
    """Call ``function(*task)`` for every task, in fresh processes side by side.

    Nothing waits in a queue: when ``ended`` raises, or Ctrl-C or SIGTERM comes, no task is begun any more and those
    at work get a SIGTERM, once. Processes do not hear Ctrl-C themselves.

    Args:
        function: Can be pickled.
        tasks: Its arguments.
        workers: Processes.
        ended: Called here with each task and its future, as they end.

    Raises:
        KeyboardInterrupt: On SIGINT.
        SystemExit: On SIGTERM, with 143.
        UserError: If a process was killed.
    """
    others = set(multiprocessing.active_children())
    left = iter(tasks)
    running: dict[Future[Any], tuple[Any, ...]] = {}
    done: list[tuple[tuple[Any, ...], Future[Any]]] = []
    with (
        _terminated(),
        ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool,
    ):
        try:
            while True:
                for task in islice(left, workers - len(running)):
                    running[pool.submit(function, *task)] = task
                for task, future in done:
                    ended(task, future)
                if not running:
                    return
                done = [(running.pop(future), future) for future in wait(running, return_when=FIRST_COMPLETED).done]
        except BrokenProcessPool as error:
            raise UserError("a process was killed, perhaps for want of memory: run the same again to go on") from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM raises, as Ctrl-C does."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
