"""Check a root in nuScenes format: read it as the trainer would, count each kind of fault, describe what is there."""

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
from ..geometry import invert, project, transform
from ..io.files import write_file
from .frames import NONE, find_clips, find_frames
from .index import Index, open_index
from .nuscenes import CAMERAS, DataConfig, NuScenesClips
from .pictures import lidar_on_images
from .tables import LIDAR, TablesError

SAMPLE = 24
"""Files per sensor that are read unless all are."""
MOMENTS = 4
"""Key frames whose LiDAR is projected into the images."""
WIDTH = 800
"""Of each image in the picture, pixels."""
FASTEST = 100.0
"""Speed of the car in m/s above which poses or times are taken for wrong."""
APART = 500_000
"""Microseconds between the records of one key frame above which they are taken for wrong."""
CLIP = (3, 0.5, 0.2)
"""Frames, gap and tolerance in seconds of mim4d-pretrain's defaults."""


@dataclass
class Report:
    """What a check has found."""

    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """How often each kind of fault was found, and where first."""
    facts: list[str] = field(default_factory=list)
    """Lines that describe the root."""

    def fault(self, kind: str, first: str, count: int = 1) -> None:
        """Count a fault; equal kinds are added up."""
        before, where = self.faults.get(kind, (0, first))
        self.faults[kind] = before + count, where

    def lines(self) -> list[str]:
        """One line per kind of fault, then the facts."""
        return [f"FAULT {kind}: {count}, first: {first}" for kind, (count, first) in self.faults.items()] + self.facts


def check_root(
    root: Path, version: str = "", *, full: bool = False, lidar_floats: int = 5
) -> tuple[Report, Clip | None]:
    """Check a root.

    Args:
        root: The folder that holds ``samples`` and the version folders.
        version: Of the tables; empty for the only one.
        full: Read every file, not a sample of each sensor's.
        lidar_floats: Floats per point of LiDAR files without a header.

    Returns:
        What was found, and a clip of one frame for the picture, None if none can be read.

    Raises:
        UserError: If there is no such root or version, or several versions to choose from.
    """
    version = version or _find_version(root)
    report = Report()
    try:
        index = open_index(root, version)
    except TablesError as error:
        for fault in error.faults:
            first = ", ".join(part for part in (fault.where, fault.found and f"found {fault.found}") if part)
            report.fault(f"{fault.table}: {fault.problem}", first or str(root / version / fault.table), fault.count)
        report.facts.append("the tables have faults: no file was read")
        return report, None
    lidar = LIDAR if LIDAR in index.lidars else next(iter(index.lidars), None)
    _describe(index, root, version, lidar, report)
    if not index.cameras:
        report.fault("no camera in the tables", str(root / version / "sensor.json"))
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
        report.fault("the root cannot be opened", str(error))
        return report, None
    _check_key_frames(clips, report)
    _check_poses(clips, report)
    _check_files(clips, full, report)
    return report, _project(clips, report)


def save_picture(clip: Clip, path: Path) -> None:
    """Write a PNG of a clip's LiDAR on its images.

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
        there = (
            f"choose one of {', '.join(versions)} with --version" if versions else "no folder in it has a scene.json"
        )
        raise UserError(f"{root}: {there}")
    return versions[0]


def _ordered(cameras: Sequence[str]) -> tuple[str, ...]:
    """nuScenes' cameras in its order, which puts neighbours side by side, then others."""
    return tuple(c for c in CAMERAS if c in cameras) + tuple(c for c in cameras if c not in CAMERAS)


def _image_size(index: Index) -> tuple[int, int]:
    """Height and width that the images of all cameras can be cut to."""
    rows = np.concatenate([index.records[index.all_rows(camera)]["size"] for camera in index.cameras])
    height = int(WIDTH * (rows[:, 0] / rows[:, 1]).min() + 1e-6) // 32 * 32
    return max(32, height), WIDTH


def _describe(index: Index, root: Path, version: str, lidar: str | None, report: Report) -> None:
    """Say what is there."""
    say = report.facts.append
    spans = []
    for scene in range(len(index.scenes)):
        ends = [index.records["time"][index.rows(channel, scene)] for channel in index.channels]
        times = [time for end in ends if len(end) for time in (end[0], end[-1])]
        spans.append((max(times) - min(times)) / 1e6 if times else 0.0)
    seconds = sum(spans)
    say(f"{root / version}: {len(index.scenes)} scenes, {seconds:.1f} s, {len(index.samples)} key frames")
    here = {name: len(set(scenes) & set(index.scenes)) for name, scenes in index.splits.items()}
    splits = [f"{name} ({there} of {len(index.splits[name])} scenes)" for name, there in here.items() if there]
    say(f"splits: {', '.join(splits) or 'none; name scenes with --split'}")
    for channel in (*_ordered(index.cameras), *index.lidars):
        records = index.records[index.all_rows(channel)]
        kind = "LiDAR" if channel in index.lidars else "camera"
        sizes = {f"{width}x{height}" for height, width in np.unique(records["size"], axis=0).tolist()}
        size = "" if channel in index.lidars else f", {' and '.join(sorted(sizes))}"
        steps = np.diff(records["time"])
        rate = 1e6 / np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
        say(f"{kind} {channel}: {len(records)} files, {rate:.1f} per second{size}")
    if not index.cameras:
        return
    frames, gap, tolerance = CLIP
    counts = []
    for sweeps in (False, True):
        found = find_frames(index, range(len(index.scenes)), _ordered(index.cameras), sweeps=sweeps, lidar=lidar)
        close = round((0.49 * gap if sweeps else tolerance) * 1e6)
        counts.append(len(find_clips(found, length=frames, gap=round(gap * 1e6), tolerance=close)))
    say(f"clips of {frames} frames {gap} s apart: {counts[0]} from key frames, {counts[1]} with --sweeps")
    flags = ["--dataroot", str(root), "--version", version]
    own = [name for name, there in here.items() if there == len(index.splits[name])]
    if version not in ("v1.0-trainval", "v1.0-mini"):
        flags += ["--split", own[0] if own else ",".join(index.scenes)]
    if set(CAMERAS) != set(index.cameras):
        flags += ["--cameras", *_ordered(index.cameras)]
    if lidar is None:
        flags += ["--supervision", "rgb"]
    elif lidar != LIDAR:
        flags += ["--lidar", lidar]
    say(f"train with: mim4d-pretrain {shlex.join(flags)}")


