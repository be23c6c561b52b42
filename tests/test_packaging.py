"""What pyproject.toml promises of versions, and what the wheel holds."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.oldest import oldest, project


def test_python_newer_than_the_devkit_installs_all_but_the_devkit():
    newer = {**default_environment(), "python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}
    assert "3.13" in SpecifierSet(project()["requires-python"])
    needed = [Requirement(line) for line in project()["optional-dependencies"]["pretrain"]]
    left_out = [each.name for each in needed if each.marker and not each.marker.evaluate(newer)]
    assert left_out == ["nuscenes-devkit"]


def test_the_oldest_versions_are_those_that_are_safe_to_load_weights_with():
    versions = oldest()
    assert {"torch", "timm", "huggingface_hub", "accelerate"} <= versions.keys()
    assert versions["torch"] in SpecifierSet(">=2.6")  # before, weights_only could be made to run code
    assert versions["timm"] in SpecifierSet(">=1.0.26")  # before, it unpickled checkpoints by default


def test_the_wheel_holds_one_model_and_is_small(tmp_path):
    root, source = Path(__file__).parents[1], tmp_path / "source"
    shutil.copytree(root / "mim4d", source / "mim4d", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", tmp_path, source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 10e6
    with ZipFile(wheel) as files:
        weights = {name.split("/")[2] for name in files.namelist() if name.startswith("mim4d/weights/")}
    assert weights == {"mim4d_convnext_atto.demo"}
