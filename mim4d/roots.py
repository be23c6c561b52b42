"""The root that a command reads: a folder in nuScenes format, or a synthetic world, made when it is missing."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from .data import DataConfig
from .data.index import check_version
from .data.nuscenes import CAMERAS
from .data.tables import LIDAR
from .errors import UserError
from .io.files import cache_folder, make_folder
from .io.progress import Bar
from .settings import SPLITS
from .version import __version__
from .world import make_world, world_in
from .world.config import DEMO_VERSION, DEMO_WORLD, WorldConfig, check_split
from .world.config import check_version as check_world_version


def check_root(
    kind: str,
    dataroot: str,
    version: str,
    world: WorldConfig,
    *,
    splits: Sequence[str],
    cameras: Sequence[str],
    lidar: str,
) -> None:
    """Check what is quick to check: the version's folder, or the settings of a synthetic world.

    Args:
        kind: ``nuscenes`` or ``synthetic``.
        dataroot: The root.
        version: Of its tables.
        world: What a synthetic root holds.
        splits: Those that must have scenes in a synthetic world.
        cameras: Those that it must have.
        lidar: The LiDAR that it must have.

    Raises:
        UserError: If the root does not have the version, or the synthetic world does not have all of this.
    """
    root = Path(dataroot).expanduser()
    if kind == "synthetic":
        check_world_version(version)
        for split in splits:
            check_split(world, version, split)
        for setting, names, known in (("cameras", cameras, CAMERAS), ("lidar", [lidar], (LIDAR,))):
            if missing := [name for name in names if name not in known]:
                raise UserError(f"{setting} = {' '.join(missing)}: a synthetic world has {', '.join(known)}")
    elif root.is_dir():
        check_version(root, version)


def synthetic_root(dataroot: str, version: str, config: WorldConfig) -> Path:
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
                _draw(root, version, config)
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
    root, version = _cached(DEMO_VERSION, DEMO_WORLD), DEMO_VERSION
    if world_in(root) != {"version": version, **dataclasses.asdict(DEMO_WORLD)}:
        print(f"no --dataroot, and the demo's world is not in {root}: taking a tiny one", file=sys.stderr)
        version = "v1.0-mini"
        root = synthetic_root("", version, WorldConfig(scenes=1, keyframes=2))
    return dataclasses.replace(data, dataroot=str(root), version=version, split=SPLITS[version][0])


def _cached(version: str, config: WorldConfig) -> Path:
    """The folder of a world that is kept in the cache: the demo's, for its settings."""
    what = {"mim4d": __version__, "version": version, **dataclasses.asdict(config)}
    return cache_folder() / f"world-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def _is_there(root: Path, version: str, world: dict[str, Any]) -> bool:
    if not (root / version).is_dir():
        return False
    drawn = world_in(root)
    if drawn is None:
        # Weights that saw it would be called free of any real image.
        raise UserError(f"{root} holds a {version} that mim4d has not drawn: use `data` nuscenes")
    for name, value in world.items():
        if drawn.get(name) != value:  # or the run would say of itself what is not so
            raise UserError(
                f"{root} holds a world of `world.{name}` {drawn.get(name)}, not {value}: set that, or another root"
            )
    return True


def _draw(root: Path, version: str, config: WorldConfig) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(
        f"drawing a world of {config.scenes} scenes x {config.keyframes} key frames in {root}, once: what has "
        "these settings uses it again",
        markup=False,
        soft_wrap=not console.is_terminal,
    )
    with Bar(console, "key frames", every=30) as bar:
        make_world(root, version, config, progress=bar.update)
