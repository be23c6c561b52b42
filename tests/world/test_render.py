"""Pictures against the geometry they claim to show."""

import json
from io import BytesIO

import numpy as np
import pytest
from nuscenes.utils.geometry_utils import transform_matrix
from PIL import Image
from pyquaternion import Quaternion

from mim4d.world import make
from mim4d.world.capture import Moment, stage_of
from mim4d.world.config import WorldConfig, scene_names
from mim4d.world.light import developed
from mim4d.world.raycast import GROUND, cast
from mim4d.world.render import BIAS, OFFSET, Contact, ShadowMap
from mim4d.world.shapes import Columns, Kind, shape
from mim4d.world.texture import Noise, band, covered, hashed
from mim4d.world.views import Pinhole, Sunlight
from tests.reference import raycast


@pytest.fixture(scope="module")
def job(tiny_world):
    """The job of the tiny world's first scene, its place laid at the map's origin."""
    settings = json.loads((tiny_world / "world.json").read_text())["config"]
    name, place = scene_names(settings.pop("version"), settings["scenes"])[0]
    config = WorldConfig(**settings)
    return make.scene_job(config, name, place, (0.0, 0.0))


def moment(job, channel: str, t: float) -> Moment:
    calibration = next(c for c in job.calibrations() if c.sensor.channel == channel)
    return Moment(stage_of(job), job, calibration, t)


def pose(record) -> np.ndarray:
    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def test_the_tables_calibration_gives_the_depth_that_was_drawn(nusc, job):
    """Rays by nuScenes' convention, through integer pixel centres, meet z = 0 at the depth the ray caster found."""
    sample = nusc.get("sample", nusc.scene[0]["first_sample_token"])
    for channel in ("CAM_FRONT", "CAM_BACK_LEFT"):
        shot = nusc.get("sample_data", sample["data"][channel])
        calibration = nusc.get("calibrated_sensor", shot["calibrated_sensor_token"])
        global_from_camera = pose(nusc.get("ego_pose", shot["ego_pose_token"])) @ pose(calibration)
        t = (shot["timestamp"] - job.start) * 1e-6
        now = moment(job, channel, t)
        hits = cast(now.view(), now.shapes)
        row, column = np.nonzero(hits.shape == GROUND)
        rays = np.stack([column, row, np.ones_like(row)]) * 1.0
        rays = global_from_camera[:3, :3] @ np.linalg.inv(np.array(calibration["camera_intrinsic"])) @ rays
        expected = global_from_camera[2, 3] / -rays[2]
        assert len(row) > 5000
        np.testing.assert_allclose(hits.t[row, column], expected, rtol=2e-3)


def test_sensors_are_drawn_where_the_tables_put_them(nusc, job):
    """Up to where the place lies on the map."""
    sample = nusc.get("sample", nusc.get("sample", nusc.scene[0]["first_sample_token"])["next"])
    offsets = []
    for channel, token in sample["data"].items():
        shot = nusc.get("sample_data", token)
        calibration = nusc.get("calibrated_sensor", shot["calibrated_sensor_token"])
        global_from_sensor = pose(nusc.get("ego_pose", shot["ego_pose_token"])) @ pose(calibration)
        drawn = moment(job, channel, (shot["timestamp"] - job.start) * 1e-6).world_from_sensor
        np.testing.assert_allclose(drawn[:3, :3], global_from_sensor[:3, :3], atol=1e-9)
        offsets.append(global_from_sensor[:3, 3] - drawn[:3, 3])
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[0], (7, 3)), atol=1e-6)
    assert offsets[0][2] == pytest.approx(0.0, abs=1e-9)


