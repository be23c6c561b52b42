"""Prints the oldest versions that pyproject.toml allows, one ``name==version`` per line, as pip's constraints."""

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def oldest() -> dict[str, str]:
    """The lower bound of each package that the base install and training need, by name."""
    needed = project()["dependencies"] + project()["optional-dependencies"]["pretrain"]
    bounds = (requirement.partition(";")[0].partition(">=") for requirement in needed)
    return {name.strip(): version.strip() for name, _, version in bounds if version}


if __name__ == "__main__":
    for name, version in oldest().items():
        print(f"{name}=={version}")