def _check_key_frames(clips: NuScenesClips, report: Report) -> None:
    """Each sensor once in every key frame, near in time to the others."""
    index, frames = clips.index, clips.frames
    names = [*clips.config.cameras, *([clips.reference] if clips.has_lidar else [])]
    columns = [*frames.cameras.T, *([frames.lidar] if clips.has_lidar else [])]
    for name, rows in zip(names, columns, strict=True):
        lacking = np.flatnonzero(rows == NONE)
        if len(lacking):
            scene, when = index.scenes[frames.scenes[lacking[0]]], frames.times[lacking[0]] / 1e6
            report.fault(f"{name} has no record in a key frame", f"{scene} at {when:.2f} s", len(lacking))
        there = np.flatnonzero(rows != NONE)
        late = there[np.abs(index.records["time"][rows[there]] - frames.times[there]) > APART]
        if len(late):
            record = index.records[rows[late[0]]]
            kind = f"{name} is more than {APART / 1e6} s from {clips.reference} in a key frame"
            report.fault(kind, record["file"].decode(), len(late))
        samples = index.records["sample"][index.all_rows(name)]
        again = len(samples[samples >= 0]) - len(np.unique(samples[samples >= 0]))
        if again:
            report.fault(f"{name} has two records in a key frame", "sample_data.json, is_key_frame", again)


def _check_poses(clips: NuScenesClips, report: Report) -> None:
    """No jumps of the car."""
    index = clips.index
    for scene, name in enumerate(index.scenes):
        records = index.records[index.rows(clips.reference, scene)]
        seconds = np.diff(records["time"]) / 1e6
        metres = np.linalg.norm(np.diff(records["translation"], axis=0), axis=1)
        fast = np.flatnonzero((seconds > 0) & (metres > FASTEST * seconds))
        if len(fast):
            first = f"{name} at {records['time'][fast[0]] / 1e6:.2f} s, {metres[fast[0]] / seconds[fast[0]]:.0f} m/s"
            report.fault(f"the car is faster than {FASTEST:.0f} m/s by ego_pose.json", first, len(fast))


def _check_files(clips: NuScenesClips, full: bool, report: Report) -> None:
    """Read files as for training."""
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

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for channel, error in _with_progress(pool.map(read, rows), len(rows)):
            if error is not None:
                what, problem = error.args
                report.fault(f"{channel}: {re.sub(r'[0-9]+', 'N', problem)}", f"{what}: {problem}")
    whole = sum(index.all_rows(c).stop - index.all_rows(c).start for c in index.channels)
    report.facts.append(f"read {len(rows)} of {whole} files" + ("" if full else "; --full reads all"))


def _with_progress(
    results: Iterable[tuple[str, BadDataError | None]], count: int
) -> Iterable[tuple[str, BadDataError | None]]:
    """Pass results on, with a bar on stderr once they take more than 3 s."""
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
    """Count the LiDAR points in each image of some moments; the first moment that can be read is for the picture."""
    seen = dict.fromkeys(clips.config.cameras, 0)
    first = None
    moments = np.unique(np.linspace(0, len(clips) - 1, MOMENTS + 2)[1:-1].astype(int)).tolist()
    read = 0
    for number in moments:
        try:
            clip = clips.read(number)
        except BadDataError:  # counted among the files
            continue
        first = first if first is not None else clip
        read += 1
        if clips.has_lidar:
            for camera, name in enumerate(clips.config.cameras):
                in_camera = transform(invert(clip.ego_from_camera[0, -1, camera]), clip.points[0, -1])
                pixels, depth = project(clip.intrinsics[0, -1, camera], in_camera)
                height, width = clip.image_size
                inside = (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height) & (depth > 0.5)
                seen[name] += int(inside.sum())
    if clips.has_lidar and read:
        counts = ", ".join(f"{name} {count // read}" for name, count in seen.items())
        report.facts.append(f"LiDAR points per image: {counts}")
        if not any(seen.values()):
            report.fault("no LiDAR point falls into any image", "check calibrated_sensor.json", read)
    return first
