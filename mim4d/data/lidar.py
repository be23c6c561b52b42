"""LiDAR sweeps from files of float32 rows (.bin, nuScenes' .pcd.bin), .pcd and .npy, told apart by their content."""

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDataError
from .files import read_bytes
from .pcd import SIGNATURES, parse_pcd

FLOATS_PER_POINT = 5
"""nuScenes': x, y, z (metres, sensor frame), intensity, ring."""
FARTHEST = 10_000.0
"""No LiDAR measures as far, metres: a coordinate beyond it is a mark for no return, or no coordinate at all."""
MOST_ODD = 0.01
"""What fraction of a sweep may be farther, or closer to 0 than any measurement, before it is taken for misread."""
OTHER_FORMATS = {
    b"ply\n": "PLY",
    b"ply\r": "PLY",
    b"LASF": "LAS",
    b"PK\x03\x04": "ZIP or NPZ",
    b"\x1f\x8b\x08\x00": "gzip",
    b"\x1f\x8b\x08\x08": "gzip",
    b"\x89HDF": "HDF5",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
}
"""First bytes, four or more: the first coordinate of a sweep may begin with any two or three."""
NPY = b"\x93NUMPY"
SAMPLE = 1 << 13
"""Floats that are looked at to find how many belong to a point."""
LEAST = 200
"""Fewer floats than this tell nothing."""


def read_points(path: Path, floats: int = FLOATS_PER_POINT) -> NDArray[np.float32]:
    """Read a sweep.

    Args:
        path: The file.
        floats: How many float32 a point has if the file has no header; x, y and z come first.

    Returns:
        [N, 3] float32: points in the LiDAR's frame, metres. Points without a return (NaN, infinity, or farther than
        :data:`FARTHEST`) are dropped, all others are kept: the returns from the car itself too.

    Raises:
        BadDataError: If the file is missing or empty, is not of a format that is read, holds another number of floats
            per point or anything but coordinates in metres, or has no point with a return.
    """
    data = read_bytes(path)
    try:
        points = _parse(data, floats)
        _check_coordinates(points)
    except ValueError as error:
        raise BadDataError(str(path), " ".join(str(error).split())) from None
    with np.errstate(invalid="ignore"):
        returned = (np.abs(points) <= FARTHEST).all(axis=1)  # NaN neither
    if len(points) and not returned.any():
        raise BadDataError(str(path), "the sweep has no finite point")
    return np.ascontiguousarray(points[returned], dtype=np.float32)


def _parse(data: bytes, floats: int) -> NDArray[np.floating]:
    """x, y and z [N, 3] of all points.

    Raises:
        ValueError: Saying what is wrong with the content.
    """
    if data.startswith(SIGNATURES):
        return parse_pcd(data)
    if data.startswith(NPY):
        return _parse_npy(data)
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            raise ValueError(f"this is {name}; sweeps are read from float32 rows, .pcd and .npy")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:256]):
        raise ValueError("this is text; sweeps are read from float32 rows, .pcd and .npy")
    if _is_float64(data):
        raise ValueError("the numbers are float64; write float32")
    whole = f"{len(data)} bytes are not a whole number of points of {floats} float32 each"
    if len(data) % 4:
        raise ValueError(whole)
    values = np.frombuffer(data, dtype="<f4")
    other = _other_layout(values, floats)
    hint = f"; they look like {other} each: try `lidar_floats` {other}" if other else ""
    if len(values) % floats:
        raise ValueError(whole + hint)
    if other:
        raise ValueError(f"the points are not of {floats} float32 each{hint}")
    return values.reshape(-1, floats)[:, :3]


