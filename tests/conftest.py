"""Fixtures that tests share."""

from pathlib import Path

import pytest

from mim4d.world import make_world


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nuScenes root, version v1.0-mini, to be read only.

    scene-0061 and scene-0553 (mini_train), scene-0103 (mini_val); four key frames each and nothing between them;
    images of 200x112 pixels.
    """
    root = tmp_path_factory.mktemp("world") / "root"
    return make_world(root, "v1.0-mini", scenes=3, seed=0, scale=0.125, keyframes=4, workers=1)
