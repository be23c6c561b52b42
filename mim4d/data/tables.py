"""The tables of a root in nuScenes format, opened with the devkit and turned into compact arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .lenses import COEFFICIENTS, parse_lens

LIDAR = "LIDAR_TOP"

CALIBRATION = np.dtype(
    [
        ("translation", "<f8", 3),
        ("rotation", "<f8", 4),
        ("intrinsics", "<f8", (3, 3)),
        ("lens", "S8"),
        ("distortion", "<f8", COEFFICIENTS),
    ]
)
"""``ego_from_sensor`` in metres and (w, x, y, z); pixels with centres at integers, as in the tables; 0 for a LiDAR;
the lens as :mod:`mim4d.data.lenses` has it."""


def record_type(name_bytes: int) -> np.dtype[np.void]:
    """A row of the index: one camera image or LiDAR sweep.

    Args:
        name_bytes: Length of the longest file name.
    """
    return np.dtype(
        [
            ("time", "<i8"),  # microseconds
            ("translation", "<f8", 3),  # global_from_ego at that time, metres
            ("rotation", "<f8", 4),  # (w, x, y, z)
            ("calibration", "<i4"),  # row of the calibrations
            ("sample", "<i4"),  # row of the samples for a key frame, else -1
            ("size", "<i4", 2),  # height and width, pixels; 0 for a LiDAR
            ("file", f"S{name_bytes}"),  # UTF-8, relative to the root
        ]
    )


def build_tables(root: Path, version: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the tables with the devkit.

    Returns:
        What is small (names and bounds, for JSON) and the arrays, as :class:`mim4d.data.index.Index` describes them.

    Raises:
        UserError: If the devkit is not installed or cannot open the root, or the tables do not fit together.
    """
    nusc = open_devkit(root, version)
    try:
        meta, arrays = _compact(nusc)
        meta["splits"] = _splits(root / version)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the tables in {root / version} do not fit together ({type(error).__name__}: {error}): "
            "download or write them again"
        ) from error
    return meta, arrays


def _compact(nusc: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The devkit's tables as sorted arrays."""
    scenes = sorted(scene["name"] for scene in nusc.scene)
    scene_rank = {name: rank for rank, name in enumerate(scenes)}
    scene_of = {scene["token"]: scene_rank[scene["name"]] for scene in nusc.scene}
    samples = sorted(nusc.sample, key=lambda sample: (scene_of[sample["scene_token"]], sample["timestamp"]))
    sample_rank = {sample["token"]: rank for rank, sample in enumerate(samples)}
    sample_scenes = np.array([scene_of[sample["scene_token"]] for sample in samples], dtype=np.int64)

    # Radar and any further LiDAR stay out.
    kept = [d for d in nusc.sample_data if d["sensor_modality"] == "camera" or d["channel"] == LIDAR]
    if not kept:
        raise ValueError("no camera or LiDAR in sample_data.json")
    channels = sorted({d["channel"] for d in kept})
    channel_rank = {name: rank for rank, name in enumerate(channels)}
    channel_column = np.array([channel_rank[d["channel"]] for d in kept], dtype=np.int64)
    sample_column = np.array([sample_rank[d["sample_token"]] for d in kept], dtype=np.int64)
    records = _records(nusc, kept, sample_column)
    order = np.lexsort((records["time"], sample_scenes[sample_column], channel_column))
    groups = (channel_column * len(scenes) + sample_scenes[sample_column])[order]
    edges = np.arange(len(channels))[:, None] * len(scenes) + np.arange(len(scenes) + 1)

    meta = {
        "scenes": scenes,
        "channels": channels,
        "record_bounds": np.searchsorted(groups, edges).tolist(),
        "sample_bounds": np.searchsorted(sample_scenes, np.arange(len(scenes) + 1)).tolist(),
    }
    times = np.array([sample["timestamp"] for sample in samples], dtype=np.int64)
    calibrations, meta["lens_faults"] = _calibrations(nusc)
    return meta, {"records": records[order], "calibrations": calibrations, "samples": times}


def open_devkit(root: Path, version: str) -> Any:
    try:
        from nuscenes.nuscenes import NuScenes  # here, not above: it takes seconds and is an extra
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # the devkit asserts, indexes and raises bare Exceptions on a broken root
        raise UserError(
            f"the nuscenes-devkit cannot open {root / version} ({type(error).__name__}: {error}): "
            "is the download complete?"
        ) from error


def _records(nusc: Any, kept: list[dict[str, Any]], sample_column: NDArray[np.int64]) -> NDArray[np.void]:
    poses = [nusc.get("ego_pose", d["ego_pose_token"]) for d in kept]
    names = [d["filename"].encode() for d in kept]
    records = np.zeros(len(kept), dtype=record_type(max(map(len, names))))
    records["time"] = [d["timestamp"] for d in kept]
    records["translation"] = np.array([pose["translation"] for pose in poses]).reshape(-1, 3)
    records["rotation"] = np.array([pose["rotation"] for pose in poses]).reshape(-1, 4)
    records["calibration"] = [nusc.getind("calibrated_sensor", d["calibrated_sensor_token"]) for d in kept]
    records["sample"] = np.where([d["is_key_frame"] for d in kept], sample_column, -1)
    records["size"] = np.array([(d["height"], d["width"]) for d in kept]).reshape(-1, 2)
    records["file"] = names
    for d in kept:
        if d["sensor_modality"] == "camera" and min(d["height"], d["width"]) < 1:
            raise ValueError(f"{d['filename']} has no height and width in sample_data.json")
    return records


def _calibrations(nusc: Any) -> tuple[NDArray[np.void], dict[str, str]]:
    """The rows, and what is wrong with the lens of some; they may be of cameras that nobody asks for."""
    faults = {}
    calibrations = np.zeros(len(nusc.calibrated_sensor), dtype=CALIBRATION)
    for number, (row, record) in enumerate(zip(calibrations, nusc.calibrated_sensor, strict=True)):
        row["translation"] = record["translation"]
        row["rotation"] = record["rotation"]
        row["intrinsics"] = record["camera_intrinsic"] or 0.0
        if record["camera_intrinsic"]:
            try:
                row["lens"], coefficients = parse_lens(record)
                row["distortion"][: len(coefficients)] = coefficients
            except ValueError as error:
                faults[str(number)] = str(error)
    return calibrations, faults


def _splits(version_folder: Path) -> dict[str, list[str]]:
    """The devkit's splits, and those of the root's own ``splits.json`` in the devkit's format."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = {name: list(scenes) for name, scenes in create_splits_scenes().items()}
    custom = version_folder / "splits.json"
    return splits | (json.loads(custom.read_text()) if custom.is_file() else {})
