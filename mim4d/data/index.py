"""The index of a root in nuScenes format: the part of the tables that the reader needs, cached and memory-mapped.

The tables of the full data set take minutes and many gigabytes of memory to read, so they are read once. The index
stores one row per camera image or LiDAR sweep, sorted by sensor, scene and time, in ``.npy`` files under
:func:`mim4d.io.files.cache_folder`. Data-loading workers map the same files, so an index takes hardly any memory.
"""

import hashlib
import json
import logging
import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.files import cache_folder, replace_folder
from .tables import build_tables

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of the cached files; increased when their content changes."""
ARRAYS = ("records", "calibrations", "samples")
TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor", "splits")
"""The JSON tables that an index is built from; ``splits.json`` (custom splits of the devkit) may be missing."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of one version of a root. Row numbers count over all sensors and scenes."""

    folder: Path
    """Cache folder of the files."""
    fingerprint: str
    """Hash of the sizes and times of the tables that it was built from."""
    scenes: tuple[str, ...]
    """Scene names, sorted."""
    channels: tuple[str, ...]
    """Names of the cameras and LiDARs, sorted."""
    lidars: tuple[str, ...]
    """The LiDARs among ``channels``."""
    splits: dict[str, list[str]]
    """Scene names of each split that the devkit knows; not all need be in this root."""
    lens_faults: dict[str, str]
    """Problems with lens distortion, by the row number (as text) of the calibration."""
    record_bounds: NDArray[np.int64]
    """[channels, scenes + 1]: channel c has the rows ``record_bounds[c, s] : record_bounds[c, s + 1]`` in scene s."""
    sample_bounds: NDArray[np.int64]
    """[scenes + 1]: scene s has the samples ``sample_bounds[s] : sample_bounds[s + 1]``."""
    records: NDArray[np.void]
    """[records] of the type :func:`mim4d.data.tables.record_type`."""
    calibrations: NDArray[np.void]
    """[calibrations] of the type :data:`mim4d.data.tables.CALIBRATION`."""
    samples: NDArray[np.int64]
    """[samples]: time of each sample (key frame) in microseconds, sorted by scene and time."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (self.folder, self.fingerprint)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras among ``channels``."""
        return tuple(channel for channel in self.channels if channel not in self.lidars)

    def rows(self, channel: str, scene: int) -> slice:
        """Rows of one sensor in one scene, in order of time; an empty slice if the root has no such sensor."""
        if channel not in self.channels:
            return slice(0, 0)
        bounds = self.record_bounds[self.channels.index(channel)]
        return slice(int(bounds[scene]), int(bounds[scene + 1]))

    def all_rows(self, channel: str) -> slice:
        """Rows of one sensor in all scenes."""
        bounds = self.record_bounds[self.channels.index(channel)]
        return slice(int(bounds[0]), int(bounds[-1]))

    def channel(self, row: int) -> str:
        """Name of the sensor of a row."""
        return self.channels[int(np.searchsorted(self.record_bounds[:, -1], row, side="right"))]


def open_index(dataroot: str | Path, version: str) -> Index:
    """Open the index of a root: the cached one, or a new one if the tables have changed.

    Args:
        dataroot: The folder that holds ``samples`` and the version folders.
        version: Name of the version, such as ``v1.0-trainval``.

    Raises:
        UserError: If the root or the version does not exist, the tables have faults, or the cache cannot be written.
    """
    root = Path(dataroot).expanduser()
    check_version(root, version)
    fingerprint = _fingerprint(root, version)
    name = f"{version}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"
    folder = cache_folder() / "index" / name
    index = _read_if_good(folder, fingerprint)
    if index is not None:
        return index
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # If several processes start together, one builds the index and the others wait for it.
        with filelock.FileLock(folder.with_name(name + ".lock")):
            index = _read_if_good(folder, fingerprint)
            if index is None:
                logger.info("reading the tables of %s; later starts use the cache", root / version)
                _write(folder, fingerprint, *build_tables(root, version))
                index = _read(folder, fingerprint)
    except OSError as error:
        raise UserError(
            f"cannot write the index of {root} to {folder}: {error.strerror or error}. "
            "Set MIM4D_CACHE to a folder that can be written"
        ) from error
    return index


def check_version(root: Path, version: str) -> None:
    """Check that a root has the tables of a version.

    Raises:
        UserError: If it does not; the message lists the versions that it has.
    """
    if not root.is_dir():
        raise UserError(f"dataroot = {root}: no such folder")
    if version in (".", "..") or Path(version).name != version:  # it names files in the cache too
        raise UserError(f"version = {version} must be the name of a folder in {root}, not a path")
    if not version or not (root / version / "scene.json").is_file():
        versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
        there = f"it has {', '.join(versions)}" if versions else "no folder in it has a scene.json"
        raise UserError(f"version = {version or '(empty)'} is not in {root}: {there}")


def _fingerprint(root: Path, version: str) -> str:
    """Hash the size and the time of change of each table."""
    stats = {}
    for table in TABLES:
        path = root / version / f"{table}.json"
        if path.is_file():
            stats[table] = (path.stat().st_size, path.stat().st_mtime_ns)
    return hashlib.sha256(json.dumps([FORMAT, str(root.resolve()), version, stats]).encode()).hexdigest()


def _read_if_good(folder: Path, fingerprint: str) -> Index | None:
    """Open the cached index; None if there is none, or it is out of date or damaged."""
    try:
        meta = json.loads((folder / "index.json").read_text())
        if meta["fingerprint"] != fingerprint:
            return None  # the tables have changed: no reason for a warning
        checksums = meta["checksums"]
        for name in ARRAYS:
            if _checksum(folder / f"{name}.npy") != checksums[name]:
                raise ValueError(f"{name}.npy is damaged")
        return _read(folder, fingerprint)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cannot read the cached index %s (%s): building it again", folder, error)
        return None


def _read(folder: Path, fingerprint: str) -> Index:
    meta = json.loads((folder / "index.json").read_text())
    if meta["fingerprint"] != fingerprint:
        raise ValueError("the tables have changed")
    return Index(
        folder=folder,
        fingerprint=fingerprint,
        scenes=tuple(meta["scenes"]),
        channels=tuple(meta["channels"]),
        lidars=tuple(meta["lidars"]),
        splits=meta["splits"],
        lens_faults=meta["lens_faults"],
        record_bounds=np.array(meta["record_bounds"], dtype=np.int64).reshape(len(meta["channels"]), -1),
        sample_bounds=np.array(meta["sample_bounds"], dtype=np.int64),
        **{name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS},
    )


def _write(folder: Path, fingerprint: str, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write an index to the cache; the caller holds its lock."""

    def fill(partial: Path) -> None:
        for name in ARRAYS:
            np.save(partial / f"{name}.npy", arrays[name], allow_pickle=False)
        checksums = {name: _checksum(partial / f"{name}.npy") for name in ARRAYS}
        (partial / "index.json").write_text(json.dumps(meta | {"fingerprint": fingerprint, "checksums": checksums}))

    replace_folder(folder, fill)


def _checksum(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)
