"""Maps: where places lie in each location, and the mask of drivable ground and pavements that nuScenes has."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from .place import place_street
from .street import map_layers

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
        areas = [*polygons["drivable_area"], *polygons["walkway"]]
        low_x, low_y, high_x, high_y = np.array([a.bounds for a in areas]).T
        offset = (round(east + MARGIN - low_x.min(), 1), round(MARGIN - low_y.min(), 1))
        offsets[place] = offset
        shapes.append((offset, areas))
        east = offset[0] + float(high_x.max()) + MARGIN
        north = max(north, offset[1] + float(high_y.max()) + MARGIN)
    size = (int(np.ceil(east / RESOLUTION)), int(np.ceil(north / RESOLUTION)))
    image = Image.new("L", size, 0)
    draw = ImageDraw.Draw(image)
    for offset, areas in shapes:
        # Filled in order of outlines, then holes: what lies inside a ring road of pavement is not pavement.
        for value in (255, 0):
            for area in areas:
                rings = [area.exterior] if value else area.interiors
                for ring in rings:
                    points = (np.array(ring.coords) + offset) / RESOLUTION
                    draw.polygon([(float(x), float(size[1] - y)) for x, y in points], fill=value)
        for area in areas[: len(polygons["drivable_area"])]:
            points = (np.array(area.exterior.coords) + offset) / RESOLUTION
            draw.polygon([(float(x), float(size[1] - y)) for x, y in points], fill=255)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return Atlas(offsets, buffer.getvalue())
