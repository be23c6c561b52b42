"""The command ``mim4d-world``."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from ..errors import UserError
from ..flags import parse_flags, report_user_errors
from ..io.progress import Bar
from .config import WorldConfig
from .make import make_world


@dataclass(frozen=True, kw_only=True)
class Options(WorldConfig):
    """Generate a synthetic world of procedural streets, as a nuScenes root that the nuscenes-devkit opens."""

    out: Path
    """Folder to write; an interrupted world with the same options is completed."""
    version: str = "v1.0-mini"
    """nuScenes version that scene names are taken from: v1.0-mini, v1.0-trainval or v1.0-test."""
    workers: int | None = None
    """Number of processes; None: one per core."""


def main() -> None:
    """Run the command; exit with 2 and one line for bad input."""
    with report_user_errors("lower `workers` or `scale`", Options):
        example = "mim4d-world --out worlds/mini --scenes 10 --keyframes 12 --scale 0.25"
        _make(parse_flags(Options, sys.argv[1:], prog="mim4d-world", example=example))


def _make(options: Options) -> None:
    if options.workers is not None and not 1 <= options.workers <= 1024:
        raise UserError(f"workers = {options.workers} must lie in 1 .. 1024")
    config = WorldConfig(**{field.name: getattr(options, field.name) for field in fields(WorldConfig)})
    with Bar(Console(stderr=True, highlight=False), "key frames", every=30) as bar:
        make_world(options.out, options.version, config, workers=options.workers, progress=bar.update)
    print(options.out)
