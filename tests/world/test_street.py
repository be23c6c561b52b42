"""Streets: the ground that is drawn and the polygons and lines of the map are the same."""

import numpy as np
import pytest
import shapely

from mim4d.world.ground import ground_albedo
from mim4d.world.place import make_place
from mim4d.world.street import CORNER, map_layers
from mim4d.world.texture import Noise


@pytest.fixture(scope="module", params=[(0, 1), (1, -1), (2, -1)], ids=["right-hand", "left-hand", "another"])
def place(request):
    number, hand = request.param
    return make_place(11, number, hand, 50.0)


def near_roads(place, count: int) -> np.ndarray:
    """Random points [N, 2] within 25 m of a road, away from the roads' ends."""
    rng = np.random.default_rng(0)
    points = []
    for road in place.street.roads:
        s, d = rng.uniform(25, road.curve.length - 25, count), rng.uniform(-25, 25, count)
        points.append(np.stack(road.curve.point(s, d)[:2], axis=1))
    return np.concatenate(points)


def test_polygons_and_distance_agree(place):
    polygons, _ = map_layers(place.street)
    x, y = near_roads(place, 2000).T
    distance, _ = place.street.kerb_distance(x, y)
    ends = np.min(
        [
            np.minimum(np.abs(s), np.abs(s - r.curve.length))
            for r, (s, _) in zip(place.street.roads, place.street.kerb_distance(x, y)[1], strict=True)
        ],
        axis=0,
    )
    clear = (np.abs(distance) > 0.1) & (ends > CORNER + 20.0)
    drivable = shapely.union_all(polygons["drivable_area"])
    inside = shapely.contains_xy(drivable, x, y)
    np.testing.assert_array_equal(inside[clear], distance[clear] < 0)
    walkway = shapely.union_all(polygons["walkway"])
    on_walkway = shapely.contains_xy(walkway, x, y)
    street = place.street
    between = (distance > street.verge + 0.1) & (distance < street.frontage - 0.1) & clear
    beyond = ((distance < street.verge - 0.1) | (distance > street.frontage + 0.3)) & clear
    assert on_walkway[between].mean() > 0.99  # inner corners are rounded differently beyond the kerb
    assert on_walkway[beyond].mean() < 0.01


def test_layers_are_sane(place):
    polygons, lines = map_layers(place.street)
    drivable = shapely.union_all(polygons["drivable_area"]).buffer(0.1)
    assert {"drivable_area", "walkway", "lane", "ped_crossing", "stop_line", "carpark_area"} == set(polygons)
    for name in ("lane", "ped_crossing", "stop_line", "carpark_area"):
        for polygon in polygons[name]:
            assert polygon.is_valid
            assert polygon.area > 0.5
            assert drivable.contains(polygon), name
    for name in ("road_divider", "lane_divider"):
        assert all(drivable.contains(line) for line in lines[name]), name
    lanes = shapely.union_all(polygons["lane"])
    assert sum(lane.area for lane in polygons["lane"]) == pytest.approx(lanes.area, rel=1e-3)  # none overlaps another


def test_paint_lies_where_the_map_says(place):
    """Crossings and stop lines are bright, open lanes are dark."""
    polygons, _ = map_layers(place.street)
    noise, rng = Noise(0), np.random.default_rng(1)

    def brightness(polygon) -> np.ndarray:
        low_x, low_y, high_x, high_y = polygon.bounds
        x, y = rng.uniform(low_x, high_x, 4000), rng.uniform(low_y, high_y, 4000)
        inside = shapely.contains_xy(polygon.buffer(-0.05), x, y)
        x, y = x[inside].astype(np.float32), y[inside].astype(np.float32)
        return ground_albedo(place, noise, x, y, np.full_like(x, 0.02)).mean(0)

    for polygon in polygons["stop_line"]:
        assert np.median(brightness(polygon)) > 0.4
    for polygon in polygons["ped_crossing"]:
        assert 0.3 < (brightness(polygon) > 0.35).mean() < 0.6  # stripes
    lanes = np.concatenate([brightness(lane.buffer(-0.8)) for lane in polygons["lane"][:6]])
    assert np.median(lanes) < 0.2


def test_traffic_keeps_to_its_side(place):
    road = place.street.roads[0]
    assert np.sign(road.lane(1, 0)) == -road.hand
    assert road.lane(-1, 0) == -road.lane(1, 0)
    for _, direction in road.stops:
        assert abs(road.lane(direction, road.lanes - 1)) < road.half_width
