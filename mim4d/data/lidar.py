"""Read LiDAR sweeps from float32 rows (.bin, nuScenes' .pcd.bin), .pcd and .npy; the content decides the format."""

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDataError
from .files import read_bytes
from .pcd import SIGNATURES, parse_pcd

FLOATS_PER_POINT = 5
"""As in nuScenes: x, y, z (metres, in the LiDAR's frame), intensity, ring."""
FARTHEST = 10_000.0
"""Longer than the range of any LiDAR, metres: a coordinate beyond it marks a missing return or is no coordinate."""
MOST_ODD = 0.01
"""Fraction of a sweep that may have implausible coordinates before the whole file is refused."""
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
"""First bytes of other formats. They are four or more, since a sweep may start with any two or three bytes."""
NPY = b"\x93NUMPY"
SAMPLE = 1 << 13
"""Number of values from which the number of floats per point is estimated."""
LEAST = 200
"""Fewest values for that estimate."""


def read_points(path: Path, floats: int = FLOATS_PER_POINT) -> NDArray[np.float32]:
    """Read a sweep.

    Args:
        path: The file.
        floats: Number of float32 values per point in a file without a header; x, y and z come first.

    Returns:
        [P, 3] float32: points in the LiDAR's frame, metres, with the returns from the car itself. Points without a
        return (NaN, infinity, or beyond :data:`FARTHEST`) are dropped.

    Raises:
        BadDataError: If the file is missing, empty or of another format, has another number of floats per point, holds
            other numbers than coordinates in metres, or has no point with a return.
    """
    data = read_bytes(path)
    try:
        points = _parse(data, floats)
        _check_coordinates(points)
    except ValueError as error:
        raise BadDataError(str(path), " ".join(str(error).split())) from None
    with np.errstate(invalid="ignore"):
        returned = (np.abs(points) <= FARTHEST).all(axis=1)  # [P], also false for NaN
    if len(points) and not returned.any():
        raise BadDataError(str(path), "the sweep has no finite point")
    return np.ascontiguousarray(points[returned], dtype=np.float32)


def _parse(data: bytes, floats: int) -> NDArray[np.floating]:
    """Parse x, y and z of all points, [P, 3].

    Raises:
        ValueError: If the content is not a sweep of ``floats`` float32 per point.
    """
    if data.startswith(SIGNATURES):
        return parse_pcd(data)
    if data.startswith(NPY):
        return _parse_npy(data)
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            raise ValueError(f"expected float32 rows, .pcd or .npy, found {name}")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:256]):
        raise ValueError("expected float32 rows, .pcd or .npy, found text")
    if _is_float64(data):
        raise ValueError("expected float32 values, found float64")
    not_whole = f"{len(data)} bytes are not a whole number of points of {floats} float32 each"
    if len(data) % 4:
        raise ValueError(not_whole)
    values = np.frombuffer(data, dtype="<f4")
    other = _other_layout(values, floats)
    hint = f"; the content looks like {other} per point: set `lidar_floats` to {other}" if other else ""
    if len(values) % floats:
        raise ValueError(not_whole + hint)
    if other:
        raise ValueError(f"expected {floats} float32 per point{hint}")
    return values.reshape(-1, floats)[:, :3]


