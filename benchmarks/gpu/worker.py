"""A worker process that runs parts one after another and can be killed."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from .batches import free_memory
from .loading import SkippedError
from .plan import Part
from .speed import first_line

START_SECONDS = 180
"""Time limit for a new process to import everything."""


class Worker:
    """Runs parts in a separate process, so that a part that hangs or breaks CUDA affects no other part."""

    def __init__(self, device: str) -> None:
        """Prepare the worker; the process starts with the first part.

        Args:
            device: Device of the parts, ``cpu`` or ``cuda``.
        """
        self._device = device
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, part: Part, seconds: float) -> dict[str, Any]:
        """Run a part.

        Args:
            part: The part to run.
            seconds: Time limit, not counting the start of a process.

        Returns:
            ``status`` (done, skipped, failed or timeout) with ``result`` or ``reason``.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            if not self._pipe.poll(START_SECONDS):
                raise EOFError
            self._pipe.recv()  # the ready message
            self._pipe.send(part)
            if not self._pipe.poll(seconds):
                self.close()
                return {"status": "timeout", "reason": f"not finished within {seconds:.0f} s"}
            outcome: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.exitcode
            self.close()
            return {"status": "failed", "reason": f"its process ended (exit code {code})"}
        if outcome["status"] == "failed":
            self.close()  # CUDA errors persist in a process
        return outcome

    def close(self) -> None:
        """Kill the process and its children."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        assert self._pipe is not None
        self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._device))
        self._process.start()
        theirs.close()  # so that the pipe ends with the process, on both sides


def _serve(pipe: Connection, device: str) -> None:
    """Run parts until the other end closes."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device == "cpu":
        torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send("ready")
            part = pipe.recv()
            pipe.send(_outcome(part))
            torch._dynamo.reset()
            free_memory(device)


def _end_with_parent() -> None:
    """Kill this process and its children as soon as its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _outcome(part: Part) -> dict[str, Any]:
    try:
        return {"status": "done", "result": part.run()}
    except SkippedError as reason:
        return {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        return {"status": "failed", "reason": first_line(error)}
