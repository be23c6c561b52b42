"""The tables of a root in nuScenes format: read strictly, column by column, and turned into compact arrays.

What cannot be right is named by table, row and column before anything is read by it.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .lenses import COEFFICIENTS, parse_lens

LIDAR = "LIDAR_TOP"
"""nuScenes' LiDAR."""

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

FARTHEST = 1e9
"""Metres; positions beyond it are no positions on earth."""
LARGEST_IMAGE = 100_000
"""Pixels along a side."""
LONGEST_NAME = 1000
"""Bytes of a file name."""

_MISSING = object()
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


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


@dataclass(frozen=True)
class Fault:
    """One kind of fault: a column of a table that has values which cannot be."""

    table: str
    """File name, such as ``sample_data.json``."""
    problem: str
    """The column and what was expected; the same for all rows of this kind."""
    where: str = ""
    """The first row: its number, counted from 0, and token."""
    found: str = ""
    """What the first row has instead."""
    count: int = 1
    """How many rows, or whatever ``unit`` counts."""
    unit: str = "rows"

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{f'{self.where}, ' if self.where else ''}{self.problem}{found}"


class TablesError(UserError):
    """The tables have faults; the message names the first."""

    def __init__(self, folder: Path, faults: Sequence[Fault]) -> None:
        """Collect what is wrong with the tables in ``folder``, one fault or more."""
        super().__init__(folder, tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        folder, faults = self.args
        rows = f" ({faults[0].count} {faults[0].unit})" if faults[0].count > 1 else ""
        more = f"; {len(faults) - 1} more kinds of fault, see mim4d-data check" if len(faults) > 1 else ""
        return f"{folder / faults[0].table}: {faults[0]}{rows}{more}"


class Table:
    """A table's rows, asked column by column. Values that cannot be are noted as faults and replaced by a default."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        """Read a table; one that cannot be read is noted in ``faults`` and has no rows."""
        self.name, self._faults = path.name, faults
        self.rows: list[dict[str, Any]] = []
        try:
            self.rows = _read_rows(path)
        except ValueError as error:
            faults.append(Fault(path.name, str(error)))
        self.numbers: Sequence[int] = range(len(self.rows))
        """Where each row stands in the file."""
        self._tokens: dict[str, int] | None = None

    def only(self, rows: Sequence[int]) -> "Table":
        """The table with some of its rows."""
        part = object.__new__(Table)
        part.name, part._faults, part._tokens = self.name, self._faults, None
        part.rows, part.numbers = [self.rows[i] for i in rows], [self.numbers[i] for i in rows]
        return part

    def column(self, name: str, good: Callable[[Any], bool], expected: str, default: Any) -> list[Any]:
        """The values of a column, one per row.

        Args:
            name: Of the column.
            good: Whether a value can be.
            expected: What ``good`` accepts, for the message.
            default: In the place of a value that cannot be.
        """
        values = [row.get(name, _MISSING) for row in self.rows]
        bad = [i for i, value in enumerate(values) if value is _MISSING or not good(value)]
        if bad:
            self.fault(bad, f"{name}: expected {expected}", shown(values[bad[0]]))
        for i in bad:
            values[i] = default
        return values

    def tokens(self) -> dict[str, int]:
        """The row of each token."""
        if self._tokens is None:
            values = self.column("token", _is_token, "a text that is not empty", "")
            self._tokens = {}
            twice = [i for i, token in enumerate(values) if self._tokens.setdefault(token, i) != i and token]
            if twice:
                self.fault(
                    twice, "token: expected one row per token", f"row {self._tokens[values[twice[0]]]} has it too"
                )
        return self._tokens

    def refer(self, name: str, other: "Table") -> NDArray[np.int64]:
        """The rows of ``other`` whose tokens stand in a column."""
        tokens = other.tokens()
        expected = f"a token of {other.name}"
        column = self.column(name, lambda value: isinstance(value, str) and value in tokens, expected, None)
        return np.array([tokens.get(token, 0) for token in column], dtype=np.int64)

    def texts(self, name: str) -> list[str]:
        """Names: text without control characters."""
        return self.column(name, is_name, "a name without control characters", "")

    def vectors(self, name: str, length: int) -> NDArray[np.float64]:
        """Metres, [rows, length]."""
        expected = f"{length} numbers of at most {FARTHEST:.0e}"
        values = self.column(name, lambda value: is_vector(value, length), expected, [0.0] * length)
        return np.array(values, dtype=np.float64).reshape(-1, length)

    def rotations(self, name: str = "rotation") -> NDArray[np.float64]:
        """Quaternions (w, x, y, z) of any length but 0, [rows, 4]."""
        values = self.column(name, is_rotation, "a quaternion (w, x, y, z) that is not zero", [1.0, 0.0, 0.0, 0.0])
        return np.array(values, dtype=np.float64).reshape(-1, 4)

    def times(self) -> NDArray[np.float64]:
        """The timestamps, [rows], not yet rounded."""
        values = self.column("timestamp", _is_time, "a number of microseconds", 0)
        return np.array(values, dtype=np.float64)

    def fault(self, bad: Sequence[int], problem: str, found: str) -> None:
        """Note a fault of some rows."""
        token = self.rows[bad[0]].get("token", _MISSING)
        where = f"row {self.numbers[bad[0]]}" + ("" if token is _MISSING else f" (token {shown(token)})")
        self._faults.append(Fault(self.name, problem, where, found, len(bad)))


def build_tables(root: Path, version: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the tables.

    Returns:
        What is small (names and bounds, for JSON) and the arrays, as :class:`mim4d.data.index.Index` describes them.

    Raises:
        TablesError: If a table is missing, is no table, or has values that cannot be.
        UserError: If the devkit, which knows the official splits, is not installed.
    """
    folder = root / version
    faults: list[Fault] = []

    def stop_at_faults() -> None:
        if faults:
            raise TablesError(folder, faults)

    names = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
    scene, sample, data, pose, calibration, sensor = (Table(folder / f"{name}.json", faults) for name in names)
    splits = _splits(folder, faults)
    stop_at_faults()
    for table in (scene, sample, data, pose, calibration, sensor):
        table.tokens()
    stop_at_faults()

    scene_names = scene.texts("name")
    _check_unique(scene, "name", scene_names)
    channels_of, modality_of = sensor.texts("channel"), [name.lower() for name in sensor.texts("modality")]
    sensor_of = calibration.refer("sensor_token", sensor)
    calibration_of = data.refer("calibrated_sensor_token", calibration)
    stop_at_faults()
    modalities: dict[str, str] = {}
    for row, (channel, modality) in enumerate(zip(channels_of, modality_of, strict=True)):
        if modalities.setdefault(channel, modality) != modality:
            sensor.fault([row], f"modality: expected that of the other rows of {channel}", shown(modality))

    # Radar and all else stay out: nothing of theirs is read, so nothing is wrong with it.
    known = {row for row, modality in enumerate(modality_of) if modality in ("camera", "lidar")}
    kept_calibrations = [row for row, s in enumerate(sensor_of) if s in known]
    kept = np.flatnonzero(np.isin(calibration_of, kept_calibrations))
    data, calibration_of = data.only(kept.tolist()), calibration_of[kept]
    if not len(kept):
        faults.append(Fault(data.name, "expected records of a sensor whose modality is camera or lidar", "", "none"))
    stop_at_faults()
    sample_of, pose_of = data.refer("sample_token", sample), data.refer("ego_pose_token", pose)
    scene_of = sample.refer("scene_token", scene)
    sensor_rows = sensor_of[calibration_of]
    is_camera = np.array([modality_of[row] == "camera" for row in sensor_rows])
    used, pose_of = np.unique(pose_of, return_inverse=True)
    pose = pose.only(used.tolist())

    sample_times, times = sample.times(), data.times()
    files = data.column("filename", _is_file, "a file's path inside the root, without ..", "")
    key_frames = data.column("is_key_frame", _is_flag, "true or false", False)
    images = data.only(np.flatnonzero(is_camera).tolist())
    expected = f"pixels, a whole number from 1 to {LARGEST_IMAGE}"
    sizes = np.zeros((len(data.rows), 2), dtype=np.int64)
    sizes[is_camera] = np.transpose([images.column(name, _is_size, expected, 1) for name in ("height", "width")])
    translations, rotations = pose.vectors("translation", 3), pose.rotations()
    calibrations, lens_faults = _calibrations(calibration, [modality_of[row] for row in sensor_of])
    stop_at_faults()

    scenes = sorted(scene_names)
    scene_rank = np.array([scenes.index(name) for name in scene_names])
    sample_scenes = scene_rank[scene_of]
    order = np.lexsort((sample_times, sample_scenes))
    sample_rank = np.argsort(order)
    sample_scenes = sample_scenes[order]
    channels = sorted({channels_of[row] for row in sensor_rows})
    channel_of = np.array([channels.index(n) if n in channels else -1 for n in channels_of])[sensor_rows]
    record_scenes = scene_rank[scene_of][sample_of]
    in_order = np.lexsort((times, record_scenes, channel_of))
    groups = (channel_of * len(scenes) + record_scenes)[in_order]
    edges = np.arange(len(channels))[:, None] * len(scenes) + np.arange(len(scenes) + 1)
    record_bounds, sample_bounds = (
        np.searchsorted(groups, edges),
        np.searchsorted(sample_scenes, range(len(scenes) + 1)),
    )
    in_scenes = {
        f"{channel} in {name}": (record_bounds[c, s], record_bounds[c, s + 1])
        for c, channel in enumerate(channels)
        for s, name in enumerate(scenes)
    }
    _check_unit(data.name, times[in_order], in_scenes, faults)
    in_scenes = {name: (sample_bounds[s], sample_bounds[s + 1]) for s, name in enumerate(scenes)}
    _check_unit(sample.name, sample_times[order], in_scenes, faults)
    stop_at_faults()

    file_names = [name.encode() for name in files]
    records = np.zeros(len(data.rows), dtype=record_type(max(map(len, file_names))))
    records["time"] = np.rint(times)
    records["translation"], records["rotation"] = translations[pose_of], rotations[pose_of]
    records["calibration"], records["size"], records["file"] = calibration_of, sizes, file_names
    records["sample"] = np.where(np.array(key_frames, dtype=bool), sample_rank[sample_of], -1)
    meta = {
        "scenes": scenes,
        "channels": channels,
        "lidars": [channel for channel in channels if modalities[channel] == "lidar"],
        "splits": splits,
        "lens_faults": lens_faults,
        "record_bounds": record_bounds.tolist(),
        "sample_bounds": sample_bounds.tolist(),
    }
    samples = np.rint(sample_times[order]).astype(np.int64)
    return meta, {"records": records[in_order], "calibrations": calibrations, "samples": samples}


def open_devkit(root: Path, version: str) -> Any:
    """The root, opened by the nuscenes-devkit.

    Raises:
        UserError: If the devkit is not installed or cannot open the root.
    """
    try:
        from nuscenes.nuscenes import NuScenes  # here, not above: it takes seconds and is an extra
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error
    for path in sorted((root / version).glob("*.json")):
        if path.is_file() and _first_bytes(path) in (b"\xef\xbb", b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the nuscenes-devkit needs UTF-8 without a byte order mark: save the table so")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # the devkit asserts, indexes and raises bare Exceptions on a broken root
        raise UserError(
            f"the nuscenes-devkit cannot open {root / version} ({type(error).__name__}: {error}): "
            "is the download complete?"
        ) from error


def shown(value: Any, most: int = 60) -> str:
    """A table's value for a message: JSON in printable ASCII, cut where it is long."""
    if value is _MISSING:
        return "nothing"
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_name(value: Any) -> bool:
    """Whether a value is a text, not empty, that can be printed in one line."""
    return isinstance(value, str) and value.strip() != "" and not _CONTROL.search(value)


def is_vector(value: Any, length: int, limit: float = FARTHEST) -> bool:
    """Whether a value is a list of ``length`` finite numbers of at most ``limit``."""
    return isinstance(value, list) and len(value) == length and all(is_number(number, limit) for number in value)


def is_number(value: Any, limit: float = FARTHEST) -> bool:
    """Whether a value is a finite number of at most ``limit``."""
    return type(value) in (int, float) and abs(value) <= limit


def is_rotation(value: Any) -> bool:
    """Whether a value is a quaternion that can be brought to length 1."""
    return is_vector(value, 4, 1e6) and sum(part * part for part in value) > 1e-12


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_time(value: Any) -> bool:
    return is_number(value, 9e18)


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


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON table, in any of JSON's encodings.

    Raises:
        ValueError: If it is no table; the message says why.
    """
    rows = _read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of rows, found {shown(rows)}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number}: expected an object, found {shown(row)}")
    return rows


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError("no such file: is the download complete?")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ValueError("not a table (nested too deeply)") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON (byte {error.start} is not {error.encoding})") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


def _check_unique(table: Table, column: str, values: list[str]) -> None:
    first: dict[str, int] = {}
    twice = [row for row, value in enumerate(values) if first.setdefault(value, row) != row]
    if twice:
        table.fault(twice, f"{column}: expected another in every row", f"{shown(values[twice[0]])} again")


def _calibrations(table: Table, modalities: list[str]) -> tuple[NDArray[np.void], dict[str, str]]:
    """The rows, and what is wrong with the lens of some; they may be of cameras that nobody asks for."""
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


PER_MICROSECOND = {"seconds": 1e-6, "milliseconds": 1e-3, "nanoseconds": 1e3}
"""Other units of time that tables come in."""


def unit_of(times: NDArray[np.float64]) -> str | None:
    """The unit that a sensor's sorted timestamps [N] seem to be in.

    A unit is believed if it makes the usual step last from 1 ms to a minute, and the date one of this century. Times
    need not be dates; then only steps that are too short or too long for microseconds tell another unit.

    Returns:
        None for microseconds, and where one time alone cannot tell.
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return None
    step, last = float(np.median(steps)), float(times[-1])
    for unit, per_microsecond in PER_MICROSECOND.items():
        seconds = last / per_microsecond / 1e6
        if (
            9e8 < seconds < 4.2e9
            and 1e3 <= step / per_microsecond <= 6e7
            and not (step >= 1e3 and 9e14 < last < 4.2e15)
        ):
            return unit
    if 1e3 <= step <= 6e7 or 9e14 < last < 4.2e15:
        return None
    return "nanoseconds" if step > 6e7 else "milliseconds" if step >= 10 else "seconds"


def _check_unit(table: str, times: NDArray[np.float64], spans: dict[str, tuple[int, int]], faults: list[Fault]) -> None:
    """Note a fault for each unit that the times of spans of rows are in, microseconds apart."""
    found: dict[str, list[str]] = {}
    for name, (first, last) in spans.items():
        unit = unit_of(times[first:last])
        if unit:
            found.setdefault(unit, []).append(f"{name} from {times[first]:.16g} to {times[last - 1]:.16g}")
    for unit, where in found.items():
        problem = (
            f"timestamp: expected microseconds, these look like {unit} (multiply by {1 / PER_MICROSECOND[unit]:g})"
        )
        faults.append(Fault(table, problem, "", where[0], len(where), "sensors in scenes"))


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _splits(folder: Path, faults: list[Fault]) -> dict[str, list[str]]:
    """The devkit's splits, and those of the root's own ``splits.json`` in the devkit's format."""
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error

    splits = {name: list(scenes) for name, scenes in create_splits_scenes().items()}
    path = folder / "splits.json"
    if not path.exists():
        return splits
    expected = 'expected {"split": ["scene name", ...], ...}'
    try:
        own = _read_json(path)
    except ValueError as error:
        faults.append(Fault(path.name, f"{error}; {expected}"))
        return splits
    if not isinstance(own, dict):
        faults.append(Fault(path.name, expected, "", shown(own)))
        return splits
    bad = [
        name
        for name, scenes in own.items()
        if not is_name(name) or not isinstance(scenes, list) or not all(map(is_name, scenes))
    ]
    if bad:
        faults.append(Fault(path.name, expected, f"split {shown(bad[0])}", shown(own[bad[0]]), len(bad)))
    return splits | {name: scenes for name, scenes in own.items() if name not in bad}
