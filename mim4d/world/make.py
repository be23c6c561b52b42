"""Make a world: all scenes in parallel, then the tables."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..lock import LOCK, locked_folder
from ..pool import Task, share_out
from .atlas import MASKS, hand_of, location_of, make_atlas
from .capture import PERIOD, SceneJob, capture, write_atomically
from .scene import travel_within
from .tables import TableBuilder

PLACES = (64, 16)
"""How many different places the scenes of the training and the validation split happen in, at most."""
VERSIONS = {"v1.0-mini": ("mini_train", "mini_val"), "v1.0-trainval": ("train", "val"), "v1.0-test": ("test", "")}
"""The official splits of each version: for training and for validation."""
RECORD = "world.json"


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """All that a world follows from."""

    version: str
    scenes: int
    seed: int
    scale: float
    keyframes: int
    camera_rate: float
    lidar_rate: float

    def check(self) -> None:
        """Raise :class:`UserError` naming the first value that makes no world."""
        if self.version not in VERSIONS:
            raise UserError(f"version = {self.version} is unknown: choose one of {', '.join(VERSIONS)}")
        for name, least, most in (("scenes", 1, 850), ("keyframes", 1, 1000)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} = {getattr(self, name)} must lie in {least} .. {most}")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed} must be at least 0")
        if not 0.05 <= self.scale <= 1.0:
            raise UserError(f"scale = {self.scale} must lie in 0.05 .. 1 (1 is 1600x900 pixels)")
        for name in ("camera_rate", "lidar_rate"):
            rate = getattr(self, name) * PERIOD
            if not 1 <= rate <= 20 or rate != round(rate):
                raise UserError(f"{name} = {getattr(self, name)} must be a multiple of {1 / PERIOD:g} Hz up to 40")
        scene_names(self.version, self.scenes)

    def check_split(self, split: str) -> None:
        """Raise :class:`UserError` if a split, or one of several scene names with commas, has no scene here."""
        from nuscenes.utils.splits import create_splits_scenes  # slow to import, so only here

        splits = create_splits_scenes()
        made = {name for name, _ in scene_names(self.version, self.scenes)}
        wanted = [name.strip() for name in split.split(",") if name.strip()]
        if len(wanted) == 1 and wanted[0] in splits:
            if made.isdisjoint(splits[wanted[0]]):
                raise UserError(
                    f"split {split}: none of its scenes is in a world of {self.version} with --world.scenes "
                    f"{self.scenes}"
                )
            return
        lacking = [name for name in wanted if name not in made]
        if lacking or not wanted:
            raise UserError(
                f"split {', '.join(lacking) or '(empty)'}: neither a split ({', '.join(sorted(splits))}) nor a scene "
                f"of a world of {self.version} with --world.scenes {self.scenes}"
            )


def scene_names(version: str, count: int) -> list[tuple[str, int]]:
    """Names from nuScenes' official splits, and the place each scene happens in.

    Of v1.0-mini and v1.0-trainval about a fifth (at least one, from two scenes on) belong to the validation split.

    Raises:
        UserError: If the splits have fewer scenes.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import, so only here

    splits = create_splits_scenes()
    train, val = (splits.get(name, []) for name in VERSIONS[version])
    if count > len(train) + len(val):
        raise UserError(f"scenes = {count} must be at most {len(train) + len(val)}, which {version} has names for")
    held_out = max(int(count >= 2), round(count / 5)) if val else 0
    held_out = max(min(held_out, len(val)), count - len(train))
    chosen = [(name, i % PLACES[0]) for i, name in enumerate(train[: count - held_out])]
    return chosen + [(name, PLACES[0] + i % PLACES[1]) for i, name in enumerate(val[:held_out])]


