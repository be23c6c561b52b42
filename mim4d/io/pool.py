"""Work shared out among processes, which are stopped when it is."""

import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from ..errors import UserError, shortage

Task = tuple[Any, ...]


def run_in_processes(
    function: Callable[..., object],
    tasks: Sequence[Task],
    workers: int,
    ended: Callable[[Task, Exception | None], None],
    tick: Callable[[], None] | None = None,
) -> None:
    """Call ``function(*task)`` for every task, each in a process of its own.

    When ``ended`` raises, or Ctrl-C or SIGTERM comes, no task is begun any more, and each process gets one SIGTERM:
    a training saves a checkpoint then, which a second one would cut short. An executor of the standard library sends
    it twice, and its workers go on with what waits in their queue.

    Args:
        function: Can be pickled.
        tasks: Its arguments.
        workers: Processes side by side.
        ended: Called here with each task as it ends, and with what it raised.
        tick: Called here twice a second meanwhile.

    Raises:
        ValueError: If there are no workers.
        KeyboardInterrupt: On SIGINT.
        SystemExit: On SIGTERM, with 143.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers")
    context = get_context("spawn")
    left = iter(tasks)
    running: dict[Connection, tuple[Task, SpawnProcess]] = {}
    done: list[tuple[Task, Exception | None]] = []
    with _terminable():
        try:
            while True:
                for task in islice(left, workers - len(running)):
                    hears, says = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(function, task, says))
                    running[hears] = task, process  # first, or a signal would find it running and unknown
                    process.start()
                    says.close()  # here: when the process ends, whatever ends it, there is nothing more to hear
                for task, error in done:
                    ended(task, error)
                if not running:
                    return
                while not (ready := wait(list(running), timeout=0.5 if tick else None)):
                    if tick:
                        tick()
                done = [_result(hears, *running.pop(hears)) for hears in list(running) if hears in ready]
        finally:
            begun = [process for _, process in running.values() if process.pid is not None]
            for process in begun:
                process.terminate()
            for process in begun:
                process.join()


def _work(function: Callable[..., object], task: Task, says: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes to all: the one who shares out decides
    error: Exception | None = None
    try:
        function(*task)
    except Exception as raised:
        error = raised
        if not isinstance(error, (UserError, OSError)) and not shortage(error):
            traceback.print_exc()  # which does not go with what is pickled
    try:
        pickle.loads(pickle.dumps(error))  # some cannot be read again
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    says.send(error)


def _result(hears: Connection, task: Task, process: SpawnProcess) -> tuple[Task, Exception | None]:
    error: Exception | None
    try:
        error = hears.recv()
        process.join()
    except EOFError:
        process.join()
        how = f"ended with exit code {process.exitcode}"
        if process.exitcode and process.exitcode < 0:
            how = f"was killed by signal {-process.exitcode}, perhaps for want of memory"
        error = UserError(f"its process {how}: run the same again to go on")
    return task, error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, as Ctrl-C does."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the stopping
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