def test_cameras_agree_where_they_overlap(job):
    """What two cameras see of one point at one time has the same colour."""
    front, left = moment(job, "CAM_FRONT", 0.4), moment(job, "CAM_FRONT_LEFT", 0.4)
    pictures = [np.asarray(Image.open(BytesIO(m.photograph("x", False)[1])), float) for m in (front, left)]
    depths = [cast(m.view(), m.shapes).t for m in (front, left)]
    height, width = depths[0].shape
    row, column = (grid.ravel() for grid in np.mgrid[2 : height - 2, 2 : width - 2])
    near = depths[0][row, column] < 60.0
    row, column = row[near], column[near]
    view = front.view()
    rays = np.stack([c[row, column] for c in view.rays().direction], axis=1)
    points = view.eye + rays * depths[0][row, column, None]
    other = left.view()
    local = (points - other.eye) @ other.world_from_camera[:3, :3]
    u, v = (local @ other.intrinsics.T)[:, :2].T / local[:, 2]
    inside = (local[:, 2] > 1) & (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
    i, j = v[inside].astype(int), u[inside].astype(int)
    same = np.abs(depths[1][i, j] - local[inside, 2]) < 0.02 * local[inside, 2]
    assert same.sum() > 300
    difference = np.abs(pictures[0][row, column][inside][same] - pictures[1][i, j][same]).mean(1)
    assert np.median(difference) < 6.0


def test_a_picture_is_what_casting_and_shading_every_ray_gives(job):
    now = moment(job, "CAM_FRONT", 0.4)
    whole = now.view()
    view = Pinhole((45, 80), whole.intrinsics * np.array([[0.4], [0.4], [1.0]]), whole.world_from_camera)
    shapes = now.shapes[np.argsort(np.linalg.norm(now.shapes["center"] - view.eye, axis=1))[:400]]
    picture, hits = now.painter.picture(view, shapes)
    fine, slow = view.refined(2), raycast.cast(view.refined(2), shapes)
    same = (hits.shape == slow.shape) & (hits.face == slow.face)
    assert same.mean() > 0.999  # but for rays that graze an edge
    np.testing.assert_allclose(hits.t[same], slow.t[same], rtol=5e-4)

    columns, t = Columns(shapes), slow.t.astype(np.float32)
    row, column = (i.ravel() for i in np.indices(fine.size))
    rays = now.painter.shade(fine, columns, (row, column), t.ravel(), slow.shape.ravel(), slow.face.ravel())
    rays = rays.T.reshape(*fine.size, 3)
    checked = 0
    for i, j in np.ndindex(view.size):
        block = np.s_[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        if not same[block].all():
            continue
        met = {*zip(slow.shape[block].ravel().tolist(), slow.face[block].ravel().tolist(), strict=True)}
        light = rays[block].reshape(4, 3).mean(0)
        if len(met) == 1:  # one surface is shaded once, at the centre of the pixel
            shape, face = slow.shape[block][:1, 0], slow.face[block][:1, 0]
            depth = np.array([t[block].mean()], np.float32)
            light = now.painter.shade(view, columns, (np.array([i]), np.array([j])), depth, shape, face)[:, 0]
        expected = developed(now.painter.light, light) * 255
        assert np.abs(picture[i, j] - expected).max() <= 1.0, (i, j)
        checked += 1
    assert checked > 3500


def test_shadows_lie_where_a_box_hides_the_sun():
    toward_sun = np.array([0.6, 0.0, 0.8])
    box = shape(Kind.BOX, (0, 0, 4.0), (2.0, 3.0, 1.0), (1, 1, 1))
    shadow = ShadowMap.of(Sunlight(np.zeros(3), toward_sun, 20.0, 0.1), box)
    x, y = (grid.ravel() for grid in np.mgrid[-9:9:0.37, -9:9:0.37])
    sunlit = shadow.sunlit(np.stack([x, y, np.zeros_like(x)], axis=1).astype(np.float32))
    # The box from z = 3 to 5 throws a shadow away from the sun, drawn out by x / z = 0.6 / 0.8.
    west, east = -2.0 - 5.0 * 0.75, 2.0 - 3.0 * 0.75
    inside = np.minimum(np.minimum(x - west, east - x), 3.0 - np.abs(y))
    assert (sunlit[inside > 0.3] == 0).all()
    assert (sunlit[inside < -0.3] == 1).all()
    top = np.array([[0.0, 0.0, 5.0 + OFFSET]], np.float32)
    assert shadow.sunlit(top) == 1
    assert OFFSET > BIAS


def test_ground_is_darker_beside_and_under_things():
    box = shape(Kind.BOX, (0, 0, 1.0), (2.0, 1.0, 1.0), (1, 1, 1))
    contact = Contact.of(np.zeros(3), 10.0, 0.1, 1.0, box)
    points = np.array([[0, 0, 0], [0, 1.0, 0], [0, 1.2, 0], [0, 3.0, 0], [0, 1.2, 3.0], [90, 0, 0]], np.float32)
    under, edge, beside, away, above, outside = contact.open_sky(points)
    assert under < edge < beside < 0.99 < above
    assert away == outside == 1


def test_noise_is_centred_seamless_and_fades_with_distance():
    noise, again, other = Noise(3), Noise(3), Noise(4)
    u, v = np.random.default_rng(0).uniform(-40, 40, (2, 20000)).astype(np.float32)
    values = noise(u, v, 8.0, 0.0)
    assert abs(values.mean()) < 0.1
    assert values.std() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(again(u, v, 8.0, 0.0), values)
    assert abs(np.corrcoef(other(u, v, 8.0, 0.0), values)[0, 1]) < 0.2
    assert np.mean(noise(u + 8.0, v - 16.0, 8.0, 0.0) == values) > 0.99  # but for points on a texel's border
    spread = [noise(u, v, 8.0, footprint).std() for footprint in (0.02, 0.2, 1.0, 20.0)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.01


def test_hash_is_even_and_differs_by_cell():
    i, j = np.mgrid[-100:100, -100:100]
    values = hashed(i, j, 5)
    assert values.min() >= 0
    assert values.max() < 1
    np.testing.assert_allclose(np.histogram(values, 10, (0, 1))[0] / values.size, 0.1, atol=0.01)
    for shifted in (hashed(i + 1, j, 5), hashed(i, j + 1, 5), hashed(i, j, 6)):
        assert abs(np.corrcoef(values.ravel(), shifted.ravel())[0, 1]) < 0.02


def test_edges_are_covered_by_their_share_of_the_pixel():
    np.testing.assert_allclose(covered(np.array([-1.0, -0.25, 0.0, 0.25, 1.0]), 1.0), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(band(np.array([0.0, 0.5, 5.0]), -0.1, 0.1, 1.0), [0.2, 0.1, 0.0], atol=1e-12)
