"""Make a synthetic world: all scenes in parallel, then the tables."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.files import write_bytes, write_folder
from ..io.lock import LOCK, locked_folder
from ..io.pool import Task, run_in_processes
from .atlas import MASKS, hand_of, location_of, make_atlas
from .capture import SceneJob, capture
from .config import PERIOD, WorldConfig, check_version, scene_names
from .scene import longest_drive
from .tables import TableBuilder

RECORD = "world.json"
"""File with the settings of a world and whether it is complete."""


def make_world(
    out: Path | str,
    version: str = "v1.0-mini",
    config: WorldConfig | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a synthetic world and write it as a root in nuScenes format.

    An interrupted world is resumed: finished key frames are not made again.

    Args:
        out: Folder of the root.
        version: "v1.0-mini", "v1.0-trainval" or "v1.0-test".
        config: Settings of the world; None for the defaults. For the names of its scenes see :func:`scene_names`.
        workers: Number of processes, by default one per core; with 1, this process does the work.
        progress: Called with the number of finished key frames and of all key frames.

    Returns:
        ``out``, a dataroot for ``NuScenes(version, dataroot)``.

    Raises:
        UserError: If the version is unknown or has too few scenes, ``out`` holds other files, or a file cannot be
            written.
    """
    root, config = Path(out), config or WorldConfig()
    check_version(version)
    scene_names(version, config.scenes)
    if world_in(root) == _record(version, config):  # before the lock, because the folder may be read-only
        return root
    with locked_folder(root):
        if _begin(root, version, config):
            return root
        try:
            jobs = _jobs(root, version, config)
            _capture_all(root, jobs, workers or os.cpu_count() or 1, progress or (lambda done, whole: None))
            _finish(root, version, config, jobs)
        except (UserError, OSError) as error:
            raise UserError(
                f"could not make the world: {error}. Fix the problem and run the command again; it resumes"
            ) from error
    return root


def _record(version: str, config: WorldConfig) -> dict[str, Any]:
    """Return the settings of a world as :func:`world_in` reads them."""
    return {"version": version, **asdict(config)}


def world_in(root: Path) -> dict[str, Any] | None:
    """Read the settings of the complete synthetic world in a folder; None if there is none."""
    try:
        record = json.loads((root / RECORD).read_text())
        return dict(record["config"]) if record["complete"] else None
    except (OSError, ValueError, KeyError, TypeError):  # no file, no JSON, or another file of this name
        return None


def _begin(root: Path, version: str, config: WorldConfig) -> bool:
    """Check the folder and write the record if there is none.

    Returns:
        Whether the complete world is already there.

    Raises:
        UserError: If the folder holds another world or other files.
    """
    record = root / RECORD
    try:
        if record.exists():
            there = json.loads(record.read_text())
            if there.get("config") != _record(version, config):
                raise UserError(f"{root} holds a different world ({record.name}): choose another folder or delete it")
            return bool(there["complete"])
        if any(path.name != LOCK for path in root.iterdir()):
            raise UserError(f"{root} is not empty and holds no world: choose another folder")
        _write_record(root, version, config, complete=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot make a world in {root}: {error}") from error
    return False


def _write_record(root: Path, version: str, config: WorldConfig, complete: bool) -> None:
    text = json.dumps({"complete": complete, "config": _record(version, config)}, indent=2)
    write_bytes(root / RECORD, text.encode())


def _travel(config: WorldConfig) -> float:
    return longest_drive(PERIOD * (config.keyframes - 1))


def _jobs(root: Path, version: str, config: WorldConfig) -> list[SceneJob]:
    """Make and write the maps, and list the scenes."""
    named = scene_names(version, config.scenes)
    offsets: dict[int, tuple[float, float]] = {}
    for location in sorted({location_of(place) for _, place in named}):
        places = sorted({place for _, place in named if location_of(place) == location})
        atlas = make_atlas(config.seed, places, _travel(config))
        offsets |= atlas.offsets
        write_bytes(root / _mask_name(location), atlas.mask)
        write_bytes(root / "maps" / "expansion" / f"{location}.json", atlas.expansion.encode())
    return [scene_job(config, name, place, offsets[place]) for name, place in named]


def _mask_name(location: str) -> str:
    return f"maps/{MASKS[location]}.png"


def scene_job(config: WorldConfig, name: str, place: int, offset: tuple[float, float]) -> SceneJob:
    """Describe a scene.

    Args:
        config: Settings of the world.
        name: Name of the scene.
        place: Number of its place.
        offset: Position of the origin of the place on the map, metres.
    """
    number = int(name.removeprefix("scene-"))
    begin = datetime(2024, 1, 1, 8, tzinfo=timezone.utc) + timedelta(days=number % 365, minutes=37 * number % 540)
    return SceneJob(
        name=name,
        seed=config.seed,
        place=place,
        hand=hand_of(place),
        offset=offset,
        keyframes=config.keyframes,
        scale=config.scale,
        camera_rate=config.camera_rate,
        lidar_rate=config.lidar_rate,
        logfile=f"m{number:04d}-{begin:%Y-%m-%d-%H-%M-%S}+0000",
        start=int(begin.timestamp()) * 1_000_000 + 647_951,
    )


def _capture_all(root: Path, jobs: Sequence[SceneJob], workers: int, progress: Callable[[int, int], None]) -> None:
    frames = [(job, frame) for job in jobs for frame in range(job.keyframes)]
    if workers == 1:
        for done, (job, frame) in enumerate(frames):
            progress(done, len(frames))
            capture(root, job, frame)
    else:
        # A process gets several consecutive frames of a scene, so that few processes have to build it.
        run = max(1, min(jobs[0].keyframes, -(-len(frames) // (2 * workers))))
        runs = [(job, range(i, min(i + run, job.keyframes))) for job in jobs for i in range(0, job.keyframes, run)]

        def count() -> None:
            progress(sum(_record_file(root, job, frame).exists() for job, frame in frames), len(frames))

        def ended(task: Task, error: Exception | None) -> None:
            if error is not None:
                raise error
            count()

        count()
        run_in_processes(_capture_run, [(root, job, span) for job, span in runs], workers, ended, tick=count)
    progress(len(frames), len(frames))


def _record_file(root: Path, job: SceneJob, frame: int) -> Path:
    return root / ".parts" / job.name / f"{frame:04d}.json"


def _capture_run(root: Path, job: SceneJob, frames: Sequence[int]) -> None:
    for frame in frames:
        capture(root, job, frame)


def _finish(root: Path, version: str, config: WorldConfig, jobs: Sequence[SceneJob]) -> None:
    """Write the tables, then mark the world as complete."""
    builder = TableBuilder(config.seed, version)
    for job in jobs:
        files = [_record_file(root, job, frame) for frame in range(job.keyframes)]
        builder.add_scene(job, location_of(job.place), [json.loads(file.read_text()) for file in files])
    for location in sorted({location_of(job.place) for job in jobs}):
        logs = [job.logfile for job in jobs if location_of(job.place) == location]
        builder.add_map(location, logs, _mask_name(location))
    write_folder(root / version, builder.write, "the tables")
    _write_record(root, version, config, complete=True)
    shutil.rmtree(root / ".parts")
