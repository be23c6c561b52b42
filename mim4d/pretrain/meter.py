"""What the steps measured, left on the device until somebody asks, so that no step waits for the host."""

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..errors import UserError


class Meter:
    """Collects every step's values; :meth:`read` is the only place where the host waits for the device."""

    def __init__(self, accelerator: Accelerator, *, seconds: float = 0.0, skipped: float = 0.0) -> None:
        """Start the clock.

        Args:
            accelerator: Of the run.
            seconds: Spent in steps before, by the run that is gone on with.
            skipped: Clips replaced before.
        """
        self._accelerator = accelerator
        self._seconds = seconds
        self._skipped_before = skipped
        self._skipped = 0
        self._steps: list[int] = []
        self._values: list[Tensor] = []
        self._clips: list[tuple[str, ...]] = []
        self._names: list[str] = []
        self.restart_clock()

    def add(self, step: int, values: dict[str, Tensor], clips: tuple[str, ...], skipped: int) -> None:
        """Note a step.

        Args:
            step: Which one.
            values: Scalars on the device, the same names every time.
            clips: Names of this process's clips.
            skipped: How many of them stand in the place of one that could not be read.
        """
        self._names = list(values)
        self._steps.append(step)
        self._values.append(torch.stack([value.detach().float() for value in values.values()]))
        self._clips.append(clips)
        self._skipped += skipped

    def restart_clock(self) -> None:
        """Leave out of the time what happened since the last :meth:`read`: an evaluation, a checkpoint."""
        self._began = time.monotonic()

    def read(self, remedy: str) -> dict[str, float]:
        """Values of the last step, averaged over processes, after a look at all steps since the last call.

        Args:
            remedy: What to tell the user if the run has to stop here.

        Returns:
            ``step`` and its values; ``clips_per_s`` since the last call; ``seconds`` spent in steps and ``skipped``
            clips since the run's start.

        Raises:
            UserError: If loss or gradient were not finite at one of the steps, naming the first and its clips.
        """
        table = self._accelerator.reduce(torch.stack(self._values), "mean").tolist()  # the host waits here
        steps, clips = self._steps, self._clips
        self._steps, self._values, self._clips = [], [], []
        seconds = time.monotonic() - self._began
        self._seconds += seconds
        self.restart_clock()
        self._check_finite(table, steps, clips, remedy)
        shares = gather_object([(sum(map(len, clips)), self._skipped)])
        return {
            "step": steps[-1],
            **dict(zip(self._names, table[-1], strict=True)),
            "clips_per_s": sum(drawn for drawn, _ in shares) / seconds,
            "seconds": self._seconds,
            "skipped": int(self._skipped_before) + sum(skipped for _, skipped in shares),
        }

    def _check_finite(
        self, table: list[list[float]], steps: list[int], clips: list[tuple[str, ...]], remedy: str
    ) -> None:
        for step, row, names in zip(steps, table, clips, strict=True):
            values = dict(zip(self._names, row, strict=True))
            for what in ("loss", "grad_norm"):
                if not math.isfinite(values[what]):
                    where = ", ".join(gather_object(list(names)))
                    raise UserError(f"{what} is {values[what]} at step {step} (clips {where}); {remedy}")
