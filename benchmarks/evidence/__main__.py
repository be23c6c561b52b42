"""The command line of the comparison."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from mim4d.errors import UserError
from mim4d.flags import report_user_errors

from .protocol import EVERY, SIZES
from .run import compare


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare pretrainings of a backbone by probes and on three tasks. Run the same command again to resume."""

    size: Literal["cpu", "long", "gpu"] = "cpu"
    """cpu: sized for 2 cores; long: the same with five times the steps; gpu: for one GPU."""
    out: Path = Path("runs/evidence")
    """Folder for all runs and for results.json, summary.md, table.md, details.md and plot.png."""
    starts: tuple[str, ...] = tuple(EVERY)
    """What to compare: weights, and the pretraining that begins with them."""
    workers: int = 1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1)
    """Number of processes; each needs up to 5 GB of memory."""


def main(options: Options) -> None:
    """Check the options, run the comparison, write the report."""
    for start in options.starts:
        if start not in EVERY:
            raise UserError(f"--starts {start} is unknown: choose from {', '.join(EVERY)}")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers} must be at least 1")
    command = f"python -m benchmarks.evidence --size {options.size}"
    compare(SIZES[options.size], options.out.expanduser(), options.starts, options.workers, command)


if __name__ == "__main__":
    with report_user_errors():
        main(tyro.cli(Options))
