"""A Hub on loopback, and processes in which the real huggingface_hub talks to it.

The client reads its endpoint, cache and token from the environment when it is imported, so it runs in processes of its
own, one for all tests: ``client(calls.load, "org/name")`` calls a function there.
"""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.hub.server import HubServer


class Client:
    """A process with an environment of its own; functions are called in it, what they raise is raised here."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function, *args, **kwargs):
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            before = dict(os.environ)
            os.environ.update(self.environment)
            try:
                return self._pool.submit(function, *args, **kwargs).result()  # starts the process
            finally:
                os.environ.clear()
                os.environ.update(before)
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()


@pytest.fixture(autouse=True)
def one_thread():
    """As in the clients' processes: sums depend on it, and features are compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def server():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="session")
def environment(server, tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("hub-home")
    return {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


@pytest.fixture(scope="session")
def _online(environment):
    client = Client(**environment)
    yield client
    client.close()


@pytest.fixture(scope="session")
def _offline(environment):
    client = Client(**{**environment, "HF_HUB_OFFLINE": "1"})
    yield client
    client.close()


@pytest.fixture
def hub(server) -> HubServer:
    """The Hub, empty."""
    server.reset()
    return server


@pytest.fixture
def cache(environment) -> Path:
    """The client's cache, empty."""
    folder = Path(environment["HF_HOME"]) / "hub"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def client(hub, cache, _online) -> Client:
    """Calls functions in a process that has the Hub, an empty cache and a token that may write to ``org``."""
    return _online


@pytest.fixture
def offline(client, _offline) -> Client:
    """The same with HF_HUB_OFFLINE=1; it shares the cache with ``client``."""
    return _offline
