"""Boxes round things: how many LiDAR points each holds and how much of it the cameras see."""

from collections.abc import Sequence

import numpy as np

from .arrays import Array
from .raycast import Hits, meet_box
from .shapes import SHAPE, Kind, Shapes
from .traffic import Actor
from .views import Pinhole

REACH = 80.0
"""Things farther than this from the ego car are not annotated, metres."""


def boxes(actors: Sequence[Actor], t: float) -> Shapes:
    """The box that holds each actor at ``t`` seconds, as shapes [N]."""
    rows = np.zeros(len(actors), SHAPE)
    rows["kind"] = Kind.BOX
    for row, actor in zip(rows, actors, strict=True):
        x, y, yaw = actor.motion.pose(t)
        row["center"], row["yaw"] = (x, y, actor.model.size[2] / 2), yaw
        row["half"] = np.array(actor.model.size) / 2
    return rows


def points_inside(box: np.void, points: Array) -> int:
    """How many of ``points`` [N, 3] in the world lie in a box."""
    offset = points - box["center"]
    cos, sin = np.cos(box["yaw"]), np.sin(box["yaw"])
    local = np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]])
    return int((np.abs(local) <= box["half"][:, None]).all(0).sum())


def seen_area(view: Pinhole, hits: Hits, around: Shapes) -> Array:
    """How much of each box a camera sees.

    Args:
        view: The camera.
        hits: What its rays meet.
        around: [N] boxes at the time of the picture.

    Returns:
        [N, 2]: pixels of the box with nothing before it, and all its pixels, in every second row and column.
    """
    area = np.zeros((len(around), 2), np.int64)
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


def visibility_level(share: float) -> str:
    """nuScenes' token of how much of a thing the six cameras see together, for a share of 0..1."""
    return str(1 + int(share > 0.4) + int(share > 0.6) + int(share > 0.8))
