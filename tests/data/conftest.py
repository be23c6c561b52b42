"""Roots to read, each with a cache of its own."""

import os
from pathlib import Path

import pytest

from tests.data.roots import write_root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MIM4D_CACHE", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two scenes of six samples 0.5 s apart, two cameras and LiDAR."""
    return write_root(tmp_path / "root", scenes=("scene-0061", "scene-0103"))


@pytest.fixture(scope="session")
def real_keyframe() -> Path:
    """One real key frame of nuScenes, repeated; its licence keeps it out of the repository."""
    default = Path(__file__).parents[2].parent / "shared/data/nuscenes-real-keyframe"
    folder = Path(os.environ.get("MIM4D_REAL_KEYFRAME", default))
    if not folder.is_dir():
        pytest.skip(f"no real nuScenes key frame at {folder}; MIM4D_REAL_KEYFRAME may say where one is")
    return folder
