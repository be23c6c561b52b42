"""A LiDAR sweep of a scene."""

import numpy as np

from .arrays import Array, rotated
from .raycast import cast
from .render import Painter
from .rig import BEAMS, COLUMNS, ELEVATIONS
from .shapes import Shapes
from .views import Spinning

RANGE = (1.0, 100.0)
"""Nearest and farthest return, metres."""
SPREAD = 0.015
"""Standard deviation of the measured range, metres."""


def sweep(painter: Painter, shapes: Shapes, world_from_lidar: Array, rng: np.random.Generator) -> Array:
    """Scan once round, in an instant: the points are those of a sweep whose motion has been taken out.

    Args:
        painter: The scene, for reflectance.
        shapes: All shapes where they are at the time of the sweep.
        world_from_lidar: [4, 4] metres; the beams are level in the world.
        rng: Source of the noise.

    Returns:
        [N, 5] float32 as nuScenes stores it: x, y, z in the LiDAR's frame in metres, intensity in 0..255, beam (0 is
        the lowest).
    """
    eye = world_from_lidar[:3, 3]
    right = world_from_lidar[:3, 0]
    behind = float(np.arctan2(right[1], right[0])) - np.pi / 2  # where nuScenes' sweeps begin
    view = Spinning((BEAMS, COLUMNS), eye, (np.deg2rad(ELEVATIONS[0]), np.deg2rad(ELEVATIONS[1])), behind)
    hits = cast(view, shapes)
    beam, column = np.nonzero((hits.t > RANGE[0]) & (hits.t < RANGE[1]))
    order = np.lexsort((beam, column))  # a column at a time, as the sensor turns
    beam, column = beam[order], column[order]
    unit = np.stack([c[beam, column] for c in view.rays().direction], axis=1)
    distance = hits.t[beam, column]
    where = eye.astype(np.float32) + unit * distance[:, None]
    footprint = distance * np.float32(2 * np.pi / COLUMNS)
    seen = painter.surface(shapes, where, unit, hits.shape[beam, column], hits.face[beam, column], footprint)
    facing = np.abs((unit * seen.normal).sum(1))
    strength = seen.albedo.mean(1) * (0.25 + 0.75 * facing)
    # Light that a pane or wet paint throws elsewhere does not come back, nor does much from dark things far away.
    returns = rng.random(len(distance)) > 0.01 + 1.2 * seen.gloss + 0.25 * (distance / RANGE[1]) ** 2 * (
        strength < 0.06
    )
    measured = distance + rng.normal(0.0, SPREAD, len(distance))
    points = rotated(world_from_lidar[:3, :3].T, unit * measured[:, None].astype(np.float32))
    intensity = np.clip(strength * 160 + rng.normal(0, 1.5, len(distance)), 0, 255).round()
    return np.column_stack([points, intensity, beam]).astype(np.float32)[returns]
