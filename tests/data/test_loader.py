import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.data import (
    ClipSampler,
    NuScenesClips,
    evaluation_clips,
    make_evaluation_loader,
    make_loader,
)
from mim4d.data.loader import check_limits
from mim4d.errors import UserError
from tests.data.test_nuscenes import config_of

sizes, batch_sizes, seeds = st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**40)


@settings(max_examples=30)
@given(sizes, batch_sizes, st.integers(1, 4), seeds)
def test_processes_share_one_sequence(size, batch_size, processes, seed):
    """W processes with batches of b draw, step by step, what one with batches of W * b draws."""
    one = list(ClipSampler(size, batch_size=processes * batch_size, steps=7, seed=seed))
    many = [
        list(
            ClipSampler(size, batch_size=batch_size, steps=7, seed=seed, num_processes=processes, process_index=process)
        )
        for process in range(processes)
    ]
    assert one == [[draw for batches in many for draw in batches[step]] for step in range(7)]


@given(sizes, batch_sizes, st.integers(0, 9), seeds)
def test_a_later_start_draws_what_remains(size, batch_size, start, seed):
    whole = ClipSampler(size, batch_size=batch_size, steps=9, seed=seed)
    rest = ClipSampler(size, batch_size=batch_size, steps=9, seed=seed, start_step=start)
    assert list(rest) == list(whole)[start:]
    assert len(rest) == 9 - start