def _parse_npy(data: bytes) -> NDArray[np.floating]:
    """The first three columns of an array; no memory is taken for what only a header promises."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception:  # it is parsed as Python
        raise ValueError("the header of the .npy is damaged") from None
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 3 or dtype.kind != "f":
        raise ValueError(f"the array is {dtype} {list(shape)}; it must be floats [points, 3 or more]")
    start, whole = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(data) - start < whole:
        raise ValueError(f"{len(data) - start} bytes follow the header, which says {whole}")
    table = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")
    return table[:, :3]


def _is_float64(data: bytes) -> bool:
    """Whether the content makes sense as float64 and none as float32."""
    with np.errstate(invalid="ignore", over="ignore"):
        as_64, as_32 = (
            np.abs(np.frombuffer(data, dtype=kind, count=min(len(data), 4 * SAMPLE) // 8 * 8 // size))
            for kind, size in (("<f8", 8), ("<f4", 4))
        )
        sensible_64, sensible_32 = (
            float(((x == 0) | ((x > 1e-9) & (x < 1e9))).mean()) if len(x) else 0.0 for x in (as_64, as_32)
        )
    return sensible_64 > 0.99 and sensible_32 < 0.95


def _check_coordinates(points: NDArray[np.floating]) -> None:
    """Refuse numbers of another type, unit or frame.

    Raises:
        ValueError: If more than a few are no coordinates of returns.
    """
    with np.errstate(invalid="ignore"):
        size = np.abs(points).max(axis=1, initial=0.0)
        finite = np.isfinite(size)
        far = float((size[finite] > FARTHEST).mean()) if finite.any() else 0.0
        # Not 0, and too small for a rounding error of any measurement: bits of another type.
        tiny = float(((points != 0) & (np.abs(points) < 1e-30)).mean()) if len(points) else 0.0
    if tiny > MOST_ODD:
        raise ValueError("the numbers are no float32 coordinates (float64, integers or another byte order?)")
    if far > MOST_ODD:
        raise ValueError(
            f"{100 * far:.0f} % of the points are farther than {FARTHEST / 1000:.0f} km; they must be float32, in "
            "metres and in the LiDAR's own frame"
        )


def _other_layout(values: NDArray[np.float32], floats: int) -> int | None:
    """How many floats belong to a point, if not ``floats``; None where the content does not tell otherwise.

    The coordinates, intensities and rings of points are distributed differently. So the values that stand at the same
    place of their rows are alike if rows have their true length, while any other length mixes all kinds evenly. How
    much of the variance rows of some length explain shows which it is, whatever the order of the points.
    """
    start = max(0, len(values) - SAMPLE) // 2
    with np.errstate(invalid="ignore"):
        sample = values[start : start + SAMPLE].astype(np.float64)
    if len(sample) < LEAST:
        return None
    finite = np.isfinite(sample) & (np.abs(sample) < 1e30)
    clean = np.where(finite, sample, 0.0)
    features = [
        np.where(finite, feature, np.nan)
        for feature in (np.log(np.abs(clean) + 0.1), np.sign(clean), clean == np.round(clean))
    ]
    explained = {length: max(_explained(feature, length) for feature in features) for length in {*range(3, 11), floats}}
    best = max(explained.values())
    if best < max(0.02, 60 / len(sample)):
        return None
    # Half of the true length lays two kinds of values over each other at each place.
    single = [n for n in sorted(explained) if not any(_holds_several(features, n, rows) for rows in (2, 3))]
    # A multiple of it explains all that it does.
    fitting = [
        n
        for n in single
        if explained[n] > 0.5 * best
        and not any(explained[part] > 0.9 * explained[n] for part in single if n % part == 0 and part < n)
    ]
    if floats in fitting or (not fitting and explained[floats] > 0.5 * best):
        return None
    return fitting[0] if fitting else max(explained, key=lambda n: explained[n])


def _holds_several(features: list[NDArray[np.float64]], length: int, rows: int) -> bool:
    """Whether every place in rows of ``length`` holds other values in each of ``rows`` rows that follow each other."""
    cycle = length * rows
    for place in range(length):
        columns = [feature[: len(feature) // cycle * cycle].reshape(-1, length)[:, place] for feature in features]
        if max(_explained(column, rows) for column in columns) < 0.05:
            return False
    return True


def _explained(feature: NDArray[np.float64], length: int) -> float:
    """The fraction of a feature's variance, 0 .. 1, that the place in rows of ``length`` explains beyond chance."""
    rows = feature[: len(feature) // length * length].reshape(-1, length)
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    total = int(count.sum())
    if total <= 2 * length or not count.all():
        return 0.0
    rows = np.where(known, rows, 0.0)
    mean = rows.sum() / total
    whole = float((np.square(rows).sum()) - total * mean**2)
    if not whole > 1e-9 * total:
        return 0.0
    between = float((count * np.square(rows.sum(axis=0) / count - mean)).sum())
    chance = (length - 1) / (total - 1)
    return max(0.0, (between / whole - chance) / (1 - chance)) if math.isfinite(between) else 0.0
