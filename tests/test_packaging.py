"""What pyproject.toml promises of versions."""

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
