"""The roads of a place: curves with a cross-section, and their polygons and lines for the map layers of nuScenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from shapely.geometry import LineString, Polygon
from shapely.ops import unary_union

from .arrays import Array
from .curve import Curve

CORNER = 6.0
"""Radius of the kerb at the corners of a junction, metres."""
SETBACK = 1.0
"""Distance from the end of the corner to the zebra crossing, metres."""


@dataclass(frozen=True, kw_only=True)
class Road:
    """A road with a constant cross-section. ``s`` and ``d`` are positions on ``curve``, see :class:`Curve`."""

    curve: Curve
    lanes: int
    """Lanes per direction."""
    lane_width: float
    """Width of a lane, metres."""
    parking: float
    """Width of the parking strip on each side, metres; 0 for none."""
    hand: int
    """+1 if traffic drives on the right, -1 if on the left."""
    divider: str
    """Line between the directions: "double" (yellow, solid) or "dashed" (white)."""
    junctions: tuple[tuple[float, float], ...] = ()
    """Ranges of ``s`` at junctions, metres."""
    crossings: tuple[tuple[float, float], ...] = ()
    """Ranges of ``s`` at zebra crossings, metres."""
    stops: tuple[tuple[float, int], ...] = ()
    """``s`` of each stop line, and its direction of travel: +1 along the curve, -1 against it."""

    @property
    def half_width(self) -> float:
        """Distance from the middle of the road to the kerb, metres."""
        return self.lanes * self.lane_width + self.parking

    def lane(self, direction: int, number: int) -> float:
        """Compute the offset ``d`` of the middle of a lane; lane 0 is next to the middle of the road."""
        return -self.hand * direction * (number + 0.5) * self.lane_width

    def clear_of_junctions(self, s: Array) -> Array:
        """Compute the distance from ``s`` to the nearest gap in the markings, metres; negative inside of one."""
        distance = np.full_like(s, np.inf)
        for low, high in (*self.junctions, *self.crossings):
            distance = np.minimum(distance, np.maximum(low - 2.0 - s, s - high - 2.0))
        return distance


@dataclass(frozen=True, kw_only=True)
class Street:
    """The roads of a place, with verges and pavements. The ego car drives along the first road."""

    roads: tuple[Road, ...]
    verge: float
    """Width of the grass strip between kerb and pavement, metres; 0 for none."""
    pavement: float
    """Width of the pavement, metres."""

    @property
    def frontage(self) -> float:
        """Distance from the kerb to the plots, metres."""
        return self.verge + self.pavement

    def kerb_distance(self, x: Array, y: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """Compute the distance to the edge of the carriageway.

        Args:
            x: Metres, of any shape.
            y: Metres, of the same shape.

        Returns:
            The distance in metres, negative on the carriageway, with rounded corners; and ``s``, ``d`` on each road.
        """
        union: Array | None = None
        places = []
        for road in self.roads:
            s, d = road.curve.locate(x, y)
            places.append((s, d))
            ends = np.maximum(-s, s - road.curve.length)
            distance = np.maximum(np.abs(d) - road.half_width, ends)
            union = distance if union is None else _rounded_union(union, distance)
        assert union is not None
        return union, places


def _rounded_union(a: Array, b: Array) -> Array:
    """Combine the distances to two regions into that to their union, with arcs in its inner corners.

    >>> float(_rounded_union(np.array(0.0), np.array(0.0)).round(3))  # at a corner, 6 - 6 sqrt(2)
    -2.485
    """
    radius = np.float32(CORNER)
    gap = np.hypot(np.maximum(radius - a, 0), np.maximum(radius - b, 0))
    return np.maximum(radius, np.minimum(a, b)) - gap


def map_layers(street: Street) -> tuple[dict[str, list[Polygon]], dict[str, list[LineString]]]:
    """Make the polygons and the lines of a street by map layer of nuScenes, in the frame of the place (metres)."""
    strips = [LineString(r.curve.polyline()).buffer(r.half_width, cap_style="flat") for r in street.roads]
    drivable = unary_union(strips).buffer(CORNER).buffer(-CORNER)
    walk = drivable.buffer(street.frontage).difference(drivable.buffer(street.verge))
    polygons: dict[str, list[Polygon]] = {
        "drivable_area": parts(drivable),
        "walkway": parts(walk),
        "lane": [],
        "ped_crossing": [],
        "stop_line": [],
        "carpark_area": [],
    }
    lines: dict[str, list[LineString]] = {"road_divider": [], "lane_divider": []}
    for road in street.roads:
        for low, high in _between_gaps(road):
            _add_stretch(road, low, high, polygons, lines)
        for low, high in road.crossings:
            polygons["ped_crossing"].append(_strip(road, low, high, -road.half_width, road.half_width))
        for s, direction in road.stops:
            edge = -road.hand * direction * road.lanes * road.lane_width
            polygons["stop_line"].append(_strip(road, s - 0.2, s + 0.2, min(0, edge), max(0, edge)))
    return polygons, lines


def _add_stretch(
    road: Road, low: float, high: float, polygons: dict[str, list[Polygon]], lines: dict[str, list[LineString]]
) -> None:
    """Add the lanes, parking strips and dividers of a stretch without junctions."""
    lines["road_divider"].append(LineString(road.curve.polyline(s_range=(low, high))))
    for direction in (1, -1):
        for number in range(road.lanes):
            middle = road.lane(direction, number)
            reach = 0.5 * road.lane_width
            polygons["lane"].append(_strip(road, low, high, middle - reach, middle + reach))
            if number:
                line = road.curve.polyline(d=middle - np.sign(middle) * reach, s_range=(low, high))
                lines["lane_divider"].append(LineString(line))
        if road.parking:
            edges = sorted((direction * road.lanes * road.lane_width, direction * road.half_width))
            polygons["carpark_area"].append(_strip(road, low, high, *edges))


def _between_gaps(road: Road) -> list[tuple[float, float]]:
    """Find the stretches of ``s`` without junctions and crossings that are longer than 3 m."""
    stretches, start = [], 0.0
    for low, high in (*sorted((*road.junctions, *road.crossings)), (road.curve.length, road.curve.length)):
        if low - start > 3.0:
            stretches.append((start, low))
        start = max(start, high)
    return stretches


def _strip(road: Road, low: float, high: float, right: float, left: float) -> Polygon:
    """Make the polygon of ``low`` .. ``high`` along a road and ``right`` .. ``left`` across it."""
    ahead = road.curve.polyline(d=right, s_range=(low, high))
    back = road.curve.polyline(d=left, s_range=(low, high))[::-1]
    return Polygon(np.concatenate([ahead, back]))


def parts(geometry: Polygon) -> list[Polygon]:
    """List the polygons of a polygon or multipolygon."""
    return list(getattr(geometry, "geoms", [geometry]))


def make_street(rng: np.random.Generator, hand: int, travel: float) -> Street:
    """Sample a street: a main road with curves, and side roads that cross or join it where it is straight.

    Args:
        rng: Random generator of all choices.
        hand: +1 if traffic drives on the right, -1 if on the left.
        travel: Longest drive of the ego car, metres.
    """
    curves = [rng.uniform(35, 80) for _ in range(2)]
    straight = [rng.uniform(120, 150), rng.uniform(70, 110), 170 + travel]
    bend = [rng.choice((-1, 1)) / rng.uniform(70, 220) for _ in range(2)]
    main_curve = Curve(
        (0.0, 0.0, float(rng.uniform(-np.pi, np.pi))),
        (straight[0], curves[0], straight[1], curves[1], straight[2]),
        (0.0, bend[0], 0.0, bend[1], 0.0),
    )
    second = straight[0] + curves[0] + straight[1] * 0.5
    third = second + straight[1] * 0.5 + curves[1] + rng.uniform(60, 80)
    places = [second] + [s for s, odds in ((straight[0] - 75.0, 0.4), (third, 0.5)) if rng.random() < odds]
    lanes = int(rng.choice((1, 1, 2)))
    main_width = lanes * (lane_width := float(rng.uniform(3.1, 3.6))) + (parking := float(rng.choice((0.0, 2.3))))
    sides = []
    for s in places:
        x, y, heading = main_curve.point(s)
        start, end = [(-130.0, 130.0), (0.0, 130.0), (-130.0, 0.0)][int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
        x0, y0 = x - start * np.sin(heading), y + start * np.cos(heading)
        curve = Curve((float(x0), float(y0), float(heading + np.pi / 2)), (end - start,), (0.0,))
        sides.append(_side_road(rng, curve, -start, main_width, hand))
    junctions = tuple(
        (s - side.half_width - CORNER, s + side.half_width + CORNER) for s, side in zip(places, sides, strict=True)
    )
    crossings, stops = [], []
    for low, high in junctions:
        crossings += [(low - SETBACK - 3.0, low - SETBACK), (high + SETBACK, high + SETBACK + 3.0)]
        stops += [(low - SETBACK - 4.2, 1), (high + SETBACK + 4.2, -1)]
    main = Road(
        curve=main_curve,
        lanes=lanes,
        lane_width=lane_width,
        parking=parking,
        hand=hand,
        divider=str(rng.choice(("double", "dashed"))),
        junctions=junctions,
        crossings=tuple(crossings),
        stops=tuple(stops),
    )
    return Street(roads=(main, *sides), verge=float(rng.choice((0.0, 1.6))), pavement=float(rng.uniform(2.0, 3.5)))


def _side_road(rng: np.random.Generator, curve: Curve, middle: float, main_width: float, hand: int) -> Road:
    """Make a road with one lane per direction, with the junction at ``middle`` metres of its curve."""
    reach = main_width + CORNER
    stops: Sequence[tuple[float, int]] = [
        (s, direction)
        for s, direction in ((middle - reach - SETBACK - 1.2, 1), (middle + reach + SETBACK + 1.2, -1))
        if 5.0 < s < curve.length - 5.0
    ]
    return Road(
        curve=curve,
        lanes=1,
        lane_width=float(rng.uniform(3.0, 3.5)),
        parking=float(rng.choice((0.0, 2.3))),
        hand=hand,
        divider="dashed",
        junctions=((middle - reach, middle + reach),),
        stops=tuple(stops),
    )
