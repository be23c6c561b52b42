"""The command ``mim4d-world``."""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..errors import UserError, in_one_line
from ..flags import flags_named, parse_flags
from ..progress import Bar
from .make import make_world


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make a world of procedural streets, written as a nuScenes root that the nuscenes-devkit opens."""

    out: Path
    """Folder of the root; a world begun there with the same options is completed."""
    version: str = "v1.0-mini"
    """v1.0-mini (up to 10 scenes), v1.0-trainval (up to 850) or v1.0-test (up to 150)."""
    scenes: int = 10
    """How many scenes; their names are nuScenes' own, a fifth of them of the validation split."""
    seed: int = 0
    """Everything follows from it."""
    scale: float = 0.25
    """Size of the images over 1600x900 pixels; 0.25 is 400x225."""
    keyframes: int = 8
    """Key frames a scene, 0.5 s apart; 40 is nuScenes'."""
    camera_rate: float = 2.0
    """Pictures a second of each camera, Hz; 2 is key frames only, 12 is nuScenes'."""
    lidar_rate: float = 2.0
    """LiDAR sweeps a second, Hz; 2 is key frames only, 20 is nuScenes'."""
    workers: int | None = None
    """Processes; all cores by default."""


def main() -> None:
    """Entry point: exits with 2 and one line on what the user can put right."""
    with in_one_line("lower --workers or --scale"), flags_named(Options):
        _make(parse_flags(Options, sys.argv[1:], prog="mim4d-world"))


def _make(options: Options) -> None:
    if options.workers is not None and not 1 <= options.workers <= 1024:
        raise UserError(f"workers = {options.workers} must lie in 1 .. 1024")
    with Bar(Console(stderr=True, highlight=False), "key frames", every=30) as bar:
        make_world(
            options.out,
            options.version,
            options.scenes,
            options.seed,
            scale=options.scale,
            keyframes=options.keyframes,
            camera_rate=options.camera_rate,
            lidar_rate=options.lidar_rate,
            workers=options.workers,
            progress=bar.update,
        )
    print(options.out)
