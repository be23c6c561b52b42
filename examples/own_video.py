r"""Convert your own calibrated video, with or without LiDAR, to a folder in nuScenes format.

    python examples/own_video.py --recordings my-drives --out my-root
    mim4d-pretrain --dataroot my-root --version v1.0-own --split train --val-split val \
        --cameras front left --preset camera --frame-gap 0.2 --out runs/own

Input:

    my-drives/calibration.json                  {"front": {"intrinsics": 3x3, "ego_from_sensor": 4x4}, "left": ...}
    my-drives/DRIVE/poses.csv                   time,x,y,z,qw,qx,qy,qz: global_from_ego, at a higher rate than images
    my-drives/DRIVE/front/1532402927612460.jpg  an undistorted image, named by its time
    my-drives/DRIVE/LIDAR_TOP/....bin           a sweep (optional): float32 x, y, z, intensity, ring per point

Times are in microseconds, lengths in metres. Intrinsics put pixel centres at integers, as OpenCV does. The ego frame is
x forward, y left, z up, with its origin on the ground under the rear axle; a camera's frame is x right, y down, z
forward. Check the result by eye before you train:

    python examples/lidar_on_images.py --dataroot my-root --version v1.0-own --split train --cameras front left
"""

import csv
import json
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from pyquaternion import Quaternion

from mim4d.errors import UserError
from mim4d.flags import report_user_errors

VERSION = "v1.0-own"
LIDAR = "LIDAR_TOP"
KEY_FRAME = 500_000
"""Time between key frames, microseconds (nuScenes: two per second). Other records become sweeps, used with --sweeps."""
NEAR = 100_000
"""Largest time between a key frame and a sensor's record, microseconds."""

Row = dict[str, Any]


@dataclass
class Poses:
    """The car's poses during one drive."""

    times: NDArray[np.int64]
    translations: NDArray[np.float64]
    rotations: list[Quaternion]

    @classmethod
    def read(cls, file: Path) -> "Poses":
        """Read a drive's ``poses.csv``."""
        try:
            with file.open(newline="") as lines:
                rows = sorted(csv.DictReader(lines), key=lambda row: int(row["time"]))
            return cls(
                np.array([int(row["time"]) for row in rows]),
                np.array([[float(row[axis]) for axis in "xyz"] for row in rows]),
                [Quaternion([float(row[f"q{axis}"]) for axis in "wxyz"]).normalised for row in rows],
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: expected columns time,x,y,z,qw,qx,qy,qz ({error!r})") from error

    def at(self, time: int, what: Path) -> tuple[list[float], list[float]]:
        """Return translation and rotation at a time, interpolated between its two neighbours."""
        if not len(self.times) or not self.times[0] <= time <= self.times[-1]:
            raise UserError(f"{what}: its time is outside the drive's poses.csv")
        after = max(int(np.searchsorted(self.times, time)), 1) if len(self.times) > 1 else 0
        before = max(after - 1, 0)
        span = self.times[after] - self.times[before]
        fraction = float(time - self.times[before]) / float(span) if span else 0.0
        translation = (1 - fraction) * self.translations[before] + fraction * self.translations[after]
        rotation = Quaternion.slerp(self.rotations[before], self.rotations[after], fraction)
        return translation.tolist(), rotation.elements.tolist()


def convert(recordings: Path, root: Path) -> tuple[list[str], list[str]]:
    """Write the nuScenes folder; images and sweeps become links, not copies.

    Returns:
        Names of the drives and of the sensors.

    Raises:
        UserError: If a file is missing or inconsistent.
    """
    try:
        calibration = json.loads((recordings / "calibration.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{recordings / 'calibration.json'}: {error}") from error
    if not isinstance(calibration, dict):
        raise UserError(f"{recordings / 'calibration.json'}: expected an object with one entry per sensor")
    drives = sorted(path for path in recordings.iterdir() if path.is_dir())
    if not drives or not calibration:
        raise UserError(f"{recordings}: found no drives, or no sensors in calibration.json")
    if root.exists():
        raise UserError(f"--out {root} already exists: choose another folder")
    names = [drive.name for drive in drives]

    tables = _tables(calibration, names)
    try:
        for drive in drives:
            _add_drive(tables, drive, list(calibration), root)
        _write(root, tables, names)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return names, list(calibration)


def _write(root: Path, tables: dict[str, list[Row]], drives: list[str]) -> None:
    """Write the tables, the map that the devkit requires, and the splits: the last of several drives is held out."""
    (root / "maps").mkdir()
    Image.new("L", (8, 8)).save(root / "maps/none.png")
    (root / VERSION).mkdir()
    train = drives[:-1] or drives
    splits = {"train": train, "val": [drive for drive in drives if drive not in train]}
    for name, rows in [*tables.items(), ("splits", splits)]:
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=0))


