"""Citation, contributing guide, pre-commit hooks and the public CI agree with the code and the Makefile."""

import re
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

import mim4d
from mim4d.hub.published import BASE_CFG
from tests.oldest import project

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the environment's folder."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().removeprefix("$(VENV)/bin/") for line in lines.splitlines()]


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    assert citation["version"] == mim4d.__version__
    assert citation["license"] == project()["license"]
    assert paper["title"] == BASE_CFG["paper_name"]
    assert paper["identifiers"][0]["value"] == BASE_CFG["paper_ids"]
    assert paper["url"] == project()["urls"]["Paper"]


def test_pre_commit_runs_the_checks_of_make_test():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = [line for line in recipe("test") if line.startswith(("ruff", "mypy"))]
    assert len(checks) == 3
    assert [hook["entry"] for hook in repo["hooks"]] == checks
    assert not any(hook["pass_filenames"] for hook in repo["hooks"])  # the whole tree, as make test does


def test_ci_runs_targets_of_the_makefile():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    targets = [step["run"].removeprefix("make ") for step in steps if step.get("run", "").startswith("make")]
    assert targets == ["test", "test-oldest"]
    assert all(recipe(target) for target in targets)


def test_ci_covers_the_supported_versions_of_python():
    jobs = {name: job.get("strategy", {}).get("matrix", {}).get("python") for name, job in WORKFLOW["jobs"].items()}
    supported = SpecifierSet(project()["requires-python"])
    assert all(version in supported for versions in jobs.values() if versions for version in versions)
    ((low, high),) = re.findall(r"\((3, \d+)\) <= v < \((3, \d+)\)", MAKEFILE)  # what the devkit has a release for
    assert jobs["test"] == [low.replace(", ", "."), f"3.{int(high.split(', ')[1]) - 1}"]
    assert jobs["base"][0] == high.replace(", ", ".")


def test_contributing_names_targets_and_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"^\| `make ([\w-]+)`", text, re.MULTILINE):
        assert recipe(target), target
    for name in re.findall(r"(?:tests|docs)/[\w/.]*\w", text):
        assert (ROOT / name).exists(), name
