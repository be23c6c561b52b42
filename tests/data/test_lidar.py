import numpy as np
import pytest

from mim4d.data.lidar import read_points
from mim4d.errors import BadDataError


def test_points_that_are_not_finite_are_dropped(tmp_path):
    points = np.arange(20, dtype="<f4").reshape(4, 5)
    points[1, 2], points[2, 0], points[3, 4] = np.nan, np.inf, np.nan  # an odd ring number is no reason
    points.tofile(tmp_path / "sweep.pcd.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "sweep.pcd.bin"), [[0, 1, 2], [15, 16, 17]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (bytes(30), "30 bytes are not a whole number of points of 5 floats"),
        (np.full(10, np.nan, dtype="<f4").tobytes(), "no finite point"),
    ],
)
def test_a_broken_sweep_is_named(tmp_path, content, message):
    path = tmp_path / "sweep.pcd.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadDataError, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)
