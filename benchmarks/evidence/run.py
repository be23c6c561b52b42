"""Run all pretrainings and evaluations of the comparison in parallel processes; finished ones are not repeated.

``OUT/pretraining/START-SEED/`` is a run of ``mim4d-pretrain``, ``OUT/cells/START-SEED/TASK-MODE-LABELS/`` one of
``mim4d-eval``; their output goes to ``OUT/logs/START-SEED.txt``. The report is updated whenever a job ends. Probes of
all starts come first, since they cost little; then the tasks with trained heads.
"""

import itertools
import os
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from mim4d.eval.run import evaluate, read_figures
from mim4d.io.files import make_folder
from mim4d.io.pool import Task as PoolTask
from mim4d.io.pool import run_in_processes
from mim4d.pretrain.config import PretrainConfig, flatten, plain, to_dict
from mim4d.pretrain.config import complete as complete_pretraining
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.logs import read_metrics
from mim4d.pretrain.trainer import train
from mim4d.roots import synthetic_root
from mim4d.version import __version__

from .imagenet import FILE as WEIGHTS
from .imagenet import efficientnet_lite0
from .protocol import ABLATED, EVERY, MODELS, STARTS, Cell, Size, Start, Task, images
from .report import PROBED, Summary, gates, summarise, write_report

ELSEWHERE = ("out", "dataroot", "workers", "init")
"""Settings that do not change the result, or that the name of the start fixes."""
FRESH_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_ARENA_MAX": "1"}
"""Make the C library keep freed memory: mapping new memory is slow on some machines."""


@dataclass(frozen=True)
class Job:
    """All work of one start and seed: pretraining and evaluations."""

    size: Size
    out: Path
    start: Start
    seed: int
    cells: tuple[Cell, ...]
    """Its evaluations."""

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{self.start.name}-{self.seed}"

    @property
    def pretraining(self) -> Path:
        """Folder of its pretraining run."""
        return self.out / "pretraining" / self.name

    @property
    def model(self) -> str:
        """Timm's name of the backbone."""
        return MODELS[self.start.weights]

    def init(self, random: str) -> str:
        """Initial weights: a file, or the word of a command for random ones."""
        return random if self.start.weights == "scratch" else str(self.out / WEIGHTS)

    def pretraining_config(self) -> PretrainConfig:
        """Return the complete settings of its pretraining."""
        config = replace(
            self.size.pretraining,
            model=self.model,
            init=self.init("scratch"),
            seed=self.seed,
            out=str(self.pretraining),
        )
        return complete_pretraining(self.start.change(config))

    def folder(self, cell: Cell) -> Path:
        """Folder of one of its evaluations."""
        return self.out / "cells" / self.name / cell.name

    def cell_config(self, cell: Cell) -> EvalConfig:
        """Return the complete settings of one of its evaluations."""
        pretrained = bool(self.start.pretraining)
        return complete_cell(
            replace(
                on_data_of(self.size.pretraining, self.size.evaluation[cell.task]),
                task=cell.task,
                backbone=str(self.pretraining / "encoder") if pretrained else self.model,
                init="pretrained" if pretrained else self.init("random"),
                freeze=cell.mode == "frozen",
                labels=cell.labels,
                steps=self.size.evaluation_steps[cell.labels],
                seed=self.seed,
                out=str(self.folder(cell)),
            )
        )


def on_data_of(pretraining: PretrainConfig, config: EvalConfig) -> EvalConfig:
    """Return an evaluation's settings with the data settings of the pretraining."""
    shared: dict[str, Any] = {
        name: getattr(pretraining, name) for name in ("data", "dataroot", "version", "world", "image_size")
    }
    return replace(config, **shared)


def jobs_of(size: Size, out: Path, starts: Collection[str]) -> list[list[Job]]:
    """Return the jobs in two rounds, probes and trained heads, each in order of importance: seed by seed.

    Ablations have one seed, and probes only.
    """

    def each(cells: tuple[Cell, ...], starts_by_seed: Iterable[tuple[int, Sequence[Start]]]) -> list[Job]:
        return [
            Job(size, out, start, seed, cells)
            for seed, group in starts_by_seed
            for start in group
            if cells and start.name in starts
        ]

    first, *others = range(size.seeds)
    seeds = [(first, STARTS), *((seed, STARTS) for seed in others)]
    return [each(size.probes, [seeds[0], (first, ABLATED), *seeds[1:]]), each(size.heads, seeds)]


