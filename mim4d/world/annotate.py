"""Annotate actors: their boxes, the number of LiDAR points in each box, and the visible fraction."""

from collections.abc import Sequence

import numpy as np

from .arrays import Array
from .raycast import Hits, meet_box
from .shapes import SHAPE, Kind, Shapes
from .traffic import Actor
from .views import Pinhole

REACH = 80.0
"""Largest distance from the ego car at which an actor is annotated, metres."""


def boxes(actors: Sequence[Actor], t: float) -> Shapes:
    """Make the bounding box of each actor at ``t`` seconds, as shapes [actors]."""
    rows = np.zeros(len(actors), SHAPE)
    rows["kind"] = Kind.BOX
    for row, actor in zip(rows, actors, strict=True):
        x, y, yaw = actor.motion.pose(t)
        row["center"], row["yaw"] = (x, y, actor.model.size[2] / 2), yaw
        row["half"] = np.array(actor.model.size) / 2
    return rows


def points_inside(box: np.void, points: Array) -> int:
    """Count the points [P, 3] in the world that lie in a box."""
    offset = points - box["center"]  # [P, 3]
    cos, sin = np.cos(box["yaw"]), np.sin(box["yaw"])
    x, y, z = offset.T  # [P] each
    local = np.stack([cos * x + sin * y, cos * y - sin * x, z])  # [3, P]
    return int((np.abs(local) <= box["half"][:, None]).all(0).sum())


def seen_area(view: Pinhole, hits: Hits, around: Shapes) -> Array:
    """Measure the area of each box in an image.

    Args:
        view: The camera.
        hits: The hits of its rays.
        around: [actors] boxes at the time of the image.

    Returns:
        [actors, 2]: number of visible pixels of the box, and of all its pixels, counted in every second row and column.
    """
    area = np.zeros((len(around), 2), np.int64)  # [actors, 2]
    rays = view.rays()
    numbers, windows, near = view.windows(around)
    with np.errstate(divide="ignore", invalid="ignore"):
        for number, window, depth in zip(numbers, windows, near, strict=True):
            if depth > REACH:
                continue
            one = around[number]
            offset = (view.eye - one["center"]).astype(np.float32)
            cos, sin = np.float32(np.cos(one["yaw"])), np.float32(np.sin(one["yaw"]))
            dx, dy, dz = (c[::2, ::2] for c in rays.window(window).direction)
            origin = (cos * offset[0] + sin * offset[1], cos * offset[1] - sin * offset[0], offset[2])
            entry, _ = meet_box(origin, (cos * dx + sin * dy, cos * dy - sin * dx, dz), one)
            inside = np.isfinite(entry)
            r0, r1, c0, c1 = window
            met = hits.t[r0:r1:2, c0:c1:2]
            area[number] += (int((met[inside] >= entry[inside] - 0.02).sum()), int(inside.sum()))
    return area


def visibility_level(fraction: float) -> str:
    """Return nuScenes' visibility token for the fraction of an actor that the six cameras see together, 0..1.

    >>> [visibility_level(fraction) for fraction in (0.0, 0.4, 0.5, 0.7, 1.0)]
    ['1', '1', '2', '3', '4']
    """
    return str(1 + int(fraction > 0.4) + int(fraction > 0.6) + int(fraction > 0.8))
