"""Read the tables of a root in nuScenes format, column by column, into compact arrays.

Every value is checked. A value that cannot be right is reported with its table, row and column.
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

FARTHEST = 1e9
"""Largest coordinate of a position, metres."""
LARGEST_IMAGE = 100_000
"""Largest height and width of an image, pixels."""
LONGEST_NAME = 1000
"""Largest number of bytes of a file name."""

_MISSING = object()
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
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


@dataclass(frozen=True)
class Fault:
    """One kind of fault: a column of a table with values that cannot be right."""

    table: str
    """File name of the table, such as ``sample_data.json``."""
    problem: str
    """Name of the column and what was expected; the same for all rows of this kind."""
    where: str = ""
    """The first row with this fault: its number, from 0, and its token."""
    found: str = ""
    """The value in the first row."""
    count: int = 1
    """Number of rows with this fault, or of what ``unit`` names."""
    unit: str = "rows"

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{f'{self.where}, ' if self.where else ''}{self.problem}{found}"


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


class Table:
    """The rows of a table, read column by column. Bad values are added to the faults and replaced by a default."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        """Read a table. If that fails, a fault is added and the table has no rows."""
        self.name, self._faults = path.name, faults
        self.rows: list[dict[str, Any]] = []
        try:
            self.rows = _read_rows(path)
        except ValueError as error:
            faults.append(Fault(path.name, str(error)))
        self.numbers: Sequence[int] = range(len(self.rows))
        """Number of each row in the file."""
        self._tokens: dict[str, int] | None = None

    def only(self, rows: Sequence[int]) -> "Table":
        """Select rows of the table."""
        part = object.__new__(Table)
        part.name, part._faults, part._tokens = self.name, self._faults, None
        part.rows, part.numbers = [self.rows[i] for i in rows], [self.numbers[i] for i in rows]
        return part

    def column(self, name: str, good: Callable[[Any], bool], expected: str, default: Any) -> list[Any]:
        """Read the values of a column, one per row.

        Args:
            name: Name of the column.
            good: Function that returns whether a value is valid.
            expected: What ``good`` accepts, for the message.
            default: Replaces an invalid value.
        """
        values = [row.get(name, _MISSING) for row in self.rows]
        bad = [i for i, value in enumerate(values) if value is _MISSING or not good(value)]
        if bad:
            self.fault(bad, f"{name}: expected {expected}", shown(values[bad[0]]))
        for i in bad:
            values[i] = default
        return values

    def tokens(self) -> dict[str, int]:
        """Map the token of each row to its number."""
        if self._tokens is None:
            values = self.column("token", _is_token, "a text that is not empty", "")
            self._tokens = {}
            twice = [i for i, token in enumerate(values) if self._tokens.setdefault(token, i) != i and token]
            if twice:
                first = self._tokens[values[twice[0]]]
                self.fault(twice, "token: expected one row per token", f"it in row {first} too")
        return self._tokens

    def refer(self, name: str, other: "Table") -> NDArray[np.int64]:
        """Read a column of tokens of ``other`` as row numbers of ``other``, [rows]."""
        tokens = other.tokens()
        expected = f"a token of {other.name}"
        column = self.column(name, lambda value: isinstance(value, str) and value in tokens, expected, None)
        return np.array([tokens.get(token, 0) for token in column], dtype=np.int64)

    def texts(self, name: str) -> list[str]:
        """Read a column of names: text without control characters."""
        return self.column(name, is_name, "a name without control characters", "")

    def vectors(self, name: str, length: int) -> NDArray[np.float64]:
        """Read a column of vectors in metres, [rows, length]."""
        expected = f"{length} numbers of at most {FARTHEST:.0e}"
        values = self.column(name, lambda value: is_vector(value, length), expected, [0.0] * length)
        return np.array(values, dtype=np.float64).reshape(-1, length)

    def rotations(self, name: str = "rotation") -> NDArray[np.float64]:
        """Read a column of quaternions (w, x, y, z) of any length except 0, [rows, 4]."""
        values = self.column(name, is_rotation, "a quaternion (w, x, y, z) that is not zero", [1.0, 0.0, 0.0, 0.0])
        return np.array(values, dtype=np.float64).reshape(-1, 4)

    def times(self) -> NDArray[np.float64]:
        """Read the timestamps, [rows], without rounding."""
        values = self.column("timestamp", _is_time, "a number of microseconds", 0)
        return np.array(values, dtype=np.float64)

    def fault(self, bad: Sequence[int], problem: str, found: str) -> None:
        """Add a fault of some rows."""
        token = self.rows[bad[0]].get("token", _MISSING)
        where = f"row {self.numbers[bad[0]]}" + ("" if token is _MISSING else f" (token {shown(token)})")
        self._faults.append(Fault(self.name, problem, where, found, len(bad)))


def build_tables(root: Path, version: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the tables of a version into the fields of an index.

    Returns:
        The small fields of :class:`mim4d.data.index.Index` (names and bounds, as values for JSON), and its arrays.

    Raises:
        TablesError: If a table is missing, is not a table, or has values that cannot be right.
        UserError: If the nuscenes-devkit, which holds the official splits, is not installed.
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
            sensor.fault([row], f"modality: expected the same in all rows of {channel}", shown(modality))

    # Radar and other sensors are not read, so their rows are not checked.
    known = {row for row, modality in enumerate(modality_of) if modality in ("camera", "lidar")}
    kept_calibrations = [row for row, s in enumerate(sensor_of) if s in known]
    kept = np.flatnonzero(np.isin(calibration_of, kept_calibrations))
    data, calibration_of = data.only(kept.tolist()), calibration_of[kept]
    if not len(kept):
        faults.append(Fault(data.name, "expected records of a sensor whose modality is camera or lidar", "", "none"))
    stop_at_faults()
    sample_of, pose_of = data.refer("sample_token", sample), data.refer("ego_pose_token", pose)
    scene_of = sample.refer("scene_token", scene)
    sensor_rows = sensor_of[calibration_of]  # [records]
    is_camera = np.array([modality_of[row] == "camera" for row in sensor_rows])  # [records]
    used, pose_of = np.unique(pose_of, return_inverse=True)  # [poses], [records]
    pose = pose.only(used.tolist())

    sample_times, times = sample.times(), data.times()
    files = data.column("filename", _is_file, "a file's path inside the root, without ..", "")
    key_frames = data.column("is_key_frame", _is_flag, "true or false", False)
    images = data.only(np.flatnonzero(is_camera).tolist())
    expected = f"pixels, a whole number from 1 to {LARGEST_IMAGE}"
    sizes = np.zeros((len(data.rows), 2), dtype=np.int64)  # [records, 2]
    sizes[is_camera] = np.transpose([images.column(name, _is_size, expected, 1) for name in ("height", "width")])
    translations, rotations = pose.vectors("translation", 3), pose.rotations()
    calibrations, lens_faults = _calibrations(calibration, [modality_of[row] for row in sensor_of])
    stop_at_faults()

    scenes = sorted(scene_names)
    scene_rank = np.array([scenes.index(name) for name in scene_names])  # [scenes]
    sample_scenes = scene_rank[scene_of]  # [samples]
    order = np.lexsort((sample_times, sample_scenes))  # [samples], by scene, then by time
    sample_rank = np.argsort(order)  # [samples], the inverse of order
    sample_scenes = sample_scenes[order]
    channels = sorted({channels_of[row] for row in sensor_rows})
    channel_of = np.array([channels.index(n) if n in channels else -1 for n in channels_of])[sensor_rows]  # [records]
    record_scenes = scene_rank[scene_of][sample_of]  # [records]
    in_order = np.lexsort((times, record_scenes, channel_of))  # [records], by channel, then by scene, then by time
    groups = (channel_of * len(scenes) + record_scenes)[in_order]  # [records]
    edges = np.arange(len(channels))[:, None] * len(scenes) + np.arange(len(scenes) + 1)  # [channels, scenes + 1]
    record_bounds = np.searchsorted(groups, edges)  # [channels, scenes + 1]
    sample_bounds = np.searchsorted(sample_scenes, range(len(scenes) + 1))  # [scenes + 1]
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
    """Open a root with the nuscenes-devkit.

    Raises:
        UserError: If the devkit is not installed or cannot open the root.
    """
    try:
        from nuscenes.nuscenes import NuScenes  # an extra, and slow to import
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error
    for path in sorted((root / version).glob("*.json")):
        if path.is_file() and _first_bytes(path) in (b"\xef\xbb", b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the nuscenes-devkit expects UTF-8 without a byte order mark: convert the table")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # a broken root makes the devkit raise errors of any type
        raise UserError(
            f"the nuscenes-devkit cannot open {root / version} ({type(error).__name__}: {error}): "
            "is the download complete?"
        ) from error


def shown(value: Any, most: int = 60) -> str:
    """Format a value of a table for a message: as JSON in printable ASCII, shortened to ``most`` characters.

    >>> shown(["a", None]), shown("x" * 100, most=8)
    ('["a", null]', '"xxxx...')
    """
    if value is _MISSING:
        return "nothing"
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_name(value: Any) -> bool:
    """Whether a value is text that is not blank and can be printed in one line."""
    return isinstance(value, str) and value.strip() != "" and not _CONTROL.search(value)


def is_vector(value: Any, length: int, limit: float = FARTHEST) -> bool:
    """Whether a value is a list of ``length`` finite numbers of magnitude at most ``limit``."""
    return isinstance(value, list) and len(value) == length and all(is_number(number, limit) for number in value)


def is_number(value: Any, limit: float = FARTHEST) -> bool:
    """Whether a value is a finite number of magnitude at most ``limit``.

    >>> is_number(1.5), is_number(float("nan")), is_number(True), is_number(3, limit=2)
    (True, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= limit


def is_rotation(value: Any) -> bool:
    """Whether a value is a quaternion that can be normalised."""
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
    """Read the rows of a JSON table, in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: If the file is not a table.
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
        raise ValueError(f"cannot read the table ({error.strerror})") from error
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
        table.fault(twice, f"{column}: expected different values in all rows", f"{shown(values[twice[0]])} twice")


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


PER_MICROSECOND = {"seconds": 1e-6, "milliseconds": 1e-3, "nanoseconds": 1e3}
"""Other units of time that tables may use, per microsecond."""


def unit_of(times: NDArray[np.float64]) -> str | None:
    """Guess the unit of the sorted timestamps of a sensor.

    A unit fits if the median step is between 1 ms and 1 min in it and the last time is a date in 1998 .. 2103. Times
    need not be dates; then only steps that are too short or too long for microseconds show another unit.

    Args:
        times: [times] sorted.

    Returns:
        A key of :data:`PER_MICROSECOND`; None for microseconds and for a single time, which shows no unit.

    >>> start, half_seconds = 1_532_402_927, np.arange(4) / 2
    >>> [unit_of((start + half_seconds) * factor) for factor in (1, 1e3, 1e6, 1e9)]
    ['seconds', 'milliseconds', None, 'nanoseconds']
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


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _splits(folder: Path, faults: list[Fault]) -> dict[str, list[str]]:
    """Read the splits of the devkit, and those of the root in ``splits.json`` (in the format of the devkit)."""
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
