"""Closed forms against walking along rays, and windows that lose nothing."""

import math

import numpy as np
import pytest

from mim4d.world.raycast import GROUND, SKY, cast
from mim4d.world.rig import LIDAR
from mim4d.world.shapes import Kind, Shapes, join, shape
from mim4d.world.views import Pinhole, Spinning, Sunlight, View
from tests.reference import raycast, solids

HALVES = {
    Kind.BOX: (1.2, 0.7, 0.9),
    Kind.PRISM: (1.5, 0.8, 0.6),
    Kind.ELLIPSOID: (1.0, 0.6, 0.8),
    Kind.CONE: (0.8, 0.8, 1.1),
    Kind.WHEEL: (0.7, 0.3, 0.7),
}
FORMS = {Kind.PRISM: (0.5, 0.2, 0.3), Kind.CONE: (0.3,)}
INSIDE = {
    Kind.BOX: solids.inside_box,
    Kind.PRISM: lambda p, half: solids.inside_prism(p, half, FORMS[Kind.PRISM]),
    Kind.ELLIPSOID: solids.inside_ellipsoid,
    Kind.CONE: lambda p, half: solids.inside_cone(p, half, FORMS[Kind.CONE][0]),
    Kind.WHEEL: solids.inside_wheel,
}


def camera(position: tuple[float, float, float], heading: float, size: tuple[int, int], focal: float) -> Pinhole:
    cos, sin = math.cos(heading), math.sin(heading)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]])  # columns: right, down, forward
    pose[:3, 3] = position
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])
    return Pinhole(size, intrinsics, pose)


@pytest.mark.parametrize("kind", list(HALVES), ids=lambda kind: kind.name)
def test_a_camera_meets_solids_where_walking_does(kind):
    center, yaw, half = (6.0, 1.0, 1.0), 0.7, HALVES[kind]
    view = camera((0.3, 0.2, 2.2), 0.1, (15, 21), 24.0)
    hits = cast(view, shape(kind, center, half, (1, 1, 1), yaw=yaw, form=FORMS.get(kind, ())), ground=False)
    directions = np.stack(view.rays().direction, axis=-1).astype(float)
    met = grazed = 0
    for row, column in np.ndindex(view.size):
        inside = lambda p: INSIDE[kind](solids.local(p, center, yaw), half)  # noqa: E731
        expected = solids.walk(inside, view.eye, directions[row, column], 3.5, 9.0)
        if math.isinf(expected):
            grazed += int(np.isfinite(hits.t[row, column]))  # a chord shorter than the walk's step
        else:
            met += 1
            assert hits.t[row, column] == pytest.approx(expected, abs=2e-4)
            assert hits.shape[row, column] == 0
    assert met > 20
    assert grazed <= 1


def test_a_ring_is_flat_and_open():
    view = camera((0.0, -5.0, 0.5), math.pi / 2, (40, 40), 100.0)  # looks along +y at the ring's side
    hits = cast(view, shape(Kind.RING, (0, 0, 0.5), (0.6, 0.02, 0.6), (1, 1, 1), form=(0.5,)), ground=False)
    rows, columns = np.nonzero(hits.shape == 0)
    radius = np.hypot(rows + 0.5 - 20, columns + 0.5 - 20) * 5.0 / 100.0
    assert radius.min() >= 0.5
    assert radius.max() <= 0.6
    np.testing.assert_allclose(hits.t[rows, columns], 5.0, rtol=1e-6)


def test_depth_of_the_ground_is_that_of_the_plane():
    view = camera((0.0, 0.0, 1.5), 0.0, (90, 160), 100.0)
    hits = cast(view, join([]))
    below = np.arange(90) + 0.5 - 45
    expected = np.where(below > 0, 1.5 * 100.0 / below, np.inf)
    np.testing.assert_allclose(hits.t, np.broadcast_to(expected[:, None], (90, 160)), rtol=1e-5)
    assert (hits.shape[45:] == GROUND).all()
    assert (hits.shape[:45] == SKY).all()


def crowd(count: int) -> Shapes:
    """Solids of all kinds strewn about, some behind the views, some round them."""
    rng = np.random.default_rng(3)
    parts = []
    for _ in range(count):
        kind = Kind(rng.integers(len(Kind)))
        half, form = rng.uniform(0.1, 2.5, 3), rng.uniform(0.0, 0.4, 3) * (kind != Kind.ELLIPSOID)
        center = (*rng.uniform(-25, 25, 2), rng.uniform(0, 5))
        parts.append(
            shape(kind, center, half, (1, 1, 1), yaw=rng.uniform(-4, 4), form=form * (1, 1, kind == Kind.PRISM))
        )
    return join(parts)


class Everything:
    """A view whose windows leave nothing out."""

    def __init__(self, view: View) -> None:
        self.size, self.eye, self.grid = view.size, view.eye, view.grid

    def windows(self, shapes):
        whole = np.tile([0, self.size[0], 0, self.size[1]], (len(shapes), 1))
        return np.arange(len(shapes)), whole, np.zeros(len(shapes))


SPIN = Spinning((32, 217), np.array([*LIDAR.position[:2], 1.84]), (-0.535, 0.186), 2.0)
SUN = Sunlight(np.zeros(3), np.array([0.48, -0.36, 0.8]), 20.0, 0.35)


@pytest.mark.parametrize("view", [camera((0, 0, 1.6), 0.8, (56, 100), 70.0), SPIN, SUN], ids=["camera", "lidar", "sun"])
def test_windows_leave_no_hit_out(view):
    shapes = crowd(150)
    # What lies round the eye is met from within, which no view is made for.
    shapes = shapes[np.linalg.norm(shapes["center"] - view.eye, axis=1) > 6.0]
    windowed, whole = cast(view, shapes), cast(Everything(view), shapes)
    np.testing.assert_array_equal(windowed.t, whole.t)
    assert len(np.unique(windowed.shape)) > 20


@pytest.mark.parametrize("view", [camera((0, 0, 1.6), 0.8, (56, 100), 70.0), SPIN, SUN], ids=["camera", "lidar", "sun"])
def test_casting_every_ray_at_every_shape_gives_the_same_hits(view):
    shapes = crowd(150)
    ground = view is not SUN
    hits, expected = cast(view, shapes, ground), raycast.cast(view, shapes, ground)
    same = (hits.shape == expected.shape) & (hits.face == expected.face)
    assert same.mean() > 0.999  # but for rays that graze an edge
    np.testing.assert_allclose(hits.t[same], expected.t[same], rtol=5e-4)
    assert len(np.unique(hits.shape)) > 20


def test_the_sun_finds_its_own_points_again():
    rays = SUN.rays()
    row, column = np.array([3, 40, 77]), np.array([90, 12, 55])
    start = np.stack([c[row, column] for c in rays.origin], axis=-1) + SUN.eye
    found_row, found_column, t = SUN.locate((start - 30.0 * SUN.toward_sun).astype(np.float32))
    np.testing.assert_array_equal(found_row, row)
    np.testing.assert_array_equal(found_column, column)
    np.testing.assert_allclose(t, 30.0, rtol=1e-5)
