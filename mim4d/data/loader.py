"""Clips in an order that follows from a seed and a position alone, in batches.

The sampler itself deals the clips out to the processes, so the loader is used as it is: handing it to
``accelerate``'s ``prepare`` would deal them out a second time.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..clip import Clip
from ..errors import UserError
from .nuscenes import NuScenesClips

ORDER, CLIP_SEED, EVALUATION_SEED = range(3)
"""Separate streams of random numbers from one seed."""

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
    """A DataLoader of batched clips. A :class:`UserError` in a worker arrives as itself, without a traceback's text."""

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

    def __iter__(self) -> Iterator[Clip]:  # type: ignore[override]  # the base promises more than an iterator
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


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
    """Yields a UserError instead of raising it: a DataLoader worker would raise it with a traceback as message."""

    def __init__(self, dataset: NuScenesClips) -> None:
        self.dataset = dataset

    def __getitem__(self, item: Draw) -> Clip | UserError:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def _collate(items: list[Clip | UserError]) -> Clip | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    return Clip.collate([item for item in items if isinstance(item, Clip)])


def _leave_signals(worker: int) -> None:
    """A signal sent to the whole process group is for the main process, which still has a checkpoint to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there a worker keeps ending at any SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End at a SIGTERM of the main process itself: at its exit it sends one, and waits for ever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
