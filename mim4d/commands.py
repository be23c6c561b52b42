"""Entry points of the commands. All but ``mim4d-hub`` need more than the base install."""

import sys
from importlib import import_module

from . import deploy, release
from .hub import cli

DEVKIT = ("nuscenes", "pyquaternion")
"""Modules that only the nuscenes-devkit installs."""


def pretrain() -> None:
    """Run ``mim4d-pretrain``."""
    _start("pretrain")


def world() -> None:
    """Run ``mim4d-world``."""
    _start("world")


def evaluate() -> None:
    """Run ``mim4d-eval``."""
    _start("eval")


def data() -> None:
    """Run ``mim4d-data``."""
    _start("data")


def show() -> None:
    """Run ``mim4d-show``."""
    _start("show")


HUB = (deploy.add_command, release.add_command)
"""Functions that add commands of higher layers to ``mim4d-hub``."""


def hub(argv: list[str] | None = None) -> None:
    """Run ``mim4d-hub``."""
    cli.main(argv, HUB)


def _start(name: str) -> None:
    """Run the entry point of a command; exit with 2 and one line if a module that it imports is not installed."""
    try:
        import_module(f".{name}.cli", __package__).main()
    except ModuleNotFoundError as error:
        print(f"error: mim4d-{name} cannot run: {missing(error.name or '')}", file=sys.stderr)
        sys.exit(2)


def missing(module: str, python: tuple[int, ...] = sys.version_info[:2]) -> str:
    """Return one line on what to do about a module that is not installed.

    Args:
        module: Its name.
        python: The running version, such as (3, 12).
    """
    if module.partition(".")[0] in DEVKIT and python >= (3, 13):
        return "the nuscenes-devkit needs numpy < 2, which has no release for this Python: use Python 3.10 to 3.12"
    return f"no module {module}: pip install 'mim4d[pretrain]'"
