"""Run all pretrainings and evaluations of the comparison in parallel processes; finished ones are not repeated.

``OUT/pretraining/START-SEED/`` is a run of ``mim4d-pretrain``, ``OUT/cells/START-SEED/TASK-MODE-LABELS/`` one of
``mim4d-eval``; their output goes to ``OUT/logs/START-SEED.txt``. The report is updated whenever a job ends.
"""

import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from mim4d.errors import UserError
from mim4d.eval.config import EvalConfig
from mim4d.eval.config import complete as complete_cell
from mim4d.eval.data import EvalData
from mim4d.eval.labels import write_json
from mim4d.eval.run import evaluate, read_figures
from mim4d.io.files import make_folder
from mim4d.io.pool import Task, run_in_processes
from mim4d.pretrain.config import PretrainConfig, flatten, plain, to_dict
from mim4d.pretrain.config import complete as complete_pretraining
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.logs import read_metrics
from mim4d.pretrain.trainer import train
from mim4d.roots import synthetic_root
from mim4d.version import __version__

from .protocol import ABLATIONS, EVERY, RANDOM, STARTS, Cell, Size
from .report import MAIN, summarise, write_report
from .strip import strip
from .unlabelled import unlabelled

ELSEWHERE = ("out", "dataroot", "workers")
"""Settings that do not change the result."""
FRESH_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_ARENA_MAX": "1"}
"""Make the C library keep freed memory: mapping new memory is slow on some machines."""


@dataclass(frozen=True)
class Job:
    """All work of one initialisation and seed: pretraining, scores without labels, evaluations."""

    size: Size
    out: Path
    start: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{self.start}-{self.seed}"

    @property
    def pretraining(self) -> Path:
        """Folder of its pretraining run."""
        return self.out / "pretraining" / self.name

    def pretraining_config(self) -> PretrainConfig:
        """Return the complete settings of its pretraining."""
        steps = self.size.ablation_steps if self.start in ABLATIONS else self.size.pretraining.steps
        config = replace(self.size.pretraining, steps=steps, seed=self.seed, out=str(self.pretraining))
        return complete_pretraining(EVERY[self.start].change(config))

    def cells(self) -> dict[Cell, EvalConfig]:
        """Return its evaluations with their complete settings."""
        return {cell: self._cell_config(cell) for cell in self.size.cells_of(self.start)}

    def _cell_config(self, cell: Cell) -> EvalConfig:
        random = self.start == RANDOM
        return complete_cell(
            replace(
                on_data_of(self.size.pretraining, self.size.evaluation[cell.task]),
                backbone=self.size.pretraining.model if random else str(self.pretraining / "encoder"),
                init="random" if random else "pretrained",
                freeze=cell.mode == "frozen",
                labels=cell.labels,
                steps=self.size.evaluation_steps[cell.labels],
                seed=self.seed,
                out=str(self.out / "cells" / self.name / cell.name),
            )
        )


def on_data_of(pretraining: PretrainConfig, config: EvalConfig) -> EvalConfig:
    """Return an evaluation's settings with the data settings of the pretraining."""
    shared: dict[str, Any] = {
        name: getattr(pretraining, name) for name in ("data", "dataroot", "version", "world", "image_size")
    }
    return replace(config, **shared)


def jobs_of(size: Size, out: Path, starts: Sequence[str]) -> list[Job]:
    """Return all jobs in order of importance: one seed of all initialisations before the next."""
    every = [(start, seed) for seed in range(size.seeds) for start in (RANDOM, *STARTS)]
    every += [(start, seed) for seed in range(size.ablation_seeds) for start in ABLATIONS]
    every += [(RANDOM, seed) for seed in range(size.seeds, size.yardstick_seeds)]
    return [Job(size, out, start, seed) for start, seed in every if start in starts]


