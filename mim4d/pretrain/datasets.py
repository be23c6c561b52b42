"""The clips of a run: to learn from, and held out. Drawn worlds go through the same reader as real data."""

import dataclasses
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock
from rich.console import Console

from ..data import DataConfig, NuScenesClips
from ..data.index import cache_folder
from ..errors import BadDataError, UserError
from ..files import make_folder
from ..progress import Bar
from ..version import __version__
from ..world import make_world, world_in
from .config import NO_SPLIT, SPLITS, PretrainConfig, SyntheticConfig, held_out_split
from .presets import DEMO

logger = logging.getLogger(__name__)


def open_data(config: PretrainConfig, accelerator: Accelerator) -> tuple[NuScenesClips, NuScenesClips | None]:
    """Open the clips to learn from and those held out, None if there are none; a missing world is made first.

    Raises:
        UserError: If the root, version, split or cameras do not exist, or the held-out split was asked for and does
            not; or if there is no LiDAR to learn depth from.
    """
    # A world and an index take minutes to hours to make: of the processes that start together one makes it, and the
    # others wait for its file lock, not within the process group, whose collectives time out.
    config.data_config(config.split)  # refuses bad settings before minutes of drawing
    if config.data == "synthetic":
        root = synthetic_root(config.dataroot, config.version, config.world)
        config = dataclasses.replace(config, dataroot=str(root))
    clips = NuScenesClips(config.data_config(config.split))
    if config.supervision == "rgbd" and not clips.has_lidar:
        raise UserError(f"{clips.root} has no LiDAR: learn from colour alone with --supervision rgb")
    split = held_out_split(config)
    if split == NO_SPLIT:
        return clips, None
    try:
        return clips, NuScenesClips(config.data_config(split))
    except BadDataError:  # there are held-out scenes, and something is wrong with them
        raise
    except UserError as error:
        if config.val_split:
            raise
        if accelerator.is_main_process:
            logger.warning("no evaluation: %s (name held-out scenes with --val-split)", error)
        return clips, None


def synthetic_root(dataroot: str, version: str, config: SyntheticConfig) -> Path:
    """The folder of a drawn world, which is made first if it is missing.

    Args:
        dataroot: Where it is or goes; empty for a cache folder.
        version: Of the tables, such as v1.0-mini.
        config: What is drawn.

    Raises:
        UserError: If it cannot be made, or ``dataroot`` holds something else.
    """
    world = dataclasses.asdict(config)
    root = Path(dataroot).expanduser() if dataroot else _cached(version, config)
    if _is_there(root, version, world):
        return root
    make_folder(root.parent)
    try:
        with FileLock(root.with_name(f".{root.name}.lock")):
            if not _is_there(root, version, world):  # or another process has made it meanwhile
                _draw(root, version, world)
    except OSError as error:
        raise UserError(f"cannot make a world in {root}: {error.strerror or error}") from error
    return root


def on_drawn_world(data: DataConfig) -> DataConfig:
    """What an example reads where it is given no root: the demo's world if it has been drawn, else a tiny one.

    Args:
        data: How to read; its root, version and split are replaced if it has no root.

    Raises:
        UserError: If the tiny world cannot be made.
    """
    if data.dataroot:
        return data
    root, version = _cached(DEMO.version, DEMO.world), DEMO.version
    if world_in(root) != {"version": version, **dataclasses.asdict(DEMO.world)}:
        print(f"no --dataroot, and the demo's world is not in {root}: taking a tiny one", file=sys.stderr)
        version = "v1.0-mini"
        root = synthetic_root("", version, SyntheticConfig(scenes=1, keyframes=2))
    return dataclasses.replace(data, dataroot=str(root), version=version, split=SPLITS[version][0])


def _cached(version: str, config: SyntheticConfig) -> Path:
    """The folder of a world that is kept in the cache: the demo's, for its settings."""
    what = {"mim4d": __version__, "version": version, **dataclasses.asdict(config)}
    return cache_folder() / f"world-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def _is_there(root: Path, version: str, world: dict[str, Any]) -> bool:
    if not (root / version).is_dir():
        return False
    drawn = world_in(root)
    if drawn is None:
        # Weights that saw it would be called free of any real image.
        raise UserError(f"{root} holds a {version} that mim4d has not drawn: say --data nuscenes")
    for name, value in world.items():
        if drawn.get(name) != value:  # or the run would say of itself what is not so
            flag = f"--world.{name.replace('_', '-')}"
            raise UserError(f"{root} holds a world of {flag} {drawn.get(name)}, not {value}: say so, or name another")
    return True


def _draw(root: Path, version: str, world: dict[str, Any]) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(
        f"drawing a world of {world['scenes']} scenes x {world['keyframes']} key frames in {root}, once: what has "
        "these settings uses it again",
        markup=False,
        soft_wrap=not console.is_terminal,
    )
    with Bar(console, "key frames", every=30) as bar:
        make_world(root, version, **world, progress=bar.update)
