"""Maps: where places lie in each location, the mask of drivable ground and pavements, and the map expansion."""

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
"""Name of each location's mask: nuScenes' own, which the devkit's ``BitMap`` has written down."""
LOCATIONS = tuple(MASKS)
RESOLUTION = 0.1
"""Metres a pixel of a mask, as the devkit expects."""
MARGIN = 40.0
"""Empty ground round each place, metres."""


def location_of(place: int) -> str:
    """The location a place belongs to."""
    return LOCATIONS[place % len(LOCATIONS)]


def hand_of(place: int) -> int:
    """+1 where traffic keeps right, -1 where it keeps left."""
    return 1 if location_of(place).startswith("boston") else -1


@dataclass(frozen=True)
class Atlas:
    """The map of one location."""

    offsets: dict[int, tuple[float, float]]
    """Where the frame of each place lies, metres."""
    mask: bytes
    """PNG: 255 on drivable ground and pavements, 0 elsewhere; row 0 is the northern edge."""
    expansion: str
    """JSON of the map expansion, see :mod:`mim4d.world.expansion`."""


def make_atlas(seed: int, places: Sequence[int], travel: float) -> Atlas:
    """Lay places side by side, from west to east.

    Args:
        seed: The world's.
        places: Their numbers, all of one location.
        travel: How far a scene's ego car may drive, metres.
    """
    offsets, shapes, east, north = {}, [], 0.0, 0.0
    expansion = ExpansionBuilder(f"{seed}/{location_of(places[0])}")
    for place in places:
        polygons, lines = map_layers(place_street(seed, place, hand_of(place), travel))
        paved = unary_union([*polygons["drivable_area"], *polygons["walkway"]]).buffer(0.05)  # closes seams
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
    """Fill a ring given in a place's frame."""
    points = (np.array(ring.coords) + offset) / RESOLUTION
    height = draw.im.size[1]
    draw.polygon([(float(x), float(height - y)) for x, y in points], fill=value)
