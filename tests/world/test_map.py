"""The map, read by the unmodified devkit: layers, masks, records, drawings; and it agrees with the drawn world."""

import json

import matplotlib
import numpy as np
import pytest
import shapely
from nuscenes import NuScenes
from nuscenes.map_expansion.bitmap import BitMap
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.splits import create_splits_scenes
from PIL import Image

from mim4d.world.atlas import hand_of, location_of, make_atlas
from mim4d.world.place import place_street
from mim4d.world.street import map_layers

matplotlib.use("Agg")

LAYERS = ["drivable_area", "road_segment", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area"]
LINES = ["road_divider", "lane_divider"]


def first_pose(nusc: NuScenes, scene: dict) -> tuple[float, float, str]:
    """Where a scene's ego car begins, metres, and on which map."""
    sample = nusc.get("sample", scene["first_sample_token"])
    shot = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    x, y, _ = nusc.get("ego_pose", shot["ego_pose_token"])["translation"]
    return x, y, nusc.get("log", scene["log_token"])["location"]


@pytest.fixture(scope="module")
def start(nusc: NuScenes) -> tuple[float, float, NuScenesMap]:
    """The ego car at the start of the first scene, and its map."""
    x, y, location = first_pose(nusc, nusc.scene[0])
    return x, y, NuScenesMap(nusc.dataroot, location)


def test_every_location_has_a_map(nusc):
    for scene in nusc.scene:
        x, y, location = first_pose(nusc, scene)
        on = NuScenesMap(nusc.dataroot, location).layers_on_point(x, y)
        assert on["drivable_area"]
        assert on["road_segment"]
        assert not on["walkway"]


def test_records_are_found_in_a_patch(start):
    x, y, city = start
    found = city.get_records_in_patch((x - 60, y - 60, x + 60, y + 60), [*LAYERS, *LINES])
    assert all(found[name] for name in ("drivable_area", "road_segment", "lane", "walkway", "road_divider"))
    assert all(city.get(name, token) for name, tokens in found.items() for token in tokens)
    assert city.get_records_in_radius(x, y, 5.0, ["lane"])["lane"]


def test_masks_are_those_of_the_polygons(start):
    """The devkit's mask beside the same place's polygons, asked pixel by pixel."""
    x, y, city = start
    size, pixels = 40.0, 80
    mask = city.get_map_mask((x, y, size, size), 0.0, ["drivable_area", "walkway"], (pixels, pixels))
    places = x - size / 2 + (np.arange(pixels) + 0.5) * size / pixels, y - size / 2 + (np.arange(pixels) + 0.5) * 0.5
    east, north = np.meshgrid(*places)
    for layer, got in zip(("drivable_area", "walkway"), mask, strict=True):
        records = getattr(city, layer)
        tokens = [t for r in records for t in r.get("polygon_tokens", [r.get("polygon_token")])]
        inside = shapely.contains_xy(shapely.union_all([city.extract_polygon(t) for t in tokens]), east, north)
        assert (got.astype(bool) == inside).mean() > 0.95  # cv2 draws borders a pixel wide
        assert 0.05 < inside.mean() < 0.95


def test_lines_are_masked_too(start):
    x, y, city = start
    assert city.get_map_mask((x, y, 20.0, 20.0), 30.0, ["road_divider"], (40, 40)).sum() > 10


def test_the_map_is_the_streets(nusc):
    """What the file holds is what the place is made of, moved to its place on the map."""
    atlas = make_atlas(0, [0], 50.0)
    values, (polygons, lines) = json.loads(atlas.expansion), map_layers(place_street(0, 0, hand_of(0), 50.0))
    nodes = {row["token"]: (row["x"], row["y"]) for row in values["node"]}
    for row, line in zip(values["line"], [line for layer in lines.values() for line in layer], strict=True):
        points = np.array([nodes[token] for token in row["node_tokens"]])
        np.testing.assert_allclose(points, np.array(line.coords) + atlas.offsets[0], atol=1e-3)
    areas = [shape.area for layer in polygons.values() for shape in layer]
    got = [
        shapely.Polygon(
            [nodes[t] for t in row["exterior_node_tokens"]],
            [[nodes[t] for t in hole["node_tokens"]] for hole in row["holes"]],
        ).area
        for row in values["polygon"]
    ]
    assert got == pytest.approx(areas, rel=1e-3)


def test_boxes_of_moving_cars_stand_on_the_drivable_area(nusc):
    maps = {location_of(place): None for place in range(4)}
    on_road = []
    for annotation in nusc.sample_annotation:
        names = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        if annotation["category_name"] == "vehicle.car" and names == ["vehicle.moving"]:
            scene = nusc.get("scene", nusc.get("sample", annotation["sample_token"])["scene_token"])
            location = nusc.get("log", scene["log_token"])["location"]
            maps[location] = maps[location] or NuScenesMap(nusc.dataroot, location)
            x, y, _ = annotation["translation"]
            on_road.append(bool(maps[location].record_on_point(x, y, "drivable_area")))
    assert len(on_road) > 10
    assert np.mean(on_road) > 0.9  # some drive on beyond the end of the map


def test_the_devkit_draws(nusc, start, tmp_path):
    x, y, city = start
    # It draws polygons by way of descartes, which does not know shapely 2; masks, lines and pictures it can.
    figure, _ = city.render_map_mask((x, y, 100, 100), 20.0, LAYERS[:6], (100, 100), figsize=(8, 5))
    figure.savefig(tmp_path / "masks.png")
    figure, _ = city.render_map_patch((x - 50, y - 50, x + 50, y + 50), LINES, figsize=(4, 4))
    figure.savefig(tmp_path / "patch.png")
    shot = nusc.get("sample", nusc.scene[0]["first_sample_token"])["data"]["CAM_BACK"]
    nusc.render_sample_data(shot, out_path=str(tmp_path / "boxes.png"), verbose=False)
    for path in tmp_path.iterdir():
        assert np.asarray(Image.open(path).convert("L"), float).std() > 5
    bitmap = BitMap(nusc.dataroot, city.map_name, "semantic_prior")
    assert bitmap.image.shape == tuple(round(edge * 10) for edge in reversed(city.canvas_edge))


def test_lift_splat_shoots_view_of_a_root(nusc):
    """What Lift-Splat-Shoot's loader asks of a root: scenes of the splits, six cameras, vehicles about a LiDAR pose."""
    splits, names = create_splits_scenes(), {scene["name"] for scene in nusc.scene}
    assert [len(names & set(splits[split])) for split in ("mini_train", "mini_val")] == [2, 1]
    vehicles = []
    for sample in nusc.sample:
        shots = {channel: nusc.get("sample_data", token) for channel, token in sample["data"].items()}
        assert len([name for name in shots if name.startswith("CAM_")]) == 6
        x, y, _ = nusc.get("ego_pose", shots["LIDAR_TOP"]["ego_pose_token"])["translation"]
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            if annotation["category_name"].split(".")[0] == "vehicle":
                vehicles.append(np.hypot(annotation["translation"][0] - x, annotation["translation"][1] - y))
    assert (np.array(vehicles) < 50.0).sum() > 20
