"""What the root says of the world, against each other: points, boxes, pictures and velocities."""

import numpy as np
import pytest
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, transform_matrix
from PIL import Image
from pyquaternion import Quaternion

from mim4d.world.lidar import SPREAD


def pose(record) -> np.ndarray:
    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def global_from_sensor(nusc, shot) -> np.ndarray:
    global_from_ego = pose(nusc.get("ego_pose", shot["ego_pose_token"]))
    return global_from_ego @ pose(nusc.get("calibrated_sensor", shot["calibrated_sensor_token"]))


def sweep(nusc, sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [N, 3] in the global frame, the sensor's place [3] there, and intensities [N]."""
    shot = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(shot["token"]))
    global_from_lidar = global_from_sensor(nusc, shot)
    cloud.transform(global_from_lidar)
    return cloud.points[:3].T.astype(float), global_from_lidar[:3, 3], cloud.points[3]


def in_image(nusc, sample, channel, points) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pixels [N, 2], centres at integers, and depths [N] of global points."""
    shot = nusc.get("sample_data", sample["data"][channel])
    camera_from_global = np.linalg.inv(global_from_sensor(nusc, shot))
    points = points @ camera_from_global[:3, :3].T + camera_from_global[:3, 3]
    intrinsics = np.array(nusc.get("calibrated_sensor", shot["calibrated_sensor_token"])["camera_intrinsic"])
    pixels = points @ intrinsics.T
    return pixels[:, :2] / np.maximum(pixels[:, 2:], 1e-3), points[:, 2], shot


def test_low_beams_meet_the_ground_at_its_analytic_distance(nusc):
    for sample in nusc.sample[:4]:
        points, eye, _ = sweep(nusc, sample)
        ray = points - eye
        distance = np.linalg.norm(ray, axis=1)
        ground = np.flatnonzero(points[:, 2] < 0.05)
        assert len(ground) > 3000
        to_plane = distance[ground] * eye[2] / -ray[ground, 2]  # where the ray meets z = 0
        off = distance[ground] - to_plane
        # Noise is along the ray; points of low things (a kerb's bollard, a tyre) are in front of the plane.
        assert np.median(np.abs(off)) < SPREAD
        assert (np.abs(off) < 4 * SPREAD).mean() > 0.95
    assert points[:, 2].min() > -0.15


def test_boxes_hold_the_points_they_claim(nusc):
    claimed = 0
    for sample in nusc.sample:
        points, _, _ = sweep(nusc, sample)
        for token in sample["anns"]:
            inside = int(points_in_box(nusc.get_box(token), points.T).sum())
            count = nusc.get("sample_annotation", token)["num_lidar_pts"]
            assert abs(inside - count) <= 1 + 0.01 * count  # a point on the border, in other roundings
            claimed += count
    assert claimed > 1000


def test_points_in_boxes_lie_on_the_sides_that_face_the_lidar(nusc):
    for sample in nusc.sample:
        points, eye, _ = sweep(nusc, sample)
        for token in sample["anns"]:
            annotation, box = nusc.get("sample_annotation", token), nusc.get_box(token)
            if annotation["category_name"] != "vehicle.car" or annotation["num_lidar_pts"] < 100:
                continue
            inside = points[points_in_box(box, points.T)]
            to_eye = (eye - box.center) @ box.rotation_matrix
            local = (inside - box.center) @ box.rotation_matrix
            half = np.array(box.wlh)[[1, 0, 2]] / 2
            near = [np.sign(to_eye[axis]) * local[:, axis] / half[axis] for axis in (0, 1)]
            beyond = (np.abs(to_eye[0]) > half[0], np.abs(to_eye[1]) > half[1])
            facing = [n for n, is_beyond in zip(near, beyond, strict=True) if is_beyond]
            assert np.median(np.max(facing, axis=0)) > 0.6


def test_velocities_are_differences_of_positions(nusc):
    moving = 0
    for annotation in nusc.sample_annotation:
        if not (annotation["prev"] and annotation["next"]):
            continue
        ends = [nusc.get("sample_annotation", annotation[end]) for end in ("prev", "next")]
        step = np.subtract(ends[1]["translation"], ends[0]["translation"])
        velocity = nusc.box_velocity(annotation["token"])
        np.testing.assert_allclose(velocity, step / 1.0, atol=1e-4)
        attributes = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        speed = float(np.linalg.norm(velocity))
        if attributes in (["vehicle.parked"], ["vehicle.stopped"], ["pedestrian.standing"]):
            assert speed < 1.5  # it may just have stopped
        if attributes == ["vehicle.parked"]:
            assert speed == 0
        if attributes == ["vehicle.moving"] and speed > 1.0:
            moving += 1
            heading = Quaternion(annotation["rotation"]).rotation_matrix[:, 0]
            assert heading @ velocity / speed > 0.9
    assert moving > 5


def test_size_and_rotation_of_an_instance_stay_plausible(nusc):
    for annotation in nusc.sample_annotation:
        width, length, height = annotation["size"]
        if annotation["category_name"] == "vehicle.car":
            assert 1.7 < width < 2.2
            assert 3.6 < length < 5.1
            assert 1.3 < height < 2.0
        assert annotation["translation"][2] == pytest.approx(height / 2)


def test_visibility_falls_with_occlusion(nusc):
    by_level: dict[str, list[float]] = {level: [] for level in "1234"}
    for sample in nusc.sample:
        eye = sweep(nusc, sample)[1]
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            area = np.prod(annotation["size"][1:])
            away = np.linalg.norm(np.subtract(annotation["translation"], eye))
            if away < 50.0:
                by_level[annotation["visibility_token"]].append(annotation["num_lidar_pts"] * away**2 / area)
    assert len(by_level["1"]) > 5
    assert len(by_level["4"]) > 20
    assert np.median(by_level["4"]) > 3 * np.median(by_level["1"])


def agreement(nusc, shift: float) -> float:
    """Correlation of LiDAR intensity with the brightness of the pixel it falls on, on the ground near the car."""
    intensity, brightness = [], []
    for sample in nusc.sample:
        points, _, strength = sweep(nusc, sample)
        for channel in ("CAM_FRONT", "CAM_BACK"):
            pixels, depth, shot = in_image(nusc, sample, channel, points)
            column, row = np.round(pixels[:, 0] + shift).astype(int), np.round(pixels[:, 1]).astype(int)
            seen = (depth > 1) & (depth < 25) & (points[:, 2] < 0.05)
            seen &= (column >= 0) & (column < shot["width"]) & (row >= 0) & (row < shot["height"])
            picture = np.asarray(Image.open(nusc.get_sample_data_path(shot["token"])).convert("L"), float)
            local = picture[row[seen], column[seen]]
            intensity.append(strength[seen] - strength[seen].mean())
            brightness.append(local - local.mean())
    return float(np.corrcoef(np.concatenate(intensity), np.concatenate(brightness))[0, 1])


def test_lidar_and_pictures_show_the_same_paint(nusc):
    """Intensity and brightness agree best where the calibration says the points fall."""
    right = agreement(nusc, 0.0)
    assert right > 0.4
    assert right > agreement(nusc, 3.0) + 0.05
    assert right > agreement(nusc, -3.0) + 0.05