def make_world(
    out: Path | str,
    version: str,
    scenes: int,
    seed: int,
    *,
    scale: float = 0.25,
    keyframes: int = 8,
    camera_rate: float = 2.0,
    lidar_rate: float = 2.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a nuScenes root full of procedural streets; what is already there of the same world is kept.

    Args:
        out: Folder of the root.
        version: "v1.0-mini", "v1.0-trainval" or "v1.0-test".
        scenes: How many; their names are nuScenes' own, see :func:`scene_names`.
        seed: Everything follows from it.
        scale: Size of the images over nuScenes' 1600x900 pixels.
        keyframes: Key frames a scene, 0.5 s apart.
        camera_rate: Pictures a second of each camera, Hz; 2 is key frames only, 12 is nuScenes'.
        lidar_rate: LiDAR sweeps a second, Hz; 2 is key frames only, 20 is nuScenes'.
        workers: Processes; all cores by default, 1 stays in this process.
        progress: Called with (key frames done, key frames in all) as they are made.

    Returns:
        ``out``, a dataroot for ``NuScenes(version, dataroot)``.

    Raises:
        UserError: If a value makes no sense, or ``out`` holds something else.
    """
    root = Path(out)
    config = WorldConfig(
        version=version,
        scenes=scenes,
        seed=seed,
        scale=float(scale),
        keyframes=keyframes,
        camera_rate=float(camera_rate),
        lidar_rate=float(lidar_rate),
    )
    config.check()
    if world_in(root) == asdict(config):  # perhaps where nothing can be written
        return root
    with locked_folder(root):
        if _begin(root, config):
            return root
        try:
            jobs = _jobs(root, config)
            _capture_all(root, jobs, workers or os.cpu_count() or 1, progress or (lambda done, whole: None))
            _finish(root, config, jobs)
        except OSError as error:
            raise UserError(f"cannot write the world: {error}; put that right and run again to complete it") from error
    return root


def world_in(root: Path) -> dict[str, Any] | None:
    """The settings of the whole drawn world in a folder; None if there is none."""
    try:
        record = json.loads((root / RECORD).read_text())
        return dict(record["config"]) if record["complete"] else None
    except (OSError, ValueError, KeyError, TypeError):  # no file, no JSON, or none of ours
        return None


def _begin(root: Path, config: WorldConfig) -> bool:
    """Claim the folder; True if the whole world is already there."""
    record = root / RECORD
    try:
        if record.exists():
            there = json.loads(record.read_text())
            if there.get("config") != asdict(config):
                raise UserError(f"{root} holds a different world ({record.name}): choose another --out or delete it")
            return bool(there["complete"])
        if any(path.name != LOCK for path in root.iterdir()):
            raise UserError(f"{root} is not empty and holds no world: choose another --out")
        _write_record(root, config, complete=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot make a world in {root}: {error}") from error
    return False


def _write_record(root: Path, config: WorldConfig, complete: bool) -> None:
    text = json.dumps({"complete": complete, "config": asdict(config)}, indent=2)
    write_atomically(root / RECORD, text.encode())


def _travel(config: WorldConfig) -> float:
    return travel_within(PERIOD * (config.keyframes - 1))


def _jobs(root: Path, config: WorldConfig) -> list[SceneJob]:
    """Lay out the maps, write them, and list the scenes."""
    named = scene_names(config.version, config.scenes)
    offsets: dict[int, tuple[float, float]] = {}
    for location in sorted({location_of(place) for _, place in named}):
        places = sorted({place for _, place in named if location_of(place) == location})
        atlas = make_atlas(config.seed, places, _travel(config))
        offsets |= atlas.offsets
        write_atomically(root / _mask_name(location), atlas.mask)
        write_atomically(root / "maps" / "expansion" / f"{location}.json", atlas.expansion.encode())
    return [scene_job(config, name, place, offsets[place]) for name, place in named]


def _mask_name(location: str) -> str:
    return f"maps/{MASKS[location]}.png"


def scene_job(config: WorldConfig, name: str, place: int, offset: tuple[float, float]) -> SceneJob:
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
        # A scene's frames go to one process in runs, so that it is built but once or twice.
        run = max(1, min(jobs[0].keyframes, -(-len(frames) // (2 * workers))))
        runs = [(job, range(i, min(i + run, job.keyframes))) for job in jobs for i in range(0, job.keyframes, run)]

        def count() -> None:
            progress(sum(_record_file(root, job, frame).exists() for job, frame in frames), len(frames))

        def ended(task: Task, error: Exception | None) -> None:
            if error is not None:
                raise error
            count()

        count()
        share_out(_capture_run, [(root, job, span) for job, span in runs], workers, ended, tick=count)
    progress(len(frames), len(frames))


def _record_file(root: Path, job: SceneJob, frame: int) -> Path:
    return root / ".parts" / job.name / f"{frame:04d}.json"


def _capture_run(root: Path, job: SceneJob, frames: Sequence[int]) -> None:
    for frame in frames:
        capture(root, job, frame)


def _finish(root: Path, config: WorldConfig, jobs: Sequence[SceneJob]) -> None:
    """Tables last, all at once, and then the mark that the world is whole."""
    builder = TableBuilder(config.seed, config.version)
    for job in jobs:
        files = [_record_file(root, job, frame) for frame in range(job.keyframes)]
        builder.add_scene(job, location_of(job.place), [json.loads(file.read_text()) for file in files])
    for location in sorted({location_of(job.place) for job in jobs}):
        logs = [job.logfile for job in jobs if location_of(job.place) == location]
        builder.add_map(location, logs, _mask_name(location))
    unfinished = root / f".{config.version}"
    shutil.rmtree(unfinished, ignore_errors=True)
    builder.write(unfinished)
    shutil.rmtree(root / config.version, ignore_errors=True)
    os.replace(unfinished, root / config.version)
    _write_record(root, config, complete=True)
    shutil.rmtree(root / ".parts")
