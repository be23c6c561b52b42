"""Measurements of the steps, stored on the device until they are read, so that no step waits."""

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from .processes import end_all


def join(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of several batches of one step: scalars are averaged, values per clip concatenated."""
    rows = {name: [batch[name] for batch in batches] for name in batches[0]}
    return {name: torch.cat(row) if row[0].dim() else torch.stack(row).float().mean(0) for name, row in rows.items()}


def totals(values: dict[str, Tensor], clips: int) -> dict[str, Tensor]:
    """Return sum and count [2] of each value, which can be added over batches and processes.

    Args:
        values: Scalars of the whole batch, which count once per clip; or values per clip [B], of which NaN does not
            count, because nothing was measured.
        clips: B.
    """
    found = {
        name: torch.stack([v.detach().float(), torch.ones_like(v, dtype=torch.float32)]) * clips
        for name, v in values.items()
        if not v.dim()
    }
    if per_clip := [name for name, v in values.items() if v.dim()]:
        table = torch.stack([values[name].detach().float() for name in per_clip])  # [names, B]
        sums = torch.stack([table.nansum(1), (~table.isnan()).sum(1)], dim=1)
        found |= dict(zip(per_clip, sums.unbind(0), strict=True))
    return {name: found[name] for name in values}


def averages(totals: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of each value from its sum and count; values without any count are left out."""
    return {name: whole / count for name, (whole, count) in totals.items() if count}


class Meter:
    """Collects every step's values; :meth:`read` is the only place where the host waits for the device."""

    def __init__(self, accelerator: Accelerator, *, seconds: float = 0.0, skipped: float = 0.0) -> None:
        """Start the clock.

        Args:
            accelerator: The run's.
            seconds: Time spent in steps before the run was resumed.
            skipped: Clips replaced before the run was resumed.
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
        """Record a step.

        Args:
            step: Number of the step.
            values: On the device, with the same names in every step: scalars, or values per clip with NaN where nothing
                was measured.
            clips: Names of this process's clips.
            skipped: Number of clips that replace one that could not be read.
        """
        self._names = list(values)
        self._steps.append(step)
        self._values.append(torch.stack(list(totals(values, len(clips)).values())))  # [names, 2]
        self._clips.append(clips)
        self._skipped += skipped

    def restart_clock(self) -> None:
        """Exclude the time since the last :meth:`read`, such as of an evaluation or a checkpoint."""
        self._began = time.monotonic()

    def read(self, remedy: str) -> dict[str, float]:
        """Return the values of the last step, averaged over clips and processes; check all steps since the last call.

        Args:
            remedy: What the user can do, for the error message.

        Returns:
            ``step`` and its values, without those measured for no clip; ``clips_per_s`` since the last call;
            ``seconds`` in steps and ``skipped`` clips since the run's start.

        Raises:
            UserError: On the main process, if the loss or the gradient was not finite at one of the steps, naming the
                first such step and its clips.
            SystemExit: With code 2 on the others.
        """
        table = self._accelerator.reduce(torch.stack(self._values), "sum").tolist()  # the host waits here
        steps, clips = self._steps, self._clips
        self._steps, self._values, self._clips = [], [], []
        seconds = time.monotonic() - self._began
        self._seconds += seconds
        self.restart_clock()
        rows = [averages(dict(zip(self._names, values, strict=True))) for values in table]
        self._check_finite(rows, steps, clips, remedy)
        shares = gather_object([(sum(map(len, clips)), self._skipped)])
        return {
            "step": steps[-1],
            **rows[-1],
            "clips_per_s": sum(drawn for drawn, _ in shares) / seconds,
            "seconds": self._seconds,
            "skipped": int(self._skipped_before) + sum(skipped for _, skipped in shares),
        }

    def _check_finite(
        self, rows: list[dict[str, float]], steps: list[int], clips: list[tuple[str, ...]], remedy: str
    ) -> None:
        for step, values, names in zip(steps, rows, clips, strict=True):
            for what in ("loss", "grad_norm"):
                if not math.isfinite(values[what]):
                    where = ", ".join(gather_object(list(names)))
                    end_all(self._accelerator, f"{what} is {values[what]} at step {step} (clips {where}); {remedy}")
