"""Read the tables of a root in nuScenes format into compact arrays; every value is checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .columns import Fault, Table, is_name, is_number, is_vector, shown
from .devkit import read_splits
from .lenses import COEFFICIENTS, parse_lens
from .units import PER_MICROSECOND, unit_of

LIDAR = "LIDAR_TOP"
"""Channel of the LiDAR in nuScenes."""

CALIBRATION = np.dtype(
    [
        ("translation", "<f8", 3),
        ("rotation", "<f8", 4),
        ("intrinsics", "<f8", (3, 3)),
        ("lens", "S8"),
        ("distortion", "<f8", COEFFICIENTS),
    ]
)
"""A row of ``calibrated_sensor``: ``ego_from_sensor`` as a translation in metres and a quaternion (w, x, y, z), the
camera matrix in pixels whose first centre is (0, 0) as in the tables, and the lens as :mod:`mim4d.data.lenses` parses
it. The camera matrix of a LiDAR is 0."""

LARGEST_IMAGE = 100_000
"""Largest height and width of an image, pixels."""
LONGEST_NAME = 1000
"""Largest number of bytes of a file name."""

_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


def record_type(name_bytes: int) -> np.dtype[np.void]:
    """Make the type of a row of the index: one camera image or LiDAR sweep.

    Args:
        name_bytes: Number of bytes of the longest file name.
    """
    return np.dtype(
        [
            ("time", "<i8"),  # microseconds
            ("translation", "<f8", 3),  # of global_from_ego at that time, metres
            ("rotation", "<f8", 4),  # of global_from_ego, (w, x, y, z)
            ("calibration", "<i4"),  # row of the calibrations
            ("sample", "<i4"),  # row of the samples for a key frame, else -1
            ("size", "<i4", 2),  # height and width, pixels; 0 for a LiDAR
            ("file", f"S{name_bytes}"),  # UTF-8, relative to the root
        ]
    )


class TablesError(UserError):
    """The tables have faults; the message names the first."""

    def __init__(self, folder: Path, faults: Sequence[Fault]) -> None:
        """Collect the faults of the tables in ``folder``, at least one."""
        super().__init__(folder, tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        folder, faults = self.args
        rows = f" ({faults[0].count} {faults[0].unit})" if faults[0].count > 1 else ""
        more = f"; {len(faults) - 1} more kinds of fault (mim4d-data check lists them)" if len(faults) > 1 else ""
        return f"{folder / faults[0].table}: {faults[0]}{rows}{more}"


def raise_faults(folder: Path, faults: Sequence[Fault]) -> None:
    """Raise the faults found so far, if there are any.

    Raises:
        TablesError: If there is a fault.
    """
    if faults:
        raise TablesError(folder, faults)


def build_tables(root: Path, version: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the tables of a version into the fields of an index.

    Returns:
        The small fields of :class:`mim4d.data.index.Index` (names and bounds, as values for JSON), and its arrays.

    Raises:
        TablesError: If a table is missing, is not a table, or has values that cannot be right.
        UserError: If the nuscenes-devkit, which holds the official splits, is not installed.
    """
    folder = root / version
    faults: list[Fault] = []  # raised after each part, because the next part relies on its values
    names = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
    scene, sample, data, pose, calibration, sensor = tables = [Table(folder / f"{name}.json", faults) for name in names]
    splits = read_splits(folder, faults)
    raise_faults(folder, faults)
    for table in tables:
        table.tokens()
    raise_faults(folder, faults)

    scene_names = scene.texts("name")
    _check_unique(scene, "name", scene_names)
    channels, modalities = sensor.texts("channel"), [name.lower() for name in sensor.texts("modality")]  # [sensors]
    sensor_of = calibration.refer("sensor_token", sensor)  # [calibrations]
    calibration_of = data.refer("calibrated_sensor_token", calibration)  # [all records]
    raise_faults(folder, faults)
    modality_of_channel = _check_modalities(sensor, channels, modalities)
    # Radar and other sensors are not read, so their rows are not checked.
    is_read = np.isin(sensor_of, [row for row, modality in enumerate(modalities) if modality in ("camera", "lidar")])
    rows = np.flatnonzero(is_read[calibration_of])
    data, calibration_of = data.only(rows.tolist()), calibration_of[rows]  # [records] from here on
    if not len(rows):
        faults.append(Fault(data.name, "expected records of a sensor whose modality is camera or lidar", "", "none"))
    raise_faults(folder, faults)

    sample_of, pose_of = data.refer("sample_token", sample), data.refer("ego_pose_token", pose)  # [records] each
    scene_of = sample.refer("scene_token", scene)  # [samples]
    sample_times = sample.times()
    is_camera = np.array([modalities[row] == "camera" for row in sensor_of])[calibration_of]  # [records]
    records, times, is_key_frame = _read_records(data, is_camera)
    records["calibration"] = calibration_of
    records["translation"], records["rotation"] = _read_poses(pose, pose_of)
    calibrations, lens_faults = _calibrations(calibration, [modalities[row] for row in sensor_of])
    raise_faults(folder, faults)

    order = _sort(scene_names, scene_of, sample_times, channels, sensor_of[calibration_of], sample_of, times)
    order.check_units(data.name, times, sample.name, sample_times, faults)
    raise_faults(folder, faults)
    records["sample"] = np.where(is_key_frame, np.argsort(order.samples)[sample_of], -1)  # argsort inverts the order
    meta = {
        "scenes": order.scenes,
        "channels": order.channels,
        "lidars": [channel for channel in order.channels if modality_of_channel[channel] == "lidar"],
        "splits": splits,
        "lens_faults": lens_faults,
        "record_bounds": order.record_bounds.tolist(),
        "sample_bounds": order.sample_bounds.tolist(),
    }
    samples = np.rint(sample_times[order.samples]).astype(np.int64)
    return meta, {"records": records[order.records], "calibrations": calibrations, "samples": samples}


