"""Truth in the ego frame against the devkit's, and turning it with the cameras."""

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from nuscenes.map_expansion.map_api import NuScenesMap
from pyquaternion import Quaternion

from mim4d.errors import UserError
from mim4d.eval.augmentation import BEVAugmentation
from mim4d.eval.labels import ATTRIBUTES, CLASSES, Annotations, footprints, valid_polygons
from mim4d.geometry import project, transform


def test_boxes_are_the_devkits(annotations):
    nusc = annotations.nusc
    for token in annotations.tokens[::3]:
        sample = nusc.get("sample", token)
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        for row, ann in zip(annotations.boxes(token), sample["anns"], strict=True):
            box, record = nusc.get_box(ann), nusc.get("sample_annotation", ann)
            box.translate(-np.array(pose["translation"]))
            box.rotate(Quaternion(pose["rotation"]).inverse)
            np.testing.assert_allclose(row["center"], box.center, atol=1e-6)
            np.testing.assert_allclose(row["size"], box.wlh[[1, 0, 2]])
            assert np.cos(row["yaw"] - box.orientation.yaw_pitch_roll[0]) == pytest.approx(1.0)
            corners = np.sort(box.bottom_corners()[:2].T, axis=0)
            (shape,) = footprints(np.array([row]))
            np.testing.assert_allclose(np.sort(np.array(shape.exterior.coords)[:4], axis=0), corners, atol=1e-6)
            assert row["vehicle"] == record["category_name"].startswith("vehicle.")
            if row["label"] >= 0:
                assert CLASSES[row["label"]].split("_")[0] in record["category_name"].replace("trafficcone", "traffic_")
            if record["attribute_tokens"]:
                assert ATTRIBUTES[row["attribute"]] == nusc.get("attribute", record["attribute_tokens"][0])["name"]
            speed = np.linalg.norm(nusc.box_velocity(ann)[:2])
            assert np.linalg.norm(row["velocity"]) == pytest.approx(speed, abs=1e-6, nan_ok=True)


def test_samples_and_clips_are_of_the_same_moment(data, annotations):
    for samples in (data.train, data.val):
        for number, token in enumerate(samples.tokens):
            sample = annotations.nusc.get("sample", token)
            assert samples.clip(number).timestamps.item() == pytest.approx(sample["timestamp"] / 1e6, abs=1e-3)
            name = annotations.nusc.get("scene", sample["scene_token"])["name"]
            assert samples.clip(number).names[0].startswith(name)


def test_map_layers_are_the_devkits_masks(annotations, tiny_world):
    token = annotations.tokens[0]
    nusc = annotations.nusc
    location = nusc.get("log", nusc.get("scene", nusc.get("sample", token)["scene_token"])["log_token"])["location"]
    pose = annotations.global_from_ego(token)
    heading = np.degrees(np.arctan2(pose[1, 0], pose[0, 0]))
    city = NuScenesMap(str(tiny_world), location)
    layers = annotations.map_layers(token, ("drivable", "crossing"), 25.0)
    masks = city.get_map_mask((*pose[:2, 3], 50.0, 50.0), heading, ["drivable_area", "ped_crossing"], (100, 100))
    places = np.meshgrid(*[-25 + (np.arange(100) + 0.5) * 0.5] * 2)
    for name, mask in zip(("drivable", "crossing"), masks, strict=True):
        inside = shapely.contains_xy(shapely.union_all(layers[name]), *places)
        assert (inside == mask.astype(bool)).mean() > 0.95  # the devkit's are filled with their borders
        assert mask.any() or name == "crossing"


def test_dividers_lie_on_the_road(annotations):
    layers = annotations.map_layers(annotations.tokens[0], ("drivable", "divider", "road"), 40.0)
    road = shapely.union_all(layers["drivable"]).buffer(0.1)
    assert layers["divider"]
    assert all(road.contains(line) for line in layers["divider"])
    assert shapely.union_all(layers["road"]).symmetric_difference(shapely.union_all(layers["drivable"])).area < 1.0


