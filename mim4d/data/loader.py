"""Load batches of clips in an order that follows from a seed and the position in the run.

The sampler distributes the clips over the processes. So do not pass the loader to ``prepare`` of ``accelerate``, which
would distribute them a second time.
"""

import multiprocessing
import os
import pickle
import resource
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..clip import Clip
from ..errors import UserError
from .nuscenes import NuScenesClips

ORDER, CLIP_SEED, EVALUATION_SEED = range(3)
"""Independent streams of random numbers from one seed."""

TENSORS = 8
"""Tensors per batch; each is an open file while it is in shared memory."""
SWEEP = 500_000
"""Approximate bytes of the points of one LiDAR sweep."""
SHARED_MEMORY = Path("/dev/shm")

Draw = tuple[int, int]
"""Number of a clip, and the seed of its random choices."""


class ClipSampler(Sampler[list[Draw]]):
    """Sample the batches of a run for one of its processes.

    Position k counts the clips of a run over steps, processes and the batch. It holds clip
    ``permutation(seed, k // size)[k % size]`` with the seed ``clip_seed(seed, k)``. Process r of W with batches of b
    reads the positions ``(i * W + r) * b + (0 .. b - 1)`` in step i. So W processes with batches of b sample the same
    clips as one process with batches of W * b, and a resumed run samples the same clips as an uninterrupted one.

    >>> batches = ClipSampler(4, batch_size=2, steps=4, seed=0)
    >>> [[number for number, _ in batch] for batch in batches]  # two epochs of four clips
    [[1, 3], [2, 0], [2, 0], [3, 1]]
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        """Prepare the batches of the steps ``start_step .. steps - 1``.

        Args:
            size: Number of clips in the data set.
            batch_size: b, clips per step and process.
            steps: Number of steps of the whole run.
            seed: Seed of the run, 0 or more.
            start_step: The first step to sample.
            num_processes: W, number of processes.
            process_index: r, number of this process, from 0.
        """
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.steps = range(start_step, steps)
        self.num_processes = num_processes
        self.process_index = process_index

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for step in self.steps:
            first = (step * self.num_processes + self.process_index) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = np.random.default_rng(_stream(self.seed, ORDER, epoch)).permutation(self.size)
                batch.append((int(order[position % self.size]), clip_seed(self.seed, position)))
            yield batch


def clip_seed(seed: int, position: int, stream: int = CLIP_SEED) -> int:
    """Compute the seed of the clip at a position of a run.

    Returns:
        An integer in 0 .. 2^63 - 1.
    """
    return int(_stream(seed, stream, position).generate_state(1, np.uint64)[0]) >> 1


def _stream(seed: int, stream: int, position: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(stream, position))


class ClipLoader(DataLoader[Clip]):
    """A DataLoader of batched clips. It raises an error of a worker unchanged, without a traceback in its message."""

    def __init__(
        self,
        dataset: NuScenesClips,
        batches: Sampler[list[Draw]] | Sequence[list[Draw]],
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Load ``batches`` of ``dataset`` in ``workers`` processes; with 0, load in this process."""
        super().__init__(
            _ErrorsAsItems(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # so that starting the workers leaves torch's global generator unchanged
        )
        self._clips = dataset
        config = dataset.config
        height, width = config.image_size
        frame = len(config.cameras) * 3 * height * width + (SWEEP if dataset.has_lidar else 0)
        clips = batches.batch_size if isinstance(batches, ClipSampler) else max(map(len, batches), default=0)
        self.batch_bytes = clips * config.frames * frame
        """Approximate bytes of a batch."""

    def __iter__(self) -> Iterator[Clip]:  # type: ignore[override]  # the base class returns a subclass of Iterator
        for batch, problems in super().__iter__():
            for problem in problems:
                self._clips.log_once(problem)
            if isinstance(batch, Exception):
                raise batch
            yield batch.unpack() if isinstance(batch, _Packed) else batch

    @property
    def in_flight(self) -> int:
        """Largest number of batches that are in shared memory at the same time."""
        return min(len(self), self.num_workers * (self.prefetch_factor or 0) + 1) if self.num_workers else 0


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use: more loading workers than that only get in the way."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_limits(loaders: Sequence[ClipLoader]) -> None:
    """Check that the machine has enough shared memory and open files for the workers, before one of them fails.

    The soft limit of open files is raised if the hard limit allows it.

    Args:
        loaders: The loaders that this process uses at the same time.

    Raises:
        UserError: If shared memory cannot be written or is too small, or the limit of open files is too low.
    """
    batches = sum(loader.in_flight for loader in loaders)
    if not batches:
        return
    workers = sum(loader.num_workers for loader in loaders)
    files = 128 + TENSORS * batches + 8 * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise UserError(
            f"{workers} data-loading workers need about {files} open files, but the limit is {hard}: raise the limit "
            f"(ulimit -n {files}) or set `workers` to 0"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if SHARED_MEMORY.is_dir():
        if not os.access(SHARED_MEMORY, os.W_OK):
            raise UserError(
                f"{SHARED_MEMORY} cannot be written, but data-loading workers pass batches through it: make it "
                "writable or set `workers` to 0"
            )
        size = sum(loader.in_flight * loader.batch_bytes for loader in loaders)
        size *= int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        status = os.statvfs(SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise UserError(
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MB free, but data-loading workers need about "
                f"{size / 2**20:.0f} MB of shared memory: enlarge it (docker run --shm-size=8g, or --ipc=host) or "
                "lower `workers` (0 needs no shared memory)"
            )


def make_loader(
    dataset: NuScenesClips,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    num_processes: int = 1,
    process_index: int = 0,
) -> ClipLoader:
    """Load the batches of a run from ``start_step`` to its end; for the arguments see :class:`ClipSampler`."""
    sampler = ClipSampler(
        len(dataset),
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        start_step=start_step,
        num_processes=num_processes,
        process_index=process_index,
    )
    return ClipLoader(dataset, sampler, workers=workers, pin_memory=pin_memory)


def evaluation_clips(dataset: NuScenesClips, count: int, seed: int) -> list[Draw]:
    """Choose ``count`` clips (or all, if there are fewer) that are spread evenly over the split, each with its seed."""
    count = min(count, len(dataset))
    numbers = ((np.arange(count) + 0.5) * len(dataset) / max(count, 1)).astype(np.int64).tolist()  # [count]
    return [(number, clip_seed(seed, place, EVALUATION_SEED)) for place, number in enumerate(numbers)]


def make_evaluation_loader(
    dataset: NuScenesClips,
    *,
    count: int,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
    num_processes: int = 1,
    process_index: int = 0,
) -> ClipLoader:
    """Load the clips of :func:`evaluation_clips`; the loader can be iterated any number of times.

    All processes together read the same clips, whatever their number. The number of clips and batches may differ by one
    between processes, and the last batch of each may be smaller.
    """
    mine = evaluation_clips(dataset, count, seed)[process_index::num_processes]
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    return ClipLoader(dataset, batches, workers=workers, pin_memory=pin_memory)


class _ErrorsAsItems(Dataset[Any]):
    """Returns errors instead of raising them, because a DataLoader worker adds its traceback to the message.

    Each item also has the problems of skipped clips, which a worker leaves to the main process to log.
    """

    def __init__(self, dataset: NuScenesClips) -> None:
        self.dataset = dataset

    def __getitem__(self, item: Draw) -> tuple[Clip | Exception, list[str]]:
        return self._read(item), self.dataset.take_unlogged()

    def _read(self, item: Draw) -> Clip | Exception:
        try:
            return self.dataset[item]
        except (UserError, OSError, MemoryError) as error:
            return error
        except Exception as error:
            if get_worker_info() is None:
                raise
            at = traceback.extract_tb(error.__traceback__)[-1]
            return UserError(
                f"cannot read clip {self.dataset.name(item[0])}: {type(error).__name__}: {error} "
                f"(in {Path(at.filename).name}, line {at.lineno}; set `workers` to 0 to see the traceback)"
            )


class _Packed:
    """A batch that its worker has moved to shared memory and pickled, so that a lack of memory raises an error.

    The queue of the DataLoader would pickle it in a thread. If shared memory is full, that thread drops the batch and
    the run waits for it for ever.
    """

    def __init__(self, clip: Clip) -> None:
        self._content = bytes(ForkingPickler.dumps(clip))

    def unpack(self) -> Clip:
        return pickle.loads(self._content)

    def pin_memory(self) -> Clip:
        return self.unpack().pin_memory()


def _collate(items: list[tuple[Clip | Exception, list[str]]]) -> tuple[Clip | _Packed | Exception, list[str]]:
    problems = [problem for _, some in items for problem in some]
    for item, _ in items:
        if isinstance(item, Exception):
            return item, problems
    try:
        clip = Clip.collate([item for item, _ in items if isinstance(item, Clip)])
        return clip if get_worker_info() is None else _Packed(clip), problems
    except (RuntimeError, OSError, MemoryError) as error:
        return error, problems


def _ignore_signals(worker: int) -> None:
    """Ignore signals to the process group in a worker: the main process handles them and may save a checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS: there a worker ends at any SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_parents_sigterm, daemon=True).start()


def _end_on_parents_sigterm() -> None:
    """End at a SIGTERM that the main process sends: it sends one at its exit and waits until the worker has ended."""
    main = multiprocessing.parent_process()
    assert main is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:  # os.getppid() may be the fork server
        pass
    os._exit(0)