def _check_unique(table: Table, column: str, values: list[str]) -> None:
    first: dict[str, int] = {}
    twice = [row for row, value in enumerate(values) if first.setdefault(value, row) != row]
    if twice:
        table.fault(twice, f"{column}: expected different values in all rows", f"{shown(values[twice[0]])} twice")


def _check_modalities(sensor: Table, channels: list[str], modalities: list[str]) -> dict[str, str]:
    """Return the modality of each channel, and report rows that contradict an earlier one."""
    modality_of: dict[str, str] = {}
    for row, (channel, modality) in enumerate(zip(channels, modalities, strict=True)):
        if modality_of.setdefault(channel, modality) != modality:
            sensor.fault([row], f"modality: expected the same in all rows of {channel}", shown(modality))
    return modality_of


def _read_records(
    data: Table, is_camera: NDArray[np.bool_]
) -> tuple[NDArray[np.void], NDArray[np.float64], NDArray[np.bool_]]:
    """Read the columns of ``sample_data`` that refer to no other table.

    Args:
        data: The table.
        is_camera: [records], False for a LiDAR.

    Returns:
        Rows of the index with ``time``, ``size`` and ``file``, times without rounding, and key frames; [records] each.
    """
    times = data.times()
    files = data.column("filename", _is_file, "a file's path inside the root, without ..", "")
    key_frames = data.column("is_key_frame", _is_flag, "true or false", False)
    images = data.only(np.flatnonzero(is_camera).tolist())
    expected = f"pixels, a whole number from 1 to {LARGEST_IMAGE}"
    file_names = [name.encode() for name in files]
    records = np.zeros(len(data.rows), dtype=record_type(max(1, *map(len, file_names))))
    records["time"], records["file"] = np.rint(times), file_names
    records["size"][is_camera] = np.transpose(
        [images.column(name, _is_size, expected, 1) for name in ("height", "width")]
    )
    return records, times, np.array(key_frames, dtype=bool)


