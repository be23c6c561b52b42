"""Check a root in nuScenes format: read it as pretraining does, count each kind of fault and describe the root."""

import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..clip import Clip
from ..errors import BadDataError, UserError
from ..flags import name_flags
from ..geometry import invert, project, transform
from ..io.files import write_file
from .frames import NONE, find_clips, find_frames
from .index import Index, open_index
from .nuscenes import CAMERAS, DataConfig, NuScenesClips
from .pictures import lidar_on_images
from .tables import LIDAR, TablesError

SAMPLE = 24
"""Files per sensor that are read without ``full``."""
MOMENTS = 4
"""Key frames whose LiDAR is projected into the images."""
WIDTH = 800
"""Width of each image in the picture, pixels."""
FASTEST = 100.0
"""Speed of the car above which its poses or times must be wrong, m/s."""
APART = 500_000
"""Largest distance in time between the records of a key frame, microseconds."""
FRAMES, GAP, TOLERANCE = 3, 0.5, 0.2
"""Frames per clip, seconds between them and tolerance in seconds: the defaults of mim4d-pretrain."""


@dataclass
class Report:
    """The result of a check."""

    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number of faults of each kind, and where the first one is."""
    facts: list[str] = field(default_factory=list)
    """Lines that describe the root, in order."""

    def fault(self, kind: str, first: str, count: int = 1) -> None:
        """Add ``count`` faults of a kind; ``first`` says where the first one is."""
        before, where = self.faults.get(kind, (0, first))
        self.faults[kind] = before + count, where

    def lines(self) -> list[str]:
        """Format one line per kind of fault, then the facts."""
        faults = [f"FAULT {kind} ({count} found; first: {first})" for kind, (count, first) in self.faults.items()]
        return [name_flags(line) for line in faults] + self.facts


def check_root(
    root: Path, version: str = "", *, full: bool = False, lidar_floats: int = 5
) -> tuple[Report, Clip | None]:
    """Check a root.

    Args:
        root: The folder that holds ``samples`` and the version folders.
        version: Name of the version; may be empty if the root has only one.
        full: Read every file, not only a sample of each sensor.
        lidar_floats: Number of float32 values per point in LiDAR files without a header.

    Returns:
        The report, and a clip of one frame for the picture or None if no clip can be read.

    Raises:
        UserError: If the root or the version does not exist, or ``version`` is empty and the root has several.
    """
    version = version or _find_version(root)
    report = Report()
    try:
        index = open_index(root, version)
    except TablesError as error:
        for fault in error.faults:
            first = ", ".join(part for part in (fault.where, fault.found and f"found {fault.found}") if part)
            report.fault(f"{fault.table}: {fault.problem}", first or str(root / version / fault.table), fault.count)
        report.facts.append("no image or LiDAR file was read, because the tables have faults")
        return report, None
    lidar = LIDAR if LIDAR in index.lidars else next(iter(index.lidars), None)
    _describe(index, root, version, lidar, report)
    if not index.cameras:
        report.fault("the tables have no camera", str(root / version / "sensor.json"))
        return report, None
    config = DataConfig(
        dataroot=str(root),
        version=version,
        split=",".join(index.scenes),
        frames=1,
        cameras=_ordered(index.cameras),
        image_size=_image_size(index),
        lidar=lidar is not None,
        lidar_name=lidar or LIDAR,
        lidar_floats=lidar_floats,
        on_error="skip",
    )
    try:
        clips = NuScenesClips(config)
    except UserError as error:
        report.fault("cannot open the root", str(error))
        return report, None
    _check_key_frames(clips, report)
    _check_poses(clips, report)
    _check_files(clips, full, report)
    return report, _project(clips, report)


def save_picture(clip: Clip, path: Path) -> None:
    """Write a picture of the LiDAR points on the images of a clip.

    Args:
        clip: A clip with B = 1.
        path: The PNG file.

    Raises:
        UserError: If the file cannot be written.
    """
    picture = lidar_on_images(clip)
    write_file(path, lambda partial: picture.save(partial, format="PNG"))


def _find_version(root: Path) -> str:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
    if len(versions) != 1:
        if not versions:
            raise UserError(f"{root}: no folder in it has a scene.json")
        raise UserError(f"{root}: choose one of {', '.join(versions)} with --version")
    return versions[0]


def _ordered(cameras: Sequence[str]) -> tuple[str, ...]:
    """Sort cameras: those of nuScenes in an order in which neighbours are side by side, then others."""
    return tuple(c for c in CAMERAS if c in cameras) + tuple(c for c in cameras if c not in CAMERAS)


def _image_size(index: Index) -> tuple[int, int]:
    """Largest height and width that the images of all cameras can be fitted to."""
    sizes = np.concatenate([index.records[index.all_rows(camera)]["size"] for camera in index.cameras])  # [records, 2]
    height = int(WIDTH * (sizes[:, 0] / sizes[:, 1]).min() + 1e-6) // 32 * 32
    return max(32, height), WIDTH


def _describe(index: Index, root: Path, version: str, lidar: str | None, report: Report) -> None:
    """Add lines on scenes, splits, sensors and clips, and the command that trains on the root."""
    add = report.facts.append
    seconds = 0.0
    for scene in range(len(index.scenes)):
        of_channels = [index.records["time"][index.rows(channel, scene)] for channel in index.channels]
        times = [time for times in of_channels if len(times) for time in (times[0], times[-1])]
        seconds += (max(times) - min(times)) / 1e6 if times else 0.0
    scenes, key_frames = _count(len(index.scenes), "scene"), _count(len(index.samples), "key frame")
    add(f"{root / version}: {scenes}, {key_frames}, {seconds:.1f} s in all")
    here = {name: len(set(scenes) & set(index.scenes)) for name, scenes in index.splits.items()}
    splits = [f"{name} ({number} of {len(index.splits[name])})" for name, number in here.items() if number]
    add(f"splits with scenes here: {', '.join(splits) or 'none; give names of scenes to --split'}")
    for channel in (*_ordered(index.cameras), *index.lidars):
        records = index.records[index.all_rows(channel)]
        steps = np.diff(records["time"])  # [records - 1], microseconds
        rate = 1e6 / np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
        sizes = {f"{width}x{height}" for height, width in np.unique(records["size"], axis=0).tolist()}
        kind, files = ("LiDAR", "sweep") if channel in index.lidars else ("camera", "image")
        of_size = "" if channel in index.lidars else f" of {' and '.join(sorted(sizes))} pixels"
        add(f"{kind} {channel}: {_count(len(records), files)}{of_size}, {rate:.1f} per second")
    if not index.cameras:
        return
    counts = []
    for sweeps in (False, True):
        found = find_frames(index, range(len(index.scenes)), _ordered(index.cameras), sweeps=sweeps, lidar=lidar)
        tolerance = round((0.49 * GAP if sweeps else TOLERANCE) * 1e6)
        counts.append(len(find_clips(found, length=FRAMES, gap=round(GAP * 1e6), tolerance=tolerance)))
    add(f"clips of {FRAMES} frames {GAP} s apart: {counts[0]} from key frames, {counts[1]} with --sweeps")
    flags = ["--dataroot", str(root), "--version", version]
    own = [name for name, number in here.items() if number == len(index.splits[name])]
    if version not in ("v1.0-trainval", "v1.0-mini"):
        flags += ["--split", own[0] if own else ",".join(index.scenes)]
    if set(CAMERAS) != set(index.cameras):
        flags += ["--cameras", *_ordered(index.cameras)]
    if lidar is None:
        flags += ["--supervision", "rgb"]
    elif lidar != LIDAR:
        flags += ["--lidar", lidar]
    add(f"to pretrain on it: mim4d-pretrain {shlex.join(flags)}")


def _count(number: int, noun: str) -> str:
    """Format a number with its noun.

    >>> _count(1, "scene"), _count(2, "scene")
    ('1 scene', '2 scenes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_key_frames(clips: NuScenesClips, report: Report) -> None:
    """Check that every key frame has one record of each sensor, and that their times are close."""
    index, frames = clips.index, clips.frames
    names = [*clips.config.cameras, *([clips.reference] if clips.has_lidar else [])]
    columns = [*frames.cameras.T, *([frames.lidar] if clips.has_lidar else [])]
    for name, rows in zip(names, columns, strict=True):
        missing = np.flatnonzero(rows == NONE)
        if len(missing):
            scene, when = index.scenes[frames.scenes[missing[0]]], frames.times[missing[0]] / 1e6
            report.fault(f"{name} has no record in a key frame", f"{scene} at {when:.2f} s", len(missing))
        present = np.flatnonzero(rows != NONE)
        distant = present[np.abs(index.records["time"][rows[present]] - frames.times[present]) > APART]
        if len(distant):
            record = index.records[rows[distant[0]]]
            kind = f"{name} is more than {APART / 1e6} s from {clips.reference} in a key frame"
            report.fault(kind, record["file"].decode(), len(distant))
        samples = index.records["sample"][index.all_rows(name)]
        duplicates = len(samples[samples >= 0]) - len(np.unique(samples[samples >= 0]))
        if duplicates:
            report.fault(f"{name} has two records in a key frame", "is_key_frame in sample_data.json", duplicates)


def _check_poses(clips: NuScenesClips, report: Report) -> None:
    """Check that the car does not jump."""
    index = clips.index
    for scene, name in enumerate(index.scenes):
        records = index.records[index.rows(clips.reference, scene)]
        seconds = np.diff(records["time"]) / 1e6
        metres = np.linalg.norm(np.diff(records["translation"], axis=0), axis=1)
        fast = np.flatnonzero((seconds > 0) & (metres > FASTEST * seconds))
        if len(fast):
            first = f"{name} at {records['time'][fast[0]] / 1e6:.2f} s, {metres[fast[0]] / seconds[fast[0]]:.0f} m/s"
            report.fault(f"the poses in ego_pose.json move faster than {FASTEST:.0f} m/s", first, len(fast))


def _check_files(clips: NuScenesClips, full: bool, report: Report) -> None:
    """Read a sample of the files, or all of them, as pretraining does."""
    index = clips.index
    rows: list[tuple[str, int]] = []
    for channel in (*clips.config.cameras, *([clips.reference] if clips.has_lidar else [])):
        span = index.all_rows(channel)
        count = span.stop - span.start
        chosen = range(count) if full else np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist()
        rows += [(channel, span.start + number) for number in chosen]

    def read(item: tuple[str, int]) -> tuple[str, BadDataError | None]:
        try:
            clips.read_record(item[1])
        except BadDataError as error:
            return item[0], error
        return item[0], None

    kinds: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for channel, error in _with_progress(pool.map(read, rows), len(rows)):
            if error is not None:
                what, problem = error.args
                kind = f"{channel}: {problem}"
                kind = kinds.setdefault(re.sub(r"[0-9]+", "", kind), kind)  # one kind, whatever the numbers in it
                report.fault(kind, what)
    whole = sum(index.all_rows(c).stop - index.all_rows(c).start for c in index.channels)
    report.facts.append(f"read {len(rows)} of {whole} files" + ("" if len(rows) == whole else "; --full reads all"))


def _with_progress(
    results: Iterable[tuple[str, BadDataError | None]], count: int
) -> Iterable[tuple[str, BadDataError | None]]:
    """Pass results on and show a progress bar on stderr after 3 s."""
    bar = Progress(
        TextColumn("files read"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    began, task = time.monotonic(), bar.add_task("files", total=count)
    try:
        for result in results:
            bar.advance(task)
            if time.monotonic() - began > 3 and not bar.live.is_started:
                bar.start()
            yield result
    finally:
        bar.stop()


def _project(clips: NuScenesClips, report: Report) -> Clip | None:
    """Count the LiDAR points in the images of some key frames; return the first one that can be read, or None."""
    counts = dict.fromkeys(clips.config.cameras, 0)
    first = None
    read = 0
    for number in np.unique(np.linspace(0, len(clips) - 1, MOMENTS + 2)[1:-1].astype(int)).tolist():
        try:
            clip = clips.read(number)
        except BadDataError:  # already counted by _check_files
            continue
        first = first if first is not None else clip
        read += 1
        if clips.has_lidar:
            for camera, name in enumerate(clips.config.cameras):
                in_camera = transform(invert(clip.ego_from_camera[0, -1, camera]), clip.points[0, -1])  # [P, 3]
                pixels, depth = project(clip.intrinsics[0, -1, camera], in_camera)  # [P, 2], [P]
                height, width = clip.image_size
                inside = (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height) & (depth > 0.5)
                counts[name] += int(inside.sum())
    if clips.has_lidar and read:
        means = ", ".join(f"{name} {count // read}" for name, count in counts.items())
        report.facts.append(f"LiDAR points per image, on average: {means}")
        if not any(counts.values()):
            report.fault("no LiDAR point projects into an image", "check calibrated_sensor.json", read)
    return first
