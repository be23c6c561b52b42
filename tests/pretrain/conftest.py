"""Data and caches for runs of the trainer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(scope="session")
def run_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own for indices and worlds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MIM4D_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def root(tiny_world: Path, run_cache: Path) -> Path:
    """Two scenes to learn from and one held out; its index is cached with the runs' other things."""
    return tiny_world


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process; a test that trains gets a new one, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    torch.set_num_threads(threads)
