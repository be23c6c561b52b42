"""The map of each location: the positions of its places, the semantic mask and the map expansion."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw
from shapely.geometry import LinearRing
from shapely.ops import unary_union

from .expansion import ExpansionBuilder
from .place import place_street
from .street import map_layers, parts

MASKS = {
    "singapore-onenorth": "53992ee3023e5494b90c316c183be829",
    "boston-seaport": "36092f0b03a857c6a3403e25b4b7aab3",
    "singapore-hollandvillage": "37819e65e09e5547b8a3ceaefba56bb2",
    "singapore-queenstown": "93406b464a165eaba6d9de76ca09f5da",
}
"""File name of the mask of each location; the ``BitMap`` of the devkit expects these names."""
LOCATIONS = tuple(MASKS)
RESOLUTION = 0.1
"""Metres per pixel of a mask, as the devkit expects."""
MARGIN = 40.0
"""Width of the empty ground around each place, metres."""


def location_of(place: int) -> str:
    """Return the location that a place belongs to."""
    return LOCATIONS[place % len(LOCATIONS)]


def hand_of(place: int) -> int:
    """Return +1 if traffic drives on the right at a place, -1 if on the left."""
    return 1 if location_of(place).startswith("boston") else -1


@dataclass(frozen=True)
class Atlas:
    """The map of one location."""

    offsets: dict[int, tuple[float, float]]
    """Position of the origin of each place on the map, metres."""
    mask: bytes
    """A PNG image: 255 on roads and pavements, 0 elsewhere; row 0 is the northern edge."""
    expansion: str
    """The map expansion as JSON, see :mod:`mim4d.world.expansion`."""


def make_atlas(seed: int, places: Sequence[int], travel: float) -> Atlas:
    """Make the map of one location, with its places side by side from west to east.

    Args:
        seed: Seed of the world.
        places: Numbers of the places, all of one location.
        travel: Longest drive of the ego car, metres.
    """
    offsets, shapes, east, north = {}, [], 0.0, 0.0
    expansion = ExpansionBuilder(f"{seed}/{location_of(places[0])}")
    for place in places:
        polygons, lines = map_layers(place_street(seed, place, hand_of(place), travel))
        paved = unary_union([*polygons["drivable_area"], *polygons["walkway"]]).buffer(0.05)  # close the seams
        low_x, low_y, high_x, high_y = paved.bounds
        offset = (round(east + MARGIN - low_x, 1), round(MARGIN - low_y, 1))
        offsets[place] = offset
        expansion.add(polygons, lines, offset)
        shapes.append((offset, parts(paved)))
        east = offset[0] + high_x + MARGIN
        north = max(north, offset[1] + high_y + MARGIN)
    size = (int(np.ceil(east / RESOLUTION)), int(np.ceil(north / RESOLUTION)))
    image = Image.new("L", size, 0)
    draw = ImageDraw.Draw(image)
    for offset, areas in shapes:
        for area in areas:
            _fill(draw, area.exterior, offset, 255)
            for hole in area.interiors:
                _fill(draw, hole, offset, 0)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return Atlas(offsets, buffer.getvalue(), expansion.text((size[0] * RESOLUTION, size[1] * RESOLUTION)))


def _fill(draw: ImageDraw.ImageDraw, ring: LinearRing, offset: tuple[float, float], value: int) -> None:
    """Fill a ring, given in the frame of its place."""
    points = (np.array(ring.coords) + offset) / RESOLUTION  # [P, 2], pixels
    height = draw.im.size[1]
    draw.polygon([(float(x), float(height - y)) for x, y in points], fill=value)
