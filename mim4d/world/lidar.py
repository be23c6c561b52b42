"""Render a LiDAR sweep of a scene."""

import numpy as np

from .arrays import Array, rotated
from .raycast import cast
from .render import Painter, by_material
from .rig import BEAMS, COLUMNS, ELEVATIONS
from .shapes import Columns, Shapes, bounds
from .views import Spinning

RANGE = (1.0, 100.0)
"""Smallest and largest distance of a return, metres."""
SPREAD = 0.015
"""Standard deviation of the noise of the distance, metres."""


def sweep(painter: Painter, shapes: Shapes, world_from_lidar: Array, rng: np.random.Generator) -> Array:
    """Render one full turn at a single time, like a sweep after motion compensation.

    Args:
        painter: The scene, for reflectance.
        shapes: [shapes] all shapes at the time of the sweep.
        world_from_lidar: [4, 4] pose of the LiDAR; its yaw is used, the beams stay level in the world.
        rng: Random generator of the noise.

    Returns:
        [P, 5] float32 as nuScenes stores it: x, y, z in the LiDAR's frame (metres), intensity in 0..255, and the number
        of the beam, 0 for the lowest.
    """
    eye = world_from_lidar[:3, 3]
    right = world_from_lidar[:3, 0]
    behind = float(np.arctan2(right[1], right[0])) - np.pi / 2  # heading at which the sweeps of nuScenes start
    view = Spinning((BEAMS, COLUMNS), eye, (np.deg2rad(ELEVATIONS[0]), np.deg2rad(ELEVATIONS[1])), behind)
    size = np.linalg.norm(bounds(shapes), axis=1)  # [shapes]
    shapes = shapes[np.linalg.norm(shapes["center"] - eye, axis=1) - size < RANGE[1]]
    hits = cast(view, shapes)  # [BEAMS, COLUMNS]
    beam, column = np.nonzero((hits.t > RANGE[0]) & (hits.t < RANGE[1]))  # [P] each
    order = np.lexsort((beam, column))  # column by column, as the sensor turns
    beam, column = beam[order], column[order]
    unit = np.stack([c[beam, column] for c in view.rays().direction])  # [3, P]
    distance = hits.t[beam, column]  # [P]
    where = eye.astype(np.float32)[:, None] + unit * distance  # [3, P]
    footprint = distance * np.float32(2 * np.pi / COLUMNS)
    columns, shape, face = Columns(shapes), hits.shape[beam, column], hits.face[beam, column]
    strength, gloss = np.empty_like(distance), np.empty_like(distance)
    for kind, rows in by_material(columns, shape):
        towards = unit[:, rows]
        seen = painter.surface(columns, kind, where[:, rows], towards, shape[rows], face[rows], footprint[rows])
        facing = np.abs((towards * seen.normal).sum(0))
        strength[rows] = seen.albedo.mean(0) * (0.25 + 0.75 * facing)
        gloss[rows] = seen.gloss
    # Glossy surfaces reflect the light elsewhere, and dark objects far away return too little of it.
    returns = rng.random(len(distance)) > 0.01 + 1.2 * gloss + 0.25 * (distance / RANGE[1]) ** 2 * (strength < 0.06)
    measured = distance + rng.normal(0.0, SPREAD, len(distance))
    points = rotated(world_from_lidar[:3, :3].T, (unit * measured.astype(np.float32)).T)  # [P, 3]
    intensity = np.clip(strength * 160 + rng.normal(0, 1.5, len(distance)), 0, 255).round()
    return np.column_stack([points, intensity, beam]).astype(np.float32)[returns]