def test_what_encloses_nothing_of_a_broken_polygon_is_left_out():
    spike = shapely.Polygon([(0, 0), (4, 0), (4, 4), (4, 9), (4, 4), (0, 4)])
    assert not spike.is_valid
    assert shapely.make_valid(spike).geom_type == "GeometryCollection"
    (square,) = valid_polygons(spike)
    assert square.equals(shapely.box(0, 0, 4, 4))
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert sorted(part.area for part in valid_polygons(bow)) == [1, 1]
    both = shapely.Polygon([(0, 0), (2, 2), (2, 5), (2, 2), (2, 0), (0, 2)])
    assert shapely.get_parts(shapely.make_valid(both))[0].geom_type == "MultiPolygon"
    assert sorted(part.area for part in valid_polygons(both)) == [1, 1]


def test_a_turn_moves_cameras_and_boxes_alike(data, annotations):
    """Middles of boxes fall on the same pixels before and after."""
    clip = data.train.clip(0)
    boxes = annotations.boxes(data.train.tokens[0])
    for seed in range(4):
        turn = BEVAugmentation.draw(seed)
        turned = turn.boxes(boxes)
        before, after = (
            project(
                c.intrinsics[0, 0], transform(_inverse(c.ego_from_camera[0, 0]), torch.tensor(b["center"].tolist()))
            )
            for c, b in ((clip, boxes), (turn.clip(clip), turned))
        )
        torch.testing.assert_close(after[1], before[1], atol=1e-3, rtol=1e-4)
        ahead = before[1] > 1.0
        torch.testing.assert_close(after[0][ahead], before[0][ahead], atol=0.05, rtol=1e-3)
        for one, other in zip(footprints(boxes), footprints(turned), strict=True):
            points = turn.points(np.array(one.exterior.coords))
            assert shapely.Polygon(points).symmetric_difference(other).area < 1e-6
        assert np.linalg.norm(turned["velocity"], axis=1) == pytest.approx(
            np.linalg.norm(boxes["velocity"], axis=1), nan_ok=True
        )
        heading = np.stack([np.cos(turned["yaw"]), np.sin(turned["yaw"])], axis=1)
        along = turn.points(np.stack([np.cos(boxes["yaw"]), np.sin(boxes["yaw"])], axis=1))
        np.testing.assert_allclose(heading, along, atol=1e-9)


def _inverse(ego_from_camera: torch.Tensor) -> torch.Tensor:
    """Of transforms that may mirror."""
    return torch.linalg.inv(ego_from_camera.double()).float()


def test_turns_follow_from_their_seed_and_are_all_kinds():
    turns = [BEVAugmentation.draw(seed).matrix for seed in range(40)]
    np.testing.assert_array_equal(turns[3], BEVAugmentation.draw(3).matrix)
    np.testing.assert_allclose([t @ t.T for t in turns], np.tile(np.eye(2), (40, 1, 1)), atol=1e-12)
    signs = {(np.sign(np.linalg.det(t)), np.sign(t[0, 0])) for t in turns}
    assert signs == {(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)}


def test_fractions_are_nested_and_spread_over_scenes(data):
    samples = data.train
    whole = samples.fraction(1.0, seed=5)
    assert sorted(whole) == list(range(len(samples)))
    for fraction in (0.01, 0.3, 0.5):
        part = samples.fraction(fraction, seed=5)
        assert part == whole[: len(part)]
        assert len(part) == max(1, round(fraction * len(samples)))
    assert len({samples.scenes[number] for number in whole[:2]}) == 2
    assert samples.fraction(1.0, seed=6) != whole


def test_a_root_without_a_map_is_named(annotations, tiny_world, tmp_path: Path):
    for name in ("samples", "v1.0-mini"):
        (tmp_path / name).symlink_to(tiny_world / name)
    (tmp_path / "maps").mkdir()
    for mask in (tiny_world / "maps").glob("*.png"):
        (tmp_path / "maps" / mask.name).symlink_to(mask)
    without = Annotations(tmp_path, "v1.0-mini")
    with pytest.raises(UserError, match=r"no map .*expansion/.*\.json: unpack nuScenes' map expansion 1.3"):
        without.map_layers(without.tokens[0], ("drivable",), 10.0)