def compare(size: Size, out: Path, starts: Collection[str], workers: int, command: str) -> None:
    """Run all unfinished jobs and write the report.

    Args:
        size: Size of the comparison.
        out: Folder for everything.
        starts: Names of what to compare.
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


def _do_all(size: Size, out: Path, starts: Collection[str], workers: int, command: str) -> None:
    rounds = jobs_of(size, out, starts)
    for job in itertools.chain(*jobs_of(size, out, EVERY)):  # the report includes everything in the folder
        _check(job)
    if any(job.start.weights == "imagenet" for job in rounds[0]):
        efficientnet_lite0(out)
    console = Console(stderr=True, highlight=False)
    root = synthetic_root(size.pretraining.dataroot, size.pretraining.version, size.pretraining.world)
    total = sum(map(len, rounds))
    console.print(f"{total} jobs on {root} in {workers} processes; logs in {out / 'logs'}", soft_wrap=True)
    os.environ.update(FRESH_MEMORY)  # for the worker processes
    began = time.monotonic()
    failed: list[str] = []
    count = itertools.count(1)

    def ended(task: PoolTask, error: Exception | None) -> None:
        job, how = task[0], "done"
        if error is not None:
            how = f"FAILED: {' '.join(str(error).split()) or type(error).__name__}"
            failed.append(f"{job.name} {how}")
        write_report(results(size, out, command), out)
        minutes = (time.monotonic() - began) / 60
        console.print(f"{next(count)}/{total} {job.name}, {minutes:.0f} min: {how}", soft_wrap=True)

    threads = max(1, torch.get_num_threads() // workers)  # OMP_NUM_THREADS counts
    for jobs in rounds:
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
            folder = RunFolder(job.pretraining)
            if job.start.pretraining and not folder.encoder.exists():
                train(job.pretraining_config(), resume=folder.config.exists())
            for cell in job.cells:
                if read_figures(job.folder(cell)) is None:
                    task: Task = "probe" if cell.task == "probe" else "bev-seg"  # all heads read the same
                    evaluate(
                        job.cell_config(cell),
                        _data(complete_cell(on_data_of(job.size.pretraining, EvalConfig(task=task)))),
                    )
        except BaseException:
            traceback.print_exc()  # the parent process gets only the message
            raise


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
    pretrained = bool(job.start.pretraining)
    if pretrained and folder.config.exists():
        _compare(to_dict(folder.read_config()), to_dict(job.pretraining_config()), folder.root)
    for cell in job.cells:
        figures = read_figures(job.folder(cell))
        if figures is not None:
            if pretrained and not folder.config.exists():
                raise UserError(
                    f"{job.folder(cell)} belongs to a pretraining that no longer exists: delete this folder too"
                )
            now = plain(asdict(job.cell_config(cell))) | {"mim4d": __version__}
            if pretrained:
                del now["backbone"]  # the folder of its pretraining, checked above
            _compare(figures["settings"] | {"mim4d": figures["mim4d"]}, now, job.folder(cell))


def _compare(then: dict[str, Any], now: dict[str, Any], made: Path) -> None:
    old = flatten(then)
    for name, value in flatten({name: value for name, value in now.items() if name not in ELSEWHERE}).items():
        if old.get(name) != value:
            raise UserError(f"{made} was made with {name} = {old.get(name)}, not {value}: choose another --out")


def results(size: Size, out: Path, command: str) -> dict[str, Any]:
    """Return the content of ``results.json``: figures so far by start and evaluation, gates, and the protocol."""
    cells: dict[tuple[str, Cell], dict[int, Mapping[str, Any]]] = {}
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    seconds = 0.0
    counts: dict[str, Any] = {}
    for job in itertools.chain(*jobs_of(size, out, EVERY)):
        folder = RunFolder(job.pretraining)
        if folder.encoder.exists() and job.seed not in runs.setdefault(job.start.name, {}):
            rows = runs[job.start.name][job.seed] = read_metrics(folder.metrics)
            seconds += rows[-1]["seconds"]
        for cell in job.cells:
            figures = read_figures(job.folder(cell))
            if figures is not None:
                cells.setdefault((job.start.name, cell), {})[job.seed] = figures
                seconds += figures["seconds"]
                counts |= {f"{100 * cell.labels:g} %": figures["samples"], "held out": figures["val_samples"]}
    first = size.pretraining
    found = {
        "mim4d": __version__,
        "size": size.name,
        "command": command,
        "machine": machine(),
        "hours": round(seconds / 3600, 2),
        "protocol": {
            "backbones": ", ".join(MODELS.values()),
            "images": "{} x {}".format(*first.image_size),
            "labelled samples": dict(sorted(counts.items(), key=lambda item: (item[0] == "held out", item[1]))),
            "pretraining_steps": first.steps,
            "images_seen": first.steps * images(first),
            "evaluation_steps": {f"{100 * share:g} %": steps for share, steps in size.evaluation_steps.items()},
        },
        "cells": [
            {"init": start, **asdict(cell), "figures": summarise(by_seed)} for (start, cell), by_seed in cells.items()
        ],
        "depth": [
            {"init": start, "figures": summarise({seed: last_scores(rows) for seed, rows in by_seed.items()})}
            for start, by_seed in runs.items()
            if by_seed
        ],
        "curves": [
            {"init": start, "figure": column.figure, "steps": curve(by_seed, f"probe_{column.figure}")}
            for start, by_seed in runs.items()
            for column in PROBED
            if by_seed
        ],
    }
    return found | {"gates": gates(found)}


def last_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last held-out scores ``val_*`` of a run, without their prefix."""
    scored = [row for row in rows if any(name.startswith("val_") for name in row)]
    return {name[4:]: value for name, value in scored[-1].items() if name.startswith("val_")} if scored else {}


def curve(rows_by_seed: Mapping[int, Sequence[Mapping[str, Any]]], name: str) -> dict[str, Summary]:
    """Return a figure by step, which is text as in JSON, each with its spread over seeds."""
    values: dict[int, dict[int, Mapping[str, Any]]] = {}
    for seed, rows in rows_by_seed.items():
        for row in rows:
            if name in row:
                values.setdefault(row["step"], {})[seed] = {name: row[name]}
    return {str(step): summarise(by_seed)[name] for step, by_seed in sorted(values.items())}


def machine() -> str:
    """Describe the hardware in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"
