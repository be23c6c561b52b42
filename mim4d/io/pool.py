"""Run tasks in worker processes, which end when the caller does."""

import multiprocessing
import os
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
    """Call ``function(*task)`` for every task, each call in a process of its own.

    If ``ended`` raises, or on Ctrl-C or SIGTERM, no further task is started and each running process gets one SIGTERM.
    Training then saves a checkpoint; a second SIGTERM would interrupt that. (The executors of the standard library send
    two, and their workers first finish the tasks in their queue.) If this process is killed, its workers get a SIGTERM
    too.

    Args:
        function: The function to call. It and the tasks must be picklable.
        tasks: The arguments of each call.
        workers: How many processes run at the same time, 1 or more.
        ended: Called in this process when a task has ended, with the task and the exception that it raised or None.
        tick: Called in this process twice a second while tasks run.

    Raises:
        ValueError: If ``workers`` is less than 1.
        KeyboardInterrupt: On SIGINT.
        SystemExit: On SIGTERM, with code 143.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers} must be at least 1")
    context = get_context("spawn")
    waiting = iter(tasks)
    running: dict[Connection, tuple[Task, SpawnProcess]] = {}
    done: list[tuple[Task, Exception | None]] = []
    with _terminable():
        try:
            while True:
                for task in islice(waiting, workers - len(running)):
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(function, task, sender))
                    running[receiver] = task, process  # before the start, so that a signal in between stops it too
                    process.start()
                    sender.close()  # the worker's copy is then the last one: if it dies, the receiver sees EOF
                for task, error in done:
                    ended(task, error)
                if not running:
                    return
                while not (ready := wait(list(running), timeout=0.5 if tick else None)):
                    if tick:
                        tick()
                done = [_result(receiver, *running.pop(receiver)) for receiver in list(running) if receiver in ready]
        finally:
            started = [process for _, process in running.values() if process.pid is not None]
            for process in started:
                process.terminate()
            for process in started:
                process.join()


def _work(function: Callable[..., object], task: Task, sender: Connection) -> None:
    """Run one task in a worker process and send what it raised, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes: the parent reacts to it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    error: Exception | None = None
    try:
        function(*task)
    except Exception as raised:
        error = raised
        if not isinstance(error, (UserError, OSError)) and not shortage(error):
            traceback.print_exc()  # a pickled exception loses its traceback
    try:
        pickle.loads(pickle.dumps(error))  # some exceptions cannot be unpickled
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    sender.send(error)


def _end_with_parent() -> None:
    """Send this process a SIGTERM when its parent has been killed, because nothing waits for the task any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _result(receiver: Connection, task: Task, process: SpawnProcess) -> tuple[Task, Exception | None]:
    """Read what a task that has ended raised."""
    error: Exception | None
    try:
        error = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        how = f"ended with exit code {process.exitcode}"
        if process.exitcode and process.exitcode < 0:
            how = f"was killed by signal {-process.exitcode}, perhaps because memory ran out"
        error = UserError(f"a worker process {how}")
    return task, error


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside a ``with`` block, as Ctrl-C raises KeyboardInterrupt."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second SIGTERM would interrupt the shutdown
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
