"""Maps: where places lie in each location, and the mask of drivable ground and pavements that nuScenes has."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw
from shapely.geometry import LinearRing
from shapely.ops import unary_union

from .place import place_street
from .street import map_layers, parts

LOCATIONS = ("singapore-onenorth", "boston-seaport", "singapore-hollandvillage", "singapore-queenstown")
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


def make_atlas(seed: int, places: Sequence[int], travel: float) -> Atlas:
    """Lay places side by side, from west to east.

    Args:
        seed: The world's.
        places: Their numbers, all of one location.
        travel: How far a scene's ego car may drive, metres.
    """
    offsets, shapes, east, north = {}, [], 0.0, 0.0
    for place in places:
        polygons, _ = map_layers(place_street(seed, place, hand_of(place), travel))
        paved = unary_union([*polygons["drivable_area"], *polygons["walkway"]]).buffer(0.05)  # closes seams
        low_x, low_y, high_x, high_y = paved.bounds
        offset = (round(east + MARGIN - low_x, 1), round(MARGIN - low_y, 1))
        offsets[place] = offset
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
    return Atlas(offsets, buffer.getvalue())


def _fill(draw: ImageDraw.ImageDraw, ring: LinearRing, offset: tuple[float, float], value: int) -> None:
    """Fill a ring given in a place's frame."""
    points = (np.array(ring.coords) + offset) / RESOLUTION
    height = draw.im.size[1]
    draw.polygon([(float(x), float(height - y)) for x, y in points], fill=value)
