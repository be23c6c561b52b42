"""Fixtures that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mim4d.world import WorldConfig, make_world

settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=1, help="how often to repeat tests of races, each at another moment")
    parser.addoption("--fuzz-size", type=int, default=30, help="cases of each fuzz test; 300 for a full run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("--trials")))


@pytest.fixture
def fuzz_size(request: pytest.FixtureRequest) -> int:
    """How many cases a fuzz test makes."""
    return int(request.config.getoption("--fuzz-size"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the tests: what they index and make does not land in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIM4D_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nuScenes root, version v1.0-mini, to be read only.

    scene-0061 and scene-0553 (mini_train), scene-0103 (mini_val); four key frames each and nothing between them;
    images of 200x112 pixels.
    """
    root = tmp_path_factory.mktemp("world") / "root"
    return make_world(root, "v1.0-mini", WorldConfig(scenes=3, scale=0.125, keyframes=4), workers=1)