def _parse_npy(data: bytes) -> NDArray[np.floating]:
    """Parse the first three columns of an array, [P, 3]. No memory is allocated for points that are not in the file."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception:  # numpy parses the header as Python code
        raise ValueError("the .npy header is damaged") from None
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 3 or dtype.kind != "f":
        raise ValueError(f"expected floats of shape [points, 3 or more], found {dtype} {list(shape)}")
    start, expected = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(data) - start < expected:
        raise ValueError(f"expected {expected} bytes after the header, found {len(data) - start}")
    table = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")
    return table[:, :3]


def _is_float64(data: bytes) -> bool:
    """Return whether the content has plausible values as float64, but not as float32."""
    with np.errstate(invalid="ignore", over="ignore"):
        as_64, as_32 = (
            np.abs(np.frombuffer(data, dtype=kind, count=min(len(data), 4 * SAMPLE) // 8 * 8 // size))
            for kind, size in (("<f8", 8), ("<f4", 4))
        )
        plausible_64, plausible_32 = (
            float(((x == 0) | ((x > 1e-9) & (x < 1e9))).mean()) if len(x) else 0.0 for x in (as_64, as_32)
        )
    return plausible_64 > 0.99 and plausible_32 < 0.95


def _check_coordinates(points: NDArray[np.floating]) -> None:
    """Check that points [P, 3] are coordinates in metres in the LiDAR's frame.

    Raises:
        ValueError: If more than :data:`MOST_ODD` of them cannot be.
    """
    with np.errstate(invalid="ignore"):
        size = np.abs(points).max(axis=1, initial=0.0)  # [P]
        finite = np.isfinite(size)
        far = float((size[finite] > FARTHEST).mean()) if finite.any() else 0.0
        # Values other than 0 that are smaller than any rounding error come from bits of another type.
        tiny = float(((points != 0) & (np.abs(points) < 1e-30)).mean()) if len(points) else 0.0
    if tiny > MOST_ODD:
        raise ValueError("expected float32 coordinates, found other numbers (float64, integers or another byte order?)")
    if far > MOST_ODD:
        raise ValueError(
            f"{100 * far:.0f} % of the points are farther than {FARTHEST / 1000:.0f} km: expected float32 coordinates "
            "in metres in the LiDAR's frame"
        )


def _other_layout(values: NDArray[np.float32], floats: int) -> int | None:
    """Estimate the number of floats per point; None if it may be ``floats``.

    Coordinates, intensities and rings are distributed differently. If the values are arranged in rows of the true
    length, each column holds one of these quantities; any other length mixes them in all columns. So the columns of the
    true length explain most of the variance of the values, for any order of the points.

    >>> rows = np.stack([np.linspace(-50, 50, 400), np.full(400, 1.7), np.full(400, -0.2), np.arange(400) % 32], 1)
    >>> _other_layout(rows.astype(np.float32).ravel(), 5), _other_layout(rows.astype(np.float32).ravel(), 4)
    (4, None)
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
    # Half of the true length is wrong: its columns hold two quantities in turn. (Lengths that explain less than 0.45 of
    # the best decide nothing below, so this slow test skips them.)
    likely = [n for n in sorted(explained) if explained[n] > 0.45 * best]
    single = [n for n in likely if not any(_alternates(features, n, rows) for rows in (2, 3))]
    # A multiple of the true length is wrong: it explains no more than the true one.
    fitting = [
        n
        for n in single
        if explained[n] > 0.5 * best
        and not any(explained[part] > 0.9 * explained[n] for part in single if n % part == 0 and part < n)
    ]
    if floats in fitting or (not fitting and explained[floats] > 0.5 * best):
        return None
    return fitting[0] if fitting else max(explained, key=lambda n: explained[n])


def _alternates(features: list[NDArray[np.float64]], length: int, rows: int) -> bool:
    """Return whether all columns of rows of ``length`` values change their distribution every ``rows`` rows."""
    cycle = length * rows
    for place in range(length):
        columns = [feature[: len(feature) // cycle * cycle].reshape(-1, length)[:, place] for feature in features]
        if max(_explained(column, rows) for column in columns) < 0.05:
            return False
    return True


def _explained(feature: NDArray[np.float64], length: int) -> float:
    """Compute the fraction of a feature's variance that its column in rows of ``length`` explains beyond chance.

    Args:
        feature: [values], NaN where it is unknown.
        length: Number of columns.

    Returns:
        A fraction in 0 .. 1: adjusted eta squared, 1 - (1 - eta^2) (n - 1) / (n - length), of n known values.

    >>> _explained(np.array([0.0, 1.0] * 10), 2), _explained(np.array([0.0, 1.0] * 9), 3)
    (1.0, 0.0)
    """
    rows = feature[: len(feature) // length * length].reshape(-1, length)  # [rows, length]
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
