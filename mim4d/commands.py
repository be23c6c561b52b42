"""Entry points of the commands that need more than the base install."""

import os
import shutil
import sys
from importlib import import_module
from pathlib import Path


def pretrain() -> None:
    """``mim4d-pretrain``."""
    _start("pretrain")


def world() -> None:
    """``mim4d-world``."""
    _start("world")


def evaluate() -> None:
    """``mim4d-eval``."""
    _start("eval", "downstream")


def data() -> None:
    """``mim4d-data``."""
    _start("data")


def installed(name: str) -> str:
    """How to start a command that is installed beside this Python: its name, or its path where that is not on PATH."""
    file = Path(sys.executable).parent / name
    return os.path.relpath(file) if file.is_file() and not shutil.which(name) else name


def _start(name: str, package: str = "") -> None:
    """Run a command's own entry point; exits with 2 and one line if what it imports is not installed."""
    try:
        main = import_module(f".{package or name}.cli", __package__).main
    except ModuleNotFoundError as error:
        print(f"error: mim4d-{name} needs: pip install 'mim4d[pretrain]' (no module {error.name})", file=sys.stderr)
        sys.exit(2)
    main()