@given(sizes, seeds)
def test_every_clip_once_an_epoch_each_time_with_another_seed(size, seed):
    draws = [draw for batch in ClipSampler(size, batch_size=1, steps=3 * size, seed=seed) for draw in batch]
    for epoch in range(3):
        assert sorted(number for number, _ in draws[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert len({clip for _, clip in draws}) == 3 * size
    assert all(0 <= clip < 2**63 for _, clip in draws)


def test_seeds_and_epochs_differ_in_order():
    def order(seed, epoch):
        sampler = ClipSampler(50, batch_size=50, steps=epoch + 1, seed=seed, start_step=epoch)
        return [number for number, _ in next(iter(sampler))]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_order_is_the_same_for_ever():
    """Resuming a run must survive an upgrade: if this fails, old runs cannot be continued."""
    batches = list(ClipSampler(5, batch_size=2, steps=2, seed=0))
    assert batches == [
        [(1, 5769891174451087230), (0, 1328479793581247105)],
        [(2, 4623916464444550638), (3, 8112235649061861895)],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_yields_the_sampled_clips(root, workers):
    dataset = NuScenesClips(config_of(root))
    sampler = ClipSampler(len(dataset), batch_size=2, steps=4, seed=3, start_step=1)
    loader = make_loader(dataset, batch_size=2, steps=4, seed=3, start_step=1, workers=workers)
    assert len(loader) == 3
    batches = list(loader)
    for clip, draws in zip(batches, sampler, strict=True):
        clip.validate()
        assert clip.names == tuple(dataset.name(number) for number, _ in draws)
        assert clip.seeds.tolist() == [seed for _, seed in draws]
        assert torch.equal(clip.images[1], dataset[draws[1][0]].images[0])


def test_loading_leaves_the_random_state_alone(root):
    dataset = NuScenesClips(config_of(root))
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(make_loader(dataset, batch_size=1, steps=2, seed=0, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_leave_signals_to_the_main_process_and_end_at_its_own(root):
    """A signal to the group must not cost the checkpoint; a failed run must not wait for its workers for ever."""
    before = multiprocessing.active_children()
    batches = iter(make_loader(NuScenesClips(config_of(root)), batch_size=1, steps=1000, seed=0, workers=1))
    next(batches)
    (worker,) = [process for process in multiprocessing.active_children() if process not in before]
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    for _ in range(6):
        next(batches)
    worker.terminate()
    worker.join(timeout=4)
    assert not worker.is_alive()


def test_a_loader_dropped_early_ends_at_once(root):
    before = multiprocessing.active_children()
    loader = make_loader(NuScenesClips(config_of(root)), batch_size=1, steps=1000, seed=0, workers=2)
    batches = iter(loader)
    next(batches)
    workers = [process for process in multiprocessing.active_children() if process not in before]
    assert len(workers) == 2
    start = time.monotonic()
    del batches, loader
    gc.collect()
    assert time.monotonic() - start < 4, "waited for a worker that did not listen"  # torch gives up after 5 s
    assert not any(worker.is_alive() for worker in workers)


def test_nothing_is_read_before_the_first_step(root, monkeypatch):
    dataset = NuScenesClips(config_of(root))
    read = []
    original = NuScenesClips.__getitem__
    monkeypatch.setattr(NuScenesClips, "__getitem__", lambda self, item: read.append(item) or original(self, item))
    next(iter(make_loader(dataset, batch_size=1, steps=1000, seed=0, start_step=999)))
    assert len(read) == 1


def test_evaluation_clips_are_spread_evenly(root):
    dataset = NuScenesClips(config_of(root, split="scene-0061,scene-0103"))
    assert [number for number, _ in evaluation_clips(dataset, 4, seed=0)] == [1, 3, 5, 7]
    assert [number for number, _ in evaluation_clips(dataset, 99, seed=0)] == list(range(8))
    assert evaluation_clips(dataset, 4, seed=0) != evaluation_clips(dataset, 4, seed=1)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_is_the_same_for_any_number_of_processes(root, processes):
    dataset = NuScenesClips(config_of(root, split="scene-0061,scene-0103"))
    loaders = [
        make_evaluation_loader(dataset, count=5, batch_size=2, seed=0, num_processes=processes, process_index=process)
        for process in range(processes)
    ]
    for _ in range(2):
        seen = Counter(
            (name, seed)
            for loader in loaders
            for clip in loader
            for name, seed in zip(clip.names, clip.seeds.tolist(), strict=True)
        )
        expected = Counter((dataset.name(number), seed) for number, seed in evaluation_clips(dataset, 5, seed=0))
        assert seen == expected


LOADS = """
import sys, torch
from mim4d.data import NuScenesClips, make_loader
from tests.data.test_nuscenes import config_of

if __name__ == "__main__":
    torch.multiprocessing.set_start_method(sys.argv[1])
    loader = make_loader(NuScenesClips(config_of(sys.argv[2])), batch_size=1, steps=2, seed=1, workers=1)
    print([clip.names for clip in loader], flush=True)
"""


def test_workers_of_a_fork_server_end_with_the_main_process(root, tmp_path):
    """Their parent is the server: Python 3.14 starts them so."""
    (tmp_path / "loads.py").write_text(LOADS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, tmp_path / "loads.py", "forkserver", root],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "scene-0" in ended.stdout


class Fails:
    """A data set of which every clip fails."""

    def __init__(self, dataset: NuScenesClips, error: Exception) -> None:
        self.config, self.has_lidar, self.name, self.error = dataset.config, True, dataset.name, error

    def __len__(self) -> int:
        return 4

    def take_unlogged(self):
        return []

    def __getitem__(self, item: tuple[int, int]) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("4 GB"), r"^4 GB$"),
        (OSError(24, "Too many open files", "a.jpg"), r"^\[Errno 24\] Too many open files: 'a.jpg'$"),
        (
            ZeroDivisionError("by zero"),
            r"^cannot read clip scene-0.*: ZeroDivisionError: by zero \(in test_loader",
        ),
    ],
)
def test_an_error_in_a_worker_arrives_as_itself(error, told, root):
    loader = make_loader(Fails(NuScenesClips(config_of(root)), error), batch_size=1, steps=2, seed=0, workers=1)
    with pytest.raises((UserError, type(error)), match=told):
        next(iter(loader))


def test_a_batch_for_which_there_is_no_shared_memory_ends_the_run(root, monkeypatch):
    """In place of waiting for it for ever: the queue of a DataLoader drops it."""

    def full(packed: object, clip: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr("mim4d.data.loader._Packed.__init__", full)
    with pytest.raises(RuntimeError, match="unable to allocate shared memory"):
        next(iter(make_loader(NuScenesClips(config_of(root)), batch_size=1, steps=2, seed=0, workers=1)))


def test_too_little_shared_memory_is_told_before_the_first_step(root, monkeypatch):
    dataset = NuScenesClips(config_of(root))
    loader = make_loader(dataset, batch_size=2, steps=9, seed=0, workers=3)
    assert loader.in_flight == 7
    assert make_loader(dataset, batch_size=2, steps=4, seed=0, workers=3).in_flight == 4  # there are no more
    images = next(iter(make_loader(dataset, batch_size=2, steps=9, seed=0))).images
    assert images.nbytes <= loader.batch_bytes <= images.nbytes + 3_000_000
    check_limits([loader])
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=1 << 20))
    with pytest.raises(UserError, match=r"/dev/shm has 1 MB free, .* about \d+ MB .*--shm-size.*`workers`"):
        check_limits([loader])
    check_limits([make_loader(dataset, batch_size=2, steps=9, seed=0)])


def test_shared_memory_that_cannot_be_written_is_named(root, monkeypatch):
    loader = make_loader(NuScenesClips(config_of(root)), batch_size=1, steps=2, seed=0, workers=1)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match=r"/dev/shm cannot be written, .* set `workers` to 0"):
        check_limits([loader])


def test_the_limit_of_open_files_is_raised_or_named(root, monkeypatch):
    loader = make_loader(NuScenesClips(config_of(root)), batch_size=1, steps=9, seed=0, workers=2)
    limits = [(64, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: limits.append(pair))
    check_limits([loader])
    assert 64 < limits[-1][0] < 4096
    assert limits[-1][1] == 4096
    limits.append((64, 64))
    with pytest.raises(
        UserError, match=r"2 data-loading workers need about \d+ open files, .* limit is 64: .*ulimit -n"
    ):
        check_limits([loader])
