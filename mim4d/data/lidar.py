"""LiDAR sweeps from .pcd.bin files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDataError
from .files import read_bytes

FLOATS_PER_POINT = 5
"""x, y, z (metres, sensor frame), intensity, ring."""


def read_points(path: Path) -> NDArray[np.float32]:
    """Read a sweep.

    Returns:
        [N, 3] float32: points in the LiDAR's frame, metres. Points with NaN or infinity are dropped, all others are
        kept: the returns from the car itself too.

    Raises:
        BadDataError: If the file is missing or empty, is not a whole number of points, or has no finite point.
    """
    data = read_bytes(path)
    point_bytes = 4 * FLOATS_PER_POINT
    if len(data) % point_bytes:
        raise BadDataError(
            str(path), f"{len(data)} bytes are not a whole number of points of {FLOATS_PER_POINT} floats each"
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, FLOATS_PER_POINT)[:, :3]
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        raise BadDataError(str(path), "the sweep has no finite point")
    return points