def _read_poses(pose: Table, pose_of: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the translation [records, 3] and rotation [records, 4] of the poses in rows ``pose_of`` [records].

    Other poses are not read, so they are not checked.
    """
    used, place = np.unique(pose_of, return_inverse=True)  # [poses], [records]
    pose = pose.only(used.tolist())
    return pose.vectors("translation", 3)[place], pose.rotations()[place]


@dataclass(frozen=True)
class _Order:
    """The order of the rows of an index, and where scenes and channels are in it."""

    scenes: list[str]
    """Names, sorted."""
    channels: list[str]
    """Names, sorted."""
    samples: NDArray[np.int64]
    """[samples]: rows of ``sample`` by scene, then by time."""
    records: NDArray[np.int64]
    """[records]: rows of ``sample_data`` by channel, then by scene, then by time."""
    sample_bounds: NDArray[np.int64]
    """[scenes + 1], see :class:`mim4d.data.index.Index`."""
    record_bounds: NDArray[np.int64]
    """[channels, scenes + 1], see :class:`mim4d.data.index.Index`."""

    def check_units(
        self,
        records: str,
        times: NDArray[np.float64],
        samples: str,
        sample_times: NDArray[np.float64],
        faults: list[Fault],
    ) -> None:
        """Add a fault for each unit other than microseconds that a table's times seem to have.

        Args:
            records: Name of the table of records.
            times: [records].
            samples: Name of the table of samples.
            sample_times: [samples].
            faults: Faults found so far.
        """
        spans = {
            f"{channel} in {scene}": (self.record_bounds[c, s], self.record_bounds[c, s + 1])
            for c, channel in enumerate(self.channels)
            for s, scene in enumerate(self.scenes)
        }
        _check_units(records, times[self.records], spans, faults)
        spans = {scene: (self.sample_bounds[s], self.sample_bounds[s + 1]) for s, scene in enumerate(self.scenes)}
        _check_units(samples, sample_times[self.samples], spans, faults)


def _sort(
    scene_names: list[str],
    scene_of: NDArray[np.int64],
    sample_times: NDArray[np.float64],
    channel_names: list[str],
    sensor_of: NDArray[np.int64],
    sample_of: NDArray[np.int64],
    times: NDArray[np.float64],
) -> _Order:
    """Sort samples and records.

    Args:
        scene_names: [scenes], in order of the table.
        scene_of: [samples], row of each sample's scene.
        sample_times: [samples].
        channel_names: [sensors], in order of the table.
        sensor_of: [records], row of each record's sensor.
        sample_of: [records], row of each record's sample.
        times: [records].
    """
    scenes = sorted(scene_names)
    channels = sorted({channel_names[row] for row in np.unique(sensor_of)})
    channel_ranks = np.array([channels.index(name) if name in channels else -1 for name in channel_names])
    channel_of = channel_ranks[sensor_of]  # [records]
    sample_scenes = np.array([scenes.index(name) for name in scene_names])[scene_of]  # [samples]
    record_scenes = sample_scenes[sample_of]  # [records]
    samples = np.lexsort((sample_times, sample_scenes))  # the last key sorts first
    records = np.lexsort((times, record_scenes, channel_of))
    groups = (channel_of * len(scenes) + record_scenes)[records]  # [records], ascending
    edges = np.arange(len(channels))[:, None] * len(scenes) + np.arange(len(scenes) + 1)  # [channels, scenes + 1]
    return _Order(
        scenes,
        channels,
        samples,
        records,
        sample_bounds=np.searchsorted(sample_scenes[samples], range(len(scenes) + 1)),
        record_bounds=np.searchsorted(groups, edges),
    )


def _check_units(
    table: str, times: NDArray[np.float64], spans: dict[str, tuple[int, int]], faults: list[Fault]
) -> None:
    """Add a fault for each unit other than microseconds that the times of spans of rows seem to have."""
    found: dict[str, list[str]] = {}
    for name, (first, last) in spans.items():
        unit = unit_of(times[first:last])
        if unit:
            found.setdefault(unit, []).append(f"{name} from {times[first]:.16g} to {times[last - 1]:.16g}")
    for unit, where in found.items():
        problem = (
            f"timestamp: expected microseconds, the values look like {unit} (multiply by {1 / PER_MICROSECOND[unit]:g})"
        )
        faults.append(Fault(table, problem, "", where[0], len(where), "sensors in scenes"))


def _calibrations(table: Table, modalities: list[str]) -> tuple[NDArray[np.void], dict[str, str]]:
    """Convert ``calibrated_sensor``: its rows, and the problem of each lens that cannot be read, by row number as text.

    A lens is not reported as a fault, because its camera may not be used.
    """
    calibrations = np.zeros(len(table.rows), dtype=CALIBRATION)
    sensors = [row for row, modality in enumerate(modalities) if modality in ("camera", "lidar")]
    of_sensors = table.only(sensors)
    calibrations["translation"][sensors] = of_sensors.vectors("translation", 3)
    calibrations["rotation"][sensors] = of_sensors.rotations()
    cameras = [row for row, modality in enumerate(modalities) if modality == "camera"]
    of_cameras = table.only(cameras)
    expected = "a camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0"
    matrices = of_cameras.column("camera_intrinsic", _is_camera_matrix, expected, np.eye(3))
    lens_faults = {}
    for row, record, matrix in zip(cameras, of_cameras.rows, matrices, strict=True):
        calibrations[row]["intrinsics"] = matrix
        try:
            calibrations[row]["lens"], coefficients = parse_lens(record)
            calibrations[row]["distortion"][: len(coefficients)] = coefficients
        except ValueError as error:
            lens_faults[str(row)] = str(error)
    return calibrations, lens_faults


def _is_flag(value: Any) -> bool:
    return type(value) in (bool, int) and value in (0, 1)


def _is_size(value: Any) -> bool:
    return is_number(value) and value == int(value) and 1 <= value <= LARGEST_IMAGE


def _is_file(value: Any) -> bool:
    return is_name(value) and not _OUTSIDE.search(value) and len(value.encode()) <= LONGEST_NAME


def _is_camera_matrix(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 3 and all(is_vector(row, 3, 1e6) for row in value)):
        return False
    return value[0][0] > 0 and value[1][1] > 0 and value[2] == [0, 0, 1]
