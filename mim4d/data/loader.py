"""Clips in an order that follows from a seed and a position alone, in batches.

The sampler itself deals the clips out to the processes, so the loader is used as it is: handing it to
``accelerate``'s ``prepare`` would deal them out a second time.
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
"""Separate streams of random numbers from one seed."""

TENSORS = 8
"""Of a batch, each an open file while it is in shared memory."""
SWEEP = 500_000
"""About the bytes of one LiDAR sweep's points."""
SHARED_MEMORY = Path("/dev/shm")

Draw = tuple[int, int]
"""Number of a clip, and the seed of its own randomness."""


class ClipSampler(Sampler[list[Draw]]):
    """Batches of a run, for one of its processes.

    Position k of the run, counted over steps, processes and the batch, is clip ``permutation(seed, k // N)[k % N]``
    with a seed that follows from (seed, k). In step i the process r of W with batches of b has the positions
    ``(i * W + r) * b ...``: W processes with batches of b draw the same as one with batches of W * b, and a run that
    starts at a later step draws what an uninterrupted one would.
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
        """Batches for the steps ``start_step .. steps - 1``.

        Args:
            size: N, how many clips there are.
            batch_size: b, clips a process draws in a step.
            steps: Steps of the whole run.
            seed: Of the run, 0 or more.
            start_step: The first step to draw for.
            num_processes: W.
            process_index: r, from 0.
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
    """The seed of the clip at a position of a run, 0 .. 2^63 - 1."""
    return int(_stream(seed, stream, position).generate_state(1, np.uint64)[0]) >> 1


def _stream(seed: int, stream: int, position: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(stream, position))


class ClipLoader(DataLoader[Clip]):
    """A DataLoader of batched clips. An error in a worker arrives as itself, without a traceback's text."""

    def __init__(
        self,
        dataset: NuScenesClips,
        batches: Sampler[list[Draw]] | Sequence[list[Draw]],
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Load ``batches`` of ``dataset`` in ``workers`` processes; 0 loads in this one."""
        super().__init__(
            _ErrorsAsItems(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # or starting the workers would draw from the process's own
        )
        self._clips = dataset
        config = dataset.config
        height, width = config.image_size
        frame = len(config.cameras) * 3 * height * width + (SWEEP if dataset.has_lidar else 0)
        clips = batches.batch_size if isinstance(batches, ClipSampler) else max(map(len, batches), default=0)
        self.batch_bytes = clips * config.frames * frame
        """About the size of a batch."""

    def __iter__(self) -> Iterator[Clip]:  # type: ignore[override]  # the base promises more than an iterator
        for batch, problems in super().__iter__():
            for problem in problems:
                self._clips.log_once(problem)
            if isinstance(batch, Exception):
                raise batch
            yield batch.unpack() if isinstance(batch, _Packed) else batch

    @property
    def in_flight(self) -> int:
        """The most batches that are in shared memory at a time."""
        return min(len(self), self.num_workers * (self.prefetch_factor or 0) + 1) if self.num_workers else 0


def check_limits(loaders: Sequence[ClipLoader]) -> None:
    """See that workers get the shared memory and the open files that they need, before a worker dies or waits for them.

    The soft limit of open files is raised where that is enough.

    Args:
        loaders: Those that this process uses side by side.

    Raises:
        UserError: If there is too little of either.
    """
    batches = sum(loader.in_flight for loader in loaders)
    if not batches:
        return
    workers = sum(loader.num_workers for loader in loaders)
    files = 128 + TENSORS * batches + 8 * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise UserError(
            f"{workers} workers that read data need about {files} open files, but the limit is {hard}: raise it "
            f"(ulimit -n {files}), or read without workers (`workers` 0)"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if SHARED_MEMORY.is_dir():
        size = sum(loader.in_flight * loader.batch_bytes for loader in loaders)
        size *= int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        status = os.statvfs(SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise UserError(
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MB free, but workers that read data need about "
                f"{size / 2**20:.0f} MB of shared memory: enlarge it (docker run --shm-size=8g, or --ipc=host), or "
                "lower `workers` (0 needs none)"
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
    """The batches of a run from ``start_step`` to its end, see :class:`ClipSampler`; nothing before is read."""
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
    """``count`` clips (all, if there are fewer) spread evenly over the split, each with its seed."""
    count = min(count, len(dataset))
    numbers = ((np.arange(count) + 0.5) * len(dataset) / max(count, 1)).astype(np.int64).tolist()
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
    """The clips of :func:`evaluation_clips`, each read by one process; can be gone through again and again.

    Together the processes have the same clips whatever their number; one may have a clip or a batch less than
    another, and the last batch of each may be smaller.
    """
    mine = evaluation_clips(dataset, count, seed)[process_index::num_processes]
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    return ClipLoader(dataset, batches, workers=workers, pin_memory=pin_memory)


class _ErrorsAsItems(Dataset[Any]):
    """Yields an error in place of raising it: a DataLoader worker would raise it with a traceback as its message.

    With each clip come the problems of clips left out that a worker has met and leaves to the main process to log.
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
                f"(in {Path(at.filename).name}, line {at.lineno}; `workers` 0 shows all of it)"
            )


class _Packed:
    """A batch in shared memory, pickled where its worker can still say what is wrong.

    Left to the DataLoader's queue, it would be pickled in a thread that drops a batch for which there is no shared
    memory, and the run would wait for it for ever.
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


def _leave_signals(worker: int) -> None:
    """A signal sent to the whole process group is for the main process, which still has a checkpoint to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there a worker keeps ending at any SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End at a SIGTERM of the main process itself: at its exit it sends one, and waits for ever."""
    main = multiprocessing.parent_process()
    assert main is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:  # os.getppid() may be the fork server
        pass
    os._exit(0)
