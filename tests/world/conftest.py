"""The tiny world, opened by the devkit as it comes."""

from pathlib import Path

import pytest
from nuscenes import NuScenes


@pytest.fixture(scope="session")
def nusc(tiny_world: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(tiny_world), verbose=False)
