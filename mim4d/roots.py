"""The root that a command reads: a folder in nuScenes format, or a synthetic world that is made if it is missing."""

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
from .world.config import DEMO_VERSION, DEMO_WORLD, LOOK, WorldConfig, check_split
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
    """Check the settings of a root without reading it.

    Of a folder that exists, the version is checked; of a synthetic world, also the splits and the sensors.

    Args:
        kind: ``nuscenes`` or ``synthetic``.
        dataroot: Path of the root.
        version: Name of the version.
        world: Settings of a synthetic world.
        splits: The splits that must have scenes in a synthetic world.
        cameras: The cameras that must be in a synthetic world.
        lidar: The LiDAR that must be in a synthetic world.

    Raises:
        UserError: If the version, a split, a camera or the LiDAR does not exist.
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
    """Return the root of a synthetic world; make the world if it is missing.

    Args:
        dataroot: The folder of the world; empty for a folder in the cache.
        version: Name of the version, such as v1.0-mini.
        config: Settings of the world.

    Raises:
        UserError: If the world cannot be made, or ``dataroot`` holds other data.
    """
    world = dataclasses.asdict(config)
    root = Path(dataroot).expanduser() if dataroot else _cached(version, config)
    if _is_there(root, version, world):
        return root
    make_folder(root.parent)
    try:
        with FileLock(root.with_name(f".{root.name}.lock")):
            if not _is_there(root, version, world):  # another process may have made it meanwhile
                _make(root, version, config)
    except OSError as error:
        raise UserError(f"cannot make a world in {root}: {error.strerror or error}") from error
    return root


def default_to_synthetic(data: DataConfig) -> DataConfig:
    """Set the root to a synthetic world if none is set: the world of the demo if it exists, else a tiny one.

    Args:
        data: Settings of the data; root, version and split are replaced if no root is set.

    Raises:
        UserError: If the tiny world cannot be made.
    """
    if data.dataroot:
        return data
    root, version = _cached(DEMO_VERSION, DEMO_WORLD), DEMO_VERSION
    if world_in(root) != {"version": version, **dataclasses.asdict(DEMO_WORLD)}:
        print(f"no dataroot is set and {root} has no demo world: using a tiny synthetic world", file=sys.stderr)
        version = "v1.0-mini"
        root = synthetic_root("", version, WorldConfig(scenes=1, keyframes=2))
    return dataclasses.replace(data, dataroot=str(root), version=version, split=SPLITS[version][0])


def _cached(version: str, config: WorldConfig) -> Path:
    """Folder in the cache for the world of these settings."""
    what = {"mim4d": __version__, "look": LOOK, "version": version, **dataclasses.asdict(config)}
    return cache_folder() / f"world-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def _is_there(root: Path, version: str, world: dict[str, Any]) -> bool:
    """Return whether a root holds the whole world with these settings.

    Raises:
        UserError: If it holds other data of this version.
    """
    if not (root / version).is_dir():
        return False
    found = world_in(root)
    if found is None:  # the card of weights trained on it would claim that they have seen no real image
        raise UserError(f"{root} holds a {version} that is no synthetic world of mim4d: set `data` to nuscenes")
    for name, value in world.items():
        if found.get(name) != value:  # the settings saved with the run would be wrong
            raise UserError(
                f"{root} holds a synthetic world with `world.{name}` {found.get(name)}, not {value}: set "
                f"`world.{name}` {found.get(name)} or another `dataroot`"
            )
    return True


def _make(root: Path, version: str, config: WorldConfig) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(
        f"making a synthetic world of {config.scenes} scenes x {config.keyframes} key frames in {root}; later runs "
        "with these settings use it again",
        markup=False,
        soft_wrap=not console.is_terminal,
    )
    with Bar(console, "key frames", every=30) as bar:
        make_world(root, version, config, progress=bar.update)
