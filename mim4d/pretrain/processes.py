"""Distributed processes and stop signals of the trainer."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)

AGREE_EVERY = 5.0
"""Seconds between two checks whether any process should stop; far less than the 30 s after which torchrun kills."""
FORWARDED = 2.0
"""Seconds within which a second SIGINT is taken for the first one, sent again by a launcher."""

Result = TypeVar("Result")


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Call ``action`` on the main process while the others wait. If it fails, every process ends.

    Args:
        accelerator: The processes.
        action: Function whose result can be pickled.

    Returns:
        The result of ``action``, on every process.

    Raises:
        BaseException: On the main process, the exception of ``action``.
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


def end_all(accelerator: Accelerator, message: str) -> NoReturn:
    """End the run on every process; only the main process prints the message. Must be called on all of them.

    Raises:
        UserError: On the main process, with the message.
        SystemExit: With code 2 on the others.
    """
    raise UserError(message) if accelerator.is_main_process else SystemExit(2)


OTHER_TRAINERS = {
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
    "ACCELERATE_USE_SAGEMAKER": "false",
    "ACCELERATE_DYNAMO_BACKEND": "no",
}
"""Environment variables that select another trainer in accelerate, and the value that turns each off."""
OFF = ("", "no", "n", "false", "f", "off", "0")
"""Values that count as off."""
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that launchers of several processes set."""


@contextmanager
def own_settings(own: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Context in which accelerate cannot see environment variables that the run's settings replace.

    Args:
        own: For each variable, the run's value, and the flag that sets it.

    Raises:
        UserError: If a variable selects another trainer, or the variables of a launcher are incomplete.
    """
    for name, off in OTHER_TRAINERS.items():
        if (value := os.environ.get(name, "")).lower() not in OFF:
            raise UserError(f"{name}={value} is not supported: unset it or set it to {off}, then start again")
    several = os.environ.get("LOCAL_RANK", "-1") != "-1" or os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    missing = [name for name in LAUNCHED if not os.environ.get(name)]
    if several and missing:
        given = ", ".join(f"{name}={os.environ[name]}" for name in LAUNCHED if os.environ.get(name))
        raise UserError(
            f"{given} in the environment, but no {', '.join(missing)}: start several processes with torchrun, "
            "or unset these variables to start one process"
        )
    hidden = {name: os.environ.pop(name) for name in own if name in os.environ}
    for name, value in hidden.items():
        wanted, flag = own[name]
        # Launchers set "no" and "1" by default.
        if value.lower() not in (wanted, "no", "1") and os.environ.get("RANK", "0") == "0":
            logger.warning("%s=%s is ignored; the run uses %s", name, value, flag)
    try:
        yield
    finally:
        os.environ.update(hidden)


def average_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Average the running statistics of BatchNorms in training mode over all processes.

    Called after each step, this gives the statistics of a single process with the batches of all.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    if accelerator.num_processes == 1 or not norms:
        return
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    mean = accelerator.reduce(torch.cat(buffers), "mean")
    torch._foreach_copy_(buffers, list(mean.split([len(buffer) for buffer in buffers])))


class StopSignal:
    """Context in which SIGINT and SIGTERM request a stop after the current step.

    Further SIGTERMs change nothing, because schedulers and launchers send several. A second SIGINT raises
    KeyboardInterrupt, unless it comes within :data:`FORWARDED` seconds of the first. Signals that the process ignores
    stay ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal received, or 0."""
        self._interrupted: float | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as returned by signal.signal
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > FORWARDED:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now


class StopAgreement:
    """Agreement of all processes to stop after the same step.

    To agree, processes wait for each other and for the device, so they do it about every :data:`AGREE_EVERY` seconds.
    """

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        """Count from a step that all processes have reached."""
        self._alone = accelerator.num_processes == 1
        self._step, self._steps = step, 1
        self._time = time.monotonic()

    def after(self, step: int, received: int) -> int:
        """Return the signal for which all processes stop after ``step``; 0 if they continue.

        Args:
            step: Number of the last finished step.
            received: Number of the signal that this process has received, or 0.
        """
        if self._alone or step - self._step < self._steps:
            return received if self._alone else 0
        now = time.monotonic()
        answers = gather_object([(received, (now - self._time) / (step - self._step))])
        slowest = max(seconds for _, seconds in answers)
        # At most twice as many steps as before, because the first ones take longer.
        self._steps = min(2 * self._steps, max(1, int(AGREE_EVERY / max(slowest, 1e-6))))
        self._step, self._time = step, now
        return max(number for number, _ in answers)
