"""A place: its street and all static objects that are not annotated. Each scene is set in a place."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from shapely.geometry import Polygon
from shapely.strtree import STRtree

from . import plants
from .building import ZONES, building
from .shapes import Shapes, join, placed
from .street import Road, Street, make_street, map_layers


@dataclass(frozen=True)
class Place:
    """Static surroundings of scenes, in a frame of their own."""

    street: Street
    scenery: Shapes
    grass: float
    """Fraction of the open ground that is grass, 0..1; the rest is paved."""


def place_street(seed: int, number: int, hand: int, travel: float) -> Street:
    """Make only the street of a place, see :func:`make_place`."""
    return make_street(np.random.default_rng([seed, number, 0]), hand, travel)


@lru_cache(maxsize=4)
def make_place(seed: int, number: int, hand: int, travel: float) -> Place:
    """Make place ``number`` of a world.

    Args:
        seed: Seed of the world.
        number: Number of the place.
        hand: +1 if traffic drives on the right, -1 if on the left.
        travel: Longest drive of the ego car, metres.
    """
    rng = np.random.default_rng([seed, number, 1])
    street = place_street(seed, number, hand, travel)
    polygons, _ = map_layers(street)
    builder = _Builder(rng, street, [*polygons["drivable_area"], *polygons["walkway"]])
    for road in street.roads:
        for side in (-1, 1):
            builder.build_up(road, side)
            builder.furnish(road, side)
    builder.background(travel)
    builder.greenery(travel)
    return Place(street, join(builder.parts), float(rng.uniform(0.2, 0.95)))


class _Builder:
    """Places static objects so that they overlap neither a road nor each other."""

    def __init__(self, rng: np.random.Generator, street: Street, roads: list[Polygon]) -> None:
        self.rng = rng
        self.street = street
        self.parts: list[Shapes] = []
        self._roads = STRtree(roads)
        self._footprints: list[Polygon] = []

    def _free(self, footprint: Polygon) -> bool:
        """Return whether a footprint overlaps no road and no other footprint."""
        if self._roads.query(footprint, predicate="intersects").size:
            return False
        return not shapely.intersects(footprint, self._footprints).any()

    def _footprint(self, x: float, y: float, yaw: float, width: float, depth: float) -> Polygon:
        """Make the footprint of an object; (x, y) is the middle of its front."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        corners = [(-width / 2, 0.2), (width / 2, 0.2), (width / 2, depth), (-width / 2, depth)]
        return Polygon([(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in corners])

    def build_up(self, road: Road, side: int) -> None:
        """Place rows of buildings along one side of a road; the zone changes along it and some stretches stay open."""
        rng, s = self.rng, 0.0
        kinds = ["city", "town", "suburb", "works", "park"]
        while s < road.curve.length:
            end = s + rng.uniform(60, 140)
            kind = kinds[int(rng.choice(5, p=(0.3, 0.3, 0.2, 0.1, 0.1)))]
            if kind == "park":
                s = end
                continue
            zone = ZONES[kind]
            while s < end:
                width, depth = rng.uniform(*zone.width), rng.uniform(*zone.depth)
                out = road.half_width + self.street.frontage + rng.uniform(*zone.setback)
                self._try_building(road, side, s + width / 2, out, width, depth, kind)
                s += width + rng.uniform(*zone.gap)

    def _try_building(self, road: Road, side: int, s: float, out: float, width: float, depth: float, kind: str) -> None:
        """Place a building ``out`` metres from the middle of the road if its plot is free."""
        x, y, heading = (float(v) for v in road.curve.point(s, side * out))
        yaw = heading if side > 0 else heading + np.pi
        footprint = self._footprint(x, y, yaw, width, depth)
        if self._free(footprint):
            self._footprints.append(footprint)
            self.parts.append(placed(building(self.rng, ZONES[kind], width, depth), x, y, yaw))

    def background(self, travel: float) -> None:
        """Place towers behind the front row."""
        road, rng = self.street.roads[0], self.rng
        for _ in range(int(40 + travel / 8)):
            s, side = rng.uniform(0, road.curve.length), int(rng.choice((-1, 1)))
            width, depth = rng.uniform(15, 30), rng.uniform(15, 25)
            self._try_building(road, side, s, rng.uniform(40, 120), width, depth, "city")

    def furnish(self, road: Road, side: int) -> None:
        """Place street trees, lamps, signs and furniture along one side of a road."""
        rng, street = self.rng, self.street
        edge = road.half_width + (street.verge / 2 if street.verge else 0.7)
        inner = road.half_width + street.frontage
        kind = (plants.tree, plants.tree, plants.conifer, plants.palm)[int(rng.integers(4))]
        spacing, height = rng.uniform(8, 18), rng.uniform(5, 9)
        planted = rng.random() < 0.75
        for s in np.arange(rng.uniform(2, 8), road.curve.length, spacing):
            if planted and rng.random() < 0.85:
                self._place_beside(road, side, s, edge, kind(rng, height * rng.uniform(0.8, 1.2)))
        for s in np.arange(rng.uniform(5, 20), road.curve.length, 28.0):
            self._place_beside(road, side, s + 0.5, edge, plants.lamp(rng), facing=True)
        for s in np.arange(rng.uniform(5, 20), road.curve.length, 17.0):
            pick = rng.random()
            if pick < 0.3:
                self._place_beside(road, side, s, edge, plants.sign(rng), along=-side * road.hand)
            elif pick < 0.45:
                self._place_beside(road, side, s, inner - 0.5, plants.bench(), facing=True)
            elif pick < 0.5:
                self._place_beside(road, side, s, inner - 0.8, plants.bus_shelter(), facing=True)
            elif pick < 0.6:
                for step in range(4):
                    self._place_beside(road, side, s + 1.5 * step, edge, plants.bollard())

    def _place_beside(
        self, road: Road, side: int, s: float, out: float, thing: Shapes, facing: bool = False, along: int = 1
    ) -> None:
        """Place an object beside the road, facing it or along it, unless that position is on a carriageway."""
        x, y, heading = (float(v) for v in road.curve.point(s, side * out))
        kerb, _ = self.street.kerb_distance(np.array([x]), np.array([y]))
        if kerb[0] < 0.3:
            return
        yaw = heading - side * np.pi / 2 if facing else (heading if along > 0 else heading + np.pi)
        self.parts.append(placed(thing, x, y, yaw))

    def greenery(self, travel: float) -> None:
        """Place trees, bushes and hedges on open ground."""
        road, rng, street = self.street.roads[0], self.rng, self.street
        for _ in range(int(110 + travel / 3)):
            s, side = rng.uniform(0, road.curve.length), int(rng.choice((-1, 1)))
            out = road.half_width + street.frontage + rng.gamma(2.0, 9.0) + 1.0
            x, y, heading = (float(v) for v in road.curve.point(s, side * out))
            size = 1.0
            pick = rng.random()
            if pick < 0.25:
                thing, size = plants.hedge(rng, length := rng.uniform(4, 12)), length
            elif pick < 0.45:
                thing = plants.bush(rng)
            elif pick < 0.85:
                thing, size = plants.tree(rng, rng.uniform(5, 12)), 2.0
            else:
                thing = plants.conifer(rng, rng.uniform(5, 11))
            footprint = self._footprint(x, y, heading, size, 1.5)
            if self._free(footprint):
                self.parts.append(placed(thing, x, y, heading))
