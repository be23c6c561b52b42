"""The tiny world's truth."""

from pathlib import Path

import pytest
import torch

from mim4d.eval.config import complete
from mim4d.eval.data import EvalData
from mim4d.eval.labels import Annotations
from tests.eval.runs import tiny


@pytest.fixture(scope="session")
def annotations(tiny_world: Path) -> Annotations:
    """Of the tiny world."""
    return Annotations(tiny_world, "v1.0-mini")


@pytest.fixture(scope="session")
def data(tiny_world: Path) -> EvalData:
    """Both splits of the tiny world, to be shared by runs."""
    return EvalData(complete(tiny(tiny_world, Path("unused"))))


@pytest.fixture(autouse=True)
def one_thread():
    """A run of a second is slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
