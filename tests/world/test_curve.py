import math

import numpy as np
import pytest

from mim4d.world.curve import Curve

WINDING = Curve((3.0, 4.0, 0.5), (30.0, 40.0, 30.0, 20.0), (0.0, 0.01, -0.02, 0.0))


def walked(curve: Curve, s: float, step: float = 1e-3) -> tuple[float, float, float]:
    """Follow the heading in small steps."""
    x, y, heading = curve.start
    gone = 0.0
    for length, curvature in zip(curve.lengths, curve.curvatures, strict=True):
        for _ in range(round(min(length, max(s - gone, 0.0)) / step)):
            middle = heading + 0.5 * step * curvature
            x, y, heading = x + step * math.cos(middle), y + step * math.sin(middle), heading + step * curvature
        gone += length
    return x, y, heading


@pytest.mark.parametrize("s", [0.0, 20.0, 70.0, 115.0])
def test_points_are_where_walking_ends(s):
    np.testing.assert_allclose(WINDING.point(s), walked(WINDING, s), atol=1e-5)


def test_locate_undoes_point():
    rng = np.random.default_rng(0)
    s, d = rng.uniform(-20, 140, 2000), rng.uniform(-12, 12, 2000)
    x, y, _ = WINDING.point(s, d)
    found_s, found_d = WINDING.locate(x, y)
    np.testing.assert_allclose(found_s, s, atol=1e-9)
    np.testing.assert_allclose(found_d, d, atol=1e-9)


def test_locate_finds_the_nearest_place():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-20, 130, 200), rng.uniform(-20, 100, 200)
    _, d = WINDING.locate(x, y)
    on_x, on_y, _ = WINDING.point(np.linspace(-100, 220, 64001))
    nearest = np.hypot(x[:, None] - on_x, y[:, None] - on_y).min(1)
    np.testing.assert_allclose(np.abs(d), nearest, atol=1e-3)


def test_offsets_are_to_the_left():
    x, y, heading = Curve((0.0, 0.0, 0.0), (10.0,), (0.0,)).point(4.0, 1.5)
    assert (float(x), float(y), float(heading)) == (4.0, 1.5, 0.0)


def test_ends_must_be_straight():
    with pytest.raises(ValueError, match="straight"):
        Curve((0.0, 0.0, 0.0), (10.0, 5.0), (0.0, 0.1))