def _tables(calibration: dict[str, Any], drives: list[str]) -> dict[str, list[Row]]:
    """Return all tables of the devkit, without annotations, filled with what does not depend on a drive."""
    empty = ("category", "attribute", "visibility", "instance", "sample_annotation")
    tables: dict[str, list[Row]] = {
        name: [] for name in (*empty, "sensor", "calibrated_sensor", "ego_pose", "scene", "sample", "sample_data")
    }
    for channel, sensor in calibration.items():
        try:
            pose = np.array(sensor["ego_from_sensor"], dtype=float).reshape(4, 4)
            intrinsics = [] if channel == LIDAR else np.array(sensor["intrinsics"], dtype=float).reshape(3, 3).tolist()
            rotation = Quaternion(matrix=pose[:3, :3], rtol=1e-4, atol=1e-4)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"calibration.json: {channel}: {error!r}") from error
        modality = "lidar" if channel == LIDAR else "camera"
        tables["sensor"].append({"token": f"sensor-{channel}", "channel": channel, "modality": modality})
        tables["calibrated_sensor"].append(
            {
                "token": channel,
                "sensor_token": f"sensor-{channel}",
                "translation": pose[:3, 3].tolist(),
                "rotation": rotation.elements.tolist(),
                "camera_intrinsic": intrinsics,
            }
        )
    tables["log"] = [{"token": d, "logfile": d, "vehicle": "", "date_captured": "", "location": ""} for d in drives]
    tables["map"] = [{"token": "map", "log_tokens": drives, "category": "", "filename": "maps/none.png"}]
    return tables


def _add_drive(tables: dict[str, list[Row]], drive: Path, channels: list[str], root: Path) -> None:
    """Add one drive as a scene."""
    poses = Poses.read(drive / "poses.csv")
    files = {channel: _files(drive / channel) for channel in channels}
    reference = np.array(list(files[LIDAR if files.get(LIDAR) else channels[0]]))
    wanted = np.arange(reference[0], reference[-1] + 1, KEY_FRAME)
    samples = np.unique(reference[_nearest(reference, wanted)])
    tokens = [f"{drive.name}-{time}" for time in samples]
    tables["scene"].append(
        {
            "token": drive.name,
            "name": drive.name,
            "description": "",
            "log_token": drive.name,
            "nbr_samples": len(tokens),
            "first_sample_token": tokens[0],
            "last_sample_token": tokens[-1],
        }
    )
    for row, time in zip(_linked([{"token": token} for token in tokens]), samples.tolist(), strict=True):
        tables["sample"].append({**row, "timestamp": time, "scene_token": drive.name})
    for channel, found in files.items():
        times = np.array(list(found))
        nearest = _nearest(times, samples)
        key_frames = {int(times[n]): i for i, n in enumerate(nearest) if abs(times[n] - samples[i]) <= NEAR}
        rows = []
        for time, file in found.items():
            key = time in key_frames
            following = min(int(np.searchsorted(samples, time)), len(samples) - 1)
            suffix = ".pcd.bin" if channel == LIDAR else file.suffix
            name = f"{'samples' if key else 'sweeps'}/{channel}/{drive.name}__{time}{suffix}"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(file.resolve())
            translation, rotation = poses.at(time, file)
            token = f"{drive.name}-{channel}-{time}"
            pose = {"token": token, "timestamp": time, "translation": translation, "rotation": rotation}
            tables["ego_pose"].append(pose)
            width, height = (0, 0) if channel == LIDAR else _size(file)
            rows.append(
                {
                    "token": token,
                    "sample_token": tokens[key_frames[time] if key else following],
                    "ego_pose_token": token,
                    "calibrated_sensor_token": channel,
                    "timestamp": time,
                    "fileformat": suffix[1:4],
                    "is_key_frame": key,
                    "height": height,
                    "width": width,
                    "filename": name,
                }
            )
        tables["sample_data"].extend(_linked(rows))


def _size(image: Path) -> tuple[int, int]:
    """Return an image's width and height."""
    try:
        with Image.open(image) as opened:
            return opened.size
    except OSError as error:
        raise UserError(f"{image} is not a readable image: {error}") from error


def _files(folder: Path) -> dict[int, Path]:
    """Return a sensor's files by time, in order."""
    try:
        found = {int(file.name.partition(".")[0]): file for file in sorted(folder.iterdir())}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: expected files named by their time in microseconds ({error})") from error
    if not found:
        raise UserError(f"{folder} is empty")
    return dict(sorted(found.items()))


def _nearest(times: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the nearest of the sorted ``times`` for each wanted time."""
    after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


def _linked(rows: list[Row]) -> list[Row]:
    """Return the rows, each with the tokens of its neighbours."""
    for row in rows:
        row.update(prev="", next="")
    for earlier, later in pairwise(rows):
        earlier["next"], later["prev"] = later["token"], earlier["token"]
    return rows


def _frame_gap(drive: Path, channels: list[str]) -> float:
    """Return the gap between frames for --preset camera, seconds: 0.2, or that of the images if they are slower."""
    times = np.array(list(_files(drive / channels[0])))
    return max(0.2, round(float(np.median(np.diff(times))) / 1e6, 2)) if len(times) > 1 else 0.2


def main(recordings: Path, out: Path) -> None:
    """Write the nuScenes folder and print the training command; the last drive is held out.

    Args:
        recordings: Folder with calibration.json and the drives.
        out: nuScenes folder to create.
    """
    drives, channels = convert(recordings, out)
    cameras = shlex.join(channel for channel in channels if channel != LIDAR)
    splits = f"--split train --val-split {'val' if len(drives) > 1 else 'none'}"
    supervision = (
        "" if LIDAR in channels else f" --preset camera --frame-gap {_frame_gap(recordings / drives[0], channels):g}"
    )
    print(f"{out}: {len(drives)} drives, {len(channels)} sensors. Train with:")
    dataroot = shlex.quote(str(out))
    print(f"mim4d-pretrain --dataroot {dataroot} --version {VERSION} {splits} --cameras {cameras}{supervision}")


if __name__ == "__main__":
    with report_user_errors():
        tyro.cli(main)
