"""Annotate actors: their boxes, the number of LiDAR points in each box, and the visible fraction."""

from collections.abc import Sequence

import numpy as np

from .arrays import Array
from .raycast import Hits, Solids
from .shapes import SHAPE, Kind, Shapes
from .traffic import Actor
from .views import Pinhole

REACH = 80.0
"""Largest distance from the ego car at which an actor is annotated, metres."""


def boxes(actors: Sequence[Actor], poses: Sequence[tuple[float, float, float]]) -> Shapes:
    """Make the bounding boxes of actors at ``poses`` (x, y in metres, heading in radians), as shapes [actors]."""
    rows = np.zeros(len(actors), SHAPE)
    rows["kind"] = int(Kind.BOX)
    if actors:
        size = np.array([actor.model.size for actor in actors])  # [actors, 3]
        x, y, rows["yaw"] = np.array(poses).T  # [actors] each
        rows["half"] = size / 2
        rows["center"] = np.stack([x, y, size[:, 2] / 2], axis=1)
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
    numbers, windows, near = view.windows(around)
    solids = Solids(around[numbers], view.eye, view.grid())
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in np.flatnonzero(near <= REACH).tolist():
            r0, r1, c0, c1 = windows[i].tolist()
            met = hits.t[r0:r1:2, c0:c1:2]
            nearness = solids.meet(i, (r0, r1, c0, c1), np.zeros((r1 - r0, c1 - c0), np.float32))[0][::2, ::2]
            inside = nearness > 0
            entry = 1 / nearness[inside]
            area[numbers[i]] += (int((met[inside] >= entry - 0.02).sum()), int(inside.sum()))
    return area


def visibility_level(fraction: float) -> str:
    """Return nuScenes' visibility token for the fraction of an actor that the six cameras see together, 0..1.

    >>> [visibility_level(fraction) for fraction in (0.0, 0.4, 0.5, 0.7, 1.0)]
    ['1', '1', '2', '3', '4']
    """
    return str(1 + int(fraction > 0.4) + int(fraction > 0.6) + int(fraction > 0.8))