def compare(size: Size, out: Path, starts: Sequence[str], workers: int, command: str) -> None:
    """Run all unfinished jobs and write the report.

    Args:
        size: Size of the comparison.
        out: Folder for everything.
        starts: Names of the initialisations to compare.
        workers: Number of processes.
        command: The command line, for the report.

    Raises:
        UserError: If ``out`` holds another comparison, a comparison is running there, or a job failed.
    """
    with _alone(out):
        _do_all(size, out, starts, workers, command)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock a folder, because two comparisons would write the same files.

    Raises:
        UserError: If another process holds the lock.
    """
    make_folder(out)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another comparison is running in {out}: wait for it, or choose another --out") from error


def _do_all(size: Size, out: Path, starts: Sequence[str], workers: int, command: str) -> None:
    jobs = jobs_of(size, out, starts)
    for job in jobs_of(size, out, (RANDOM, *EVERY)):  # the report includes everything in the folder
        _check(job)
    console = Console(stderr=True, highlight=False)
    root = synthetic_root(size.pretraining.dataroot, size.pretraining.version, size.pretraining.world)
    console.print(f"{len(jobs)} jobs on {root} in {workers} processes; logs in {out / 'logs'}", soft_wrap=True)
    os.environ.update(FRESH_MEMORY)  # for the worker processes
    began = time.monotonic()
    failed: list[str] = []
    count = itertools.count(1)

    def ended(task: Task, error: Exception | None) -> None:
        job, how = task[0], "done"
        if error is not None:
            how = f"FAILED: {' '.join(str(error).split()) or type(error).__name__}"
            failed.append(f"{job.name} {how}")
        write_report(results(size, out, command), out)
        write_strip(size, out)
        minutes = (time.monotonic() - began) / 60
        console.print(f"{next(count)}/{len(jobs)} {job.name}, {minutes:.0f} min: {how}", soft_wrap=True)

    threads = max(1, (os.cpu_count() or 1) // workers)
    run_in_processes(run_job, [(job, threads) for job in jobs], workers, ended)
    if failed:
        raise UserError(f"{failed[0]} (see {out / 'logs'}). Run the same command again to resume")


def run_job(job: Job, threads: int) -> None:
    """Run the unfinished parts of one job."""
    torch.set_num_threads(threads)
    log = job.out / "logs" / f"{job.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _output_to(log):
        try:
            if job.start != RANDOM:
                _pretrain(job)
            for config in job.cells().values():
                if read_figures(Path(config.out)) is None:
                    data = _data(complete_cell(on_data_of(job.size.pretraining, EvalConfig(task="bev-seg"))))
                    evaluate(config, data)
        except BaseException:
            traceback.print_exc()  # the parent process gets only the message
            raise


def _pretrain(job: Job) -> None:
    config, method = job.pretraining_config(), EVERY[job.start].method
    folder = RunFolder(job.pretraining)
    if not folder.encoder.exists():
        train(config, resume=folder.config.exists(), method=method)
    scores = job.pretraining / "unlabelled.json"
    if not scores.exists():
        write_json(scores, unlabelled(job.pretraining, method, clips=job.size.scored_clips))


@lru_cache(maxsize=1)
def _data(config: EvalConfig) -> EvalData:
    """Load the data once per process: all its evaluations read the same samples."""
    return EvalData(config)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Append all output of this process and its children to a file."""
    with log.open("a") as file:
        kept = [os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
            yield
        finally:
            for stream, old in zip((sys.stdout, sys.stderr), kept, strict=True):
                stream.flush()
                os.dup2(old, stream.fileno())
                os.close(old)


def _check(job: Job) -> None:
    """Check that a job's existing files were made with its settings.

    Raises:
        UserError: If they were not.
    """
    folder = RunFolder(job.pretraining)
    pretrained = job.start != RANDOM
    if pretrained and folder.config.exists():
        _compare(to_dict(folder.read_config()), to_dict(job.pretraining_config()), folder.root)
    for config in job.cells().values():
        figures = read_figures(Path(config.out))
        if figures is not None:
            if pretrained and not folder.config.exists():
                raise UserError(f"{config.out} belongs to a pretraining that no longer exists: delete this folder too")
            now = plain(asdict(config)) | {"mim4d": __version__}
            if pretrained:
                del now["backbone"]  # the folder of its pretraining, checked above
            _compare(figures["settings"] | {"mim4d": figures["mim4d"]}, now, Path(config.out))


def _compare(then: dict[str, Any], now: dict[str, Any], made: Path) -> None:
    old = flatten(then)
    for name, value in flatten({name: value for name, value in now.items() if name not in ELSEWHERE}).items():
        if old.get(name) != value:
            raise UserError(f"{made} was made with {name} = {old.get(name)}, not {value}: choose another --out")


def results(size: Size, out: Path, command: str) -> dict[str, Any]:
    """Return the content of ``results.json``: figures so far by initialisation and evaluation, and the protocol."""
    cells: dict[tuple[str, Cell], dict[int, Mapping[str, Any]]] = {}
    scores: dict[str, dict[int, Mapping[str, Any]]] = {}
    seconds = 0.0
    counts: dict[str, Any] = {}
    for job in jobs_of(size, out, (RANDOM, *EVERY)):
        file = job.pretraining / "unlabelled.json"
        if file.exists():
            scores.setdefault(job.start, {})[job.seed] = json.loads(file.read_text())
            seconds += read_metrics(RunFolder(job.pretraining).metrics)[-1]["seconds"]
        for cell, config in job.cells().items():
            figures = read_figures(Path(config.out))
            if figures is not None:
                cells.setdefault((job.start, cell), {})[job.seed] = figures
                seconds += figures["seconds"]
                counts |= {f"{100 * cell.labels:g} %": figures["samples"], "held out": figures["val_samples"]}
    first = size.pretraining
    return {
        "mim4d": __version__,
        "size": size.name,
        "command": command,
        "machine": machine(),
        "hours": round(seconds / 3600, 2),
        "protocol": {
            "backbone": first.model,
            "images": "{} x {}".format(*first.image_size),
            "labelled samples": dict(sorted(counts.items(), key=lambda item: (item[0] == "held out", item[1]))),
            "pretraining_steps": first.steps,
            "images_seen": first.steps * first.batch_size * first.frames * len(first.cameras),
            "pretraining_steps_of_ablations": size.ablation_steps,
            "evaluation_steps": {f"{100 * share:g} %": steps for share, steps in size.evaluation_steps.items()},
        },
        "cells": [
            {"init": start, **asdict(cell), "figures": summarise(by_seed)} for (start, cell), by_seed in cells.items()
        ],
        "unlabelled": [{"init": start, "figures": summarise(by_seed)} for start, by_seed in scores.items()],
    }


def write_strip(size: Size, out: Path) -> None:
    """Write ``strip.jpg``: the segmentations of the first seed's heads on frozen backbones, as far as they exist."""
    cells = [cell for cell in size.cells_of("mim4d") if (cell.task, cell.mode) == ("bev-seg", "frozen")]
    shown = max(cells, key=lambda cell: cell.labels, default=None)
    pictures = {
        MAIN[job.start]: picture
        for job in jobs_of(size, out, list(MAIN))
        for cell, config in job.cells().items()
        if job.seed == 0 and cell == shown and (picture := Path(config.out) / "picture.png").exists()
    }
    if pictures:
        strip(pictures, out / "strip.jpg")


def machine() -> str:
    """Describe the hardware in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"
