"""Where rays start and go, and which of them can meet a shape: a camera, a spinning LiDAR, the sun.

A view is a grid of rays. ``t`` counts along a ray in units of its direction: depth along the optical axis for a camera
(so that ``t`` is the depth map), metres for the LiDAR and the sun.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import Array, dot, rotated
from .shapes import EDGES, Shapes, bounds, corners

NEAR = 0.2
"""Metres before the camera plane where shapes are cut off."""


@dataclass(frozen=True)
class Rays:
    """A grid of rays relative to the view's eye; each component is [H, W] float32, or a scalar shared by all."""

    origin: tuple[Array, Array, Array]
    direction: tuple[Array, Array, Array]

    def window(self, rect: Array) -> "Rays":
        """The rays of rows ``rect[0]:rect[1]`` and columns ``rect[2]:rect[3]``."""
        r0, r1, c0, c1 = rect
        origin = tuple(c[r0:r1, c0:c1] if c.ndim else c for c in self.origin)
        direction = tuple(c[r0:r1, c0:c1] if c.ndim else c for c in self.direction)
        return Rays(origin, direction)  # type: ignore[arg-type]


class View(Protocol):
    """What the ray caster asks of a view."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of rays."""

    @property
    def eye(self) -> Array:
        """The point [3] in the world, metres, which rays and shapes are taken relative to."""

    def rays(self) -> Rays:
        """All rays of the view."""

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Which rays can meet each shape.

        Returns:
            number of the shape [M] (one may need several windows), window [M, 4] as first and last (exclusive) row and
            column, and a lower bound [M] of ``t`` at which its rays can meet it. Shapes out of sight are left out.
        """


def _clipped(low: Array, high: Array, count: int) -> tuple[Array, Array]:
    """Rays, at integer + 1/2, that lie in [low, high]: first and last (exclusive), cut to 0..count."""
    first = np.clip(np.ceil(low - 0.5), 0, count).astype(np.int64)
    last = np.clip(np.floor(high - 0.5) + 1, 0, count).astype(np.int64)
    return first, last


@dataclass(frozen=True)
class Pinhole:
    """A camera. Pixels are continuous and the centre of the top-left one is (0.5, 0.5)."""

    size: tuple[int, int]
    intrinsics: Array
    """[3, 3] pixels."""
    world_from_camera: Array
    """[4, 4] metres."""

    @property
    def eye(self) -> Array:
        """The camera's centre in the world [3]."""
        return self.world_from_camera[:3, 3]

    def refined(self, factor: int) -> "Pinhole":
        """The same camera with ``factor`` times as many pixels along each axis."""
        size = (self.size[0] * factor, self.size[1] * factor)
        return Pinhole(size, self.intrinsics * np.array([[factor], [factor], [1.0]]), self.world_from_camera)

    def rays(self) -> Rays:
        """Rays through the pixel centres, of depth 1 along the optical axis."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - self.intrinsics[0, 2]) / self.intrinsics[0, 0]
        y = ((np.arange(height) + 0.5 - self.intrinsics[1, 2]) / self.intrinsics[1, 1])[:, None]
        rotation = self.world_from_camera[:3, :3]
        zero = np.zeros((), np.float32)
        direction = tuple((r[0] * x + r[1] * y + r[2]).astype(np.float32) for r in rotation)
        return Rays((zero, zero, zero), direction)

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Screen rectangles about the projected boxes, cut at the near plane."""
        points = rotated(self.world_from_camera[:3, :3].T, corners(shapes) - self.eye)  # [N, 8, 3] in the camera frame
        depth = points[..., 2]
        nearest = depth.min(1)
        number = np.flatnonzero(depth.max(1) > NEAR)
        points, depth = points[number], depth[number]
        # Where an edge crosses the near plane its crossing bounds the visible part, the corner behind does not.
        a, b = points[:, EDGES[:, 0]], points[:, EDGES[:, 1]]
        drop = b[..., 2] - a[..., 2]
        share = (NEAR - a[..., 2]) / np.where(drop == 0, 1.0, drop)
        crossing = a + share[..., None] * (b - a)
        crosses = (a[..., 2] > NEAR) != (b[..., 2] > NEAR)
        seen = np.concatenate([depth > NEAR, crosses], axis=1)
        every = np.concatenate([points, crossing], axis=1)
        safe = np.where(seen, every[..., 2], 1.0)
        u = self.intrinsics[0, 0] * every[..., 0] / safe + self.intrinsics[0, 2]
        v = self.intrinsics[1, 1] * every[..., 1] / safe + self.intrinsics[1, 2]
        c0, c1 = _clipped(np.where(seen, u, np.inf).min(1), np.where(seen, u, -np.inf).max(1), self.size[1])
        r0, r1 = _clipped(np.where(seen, v, np.inf).min(1), np.where(seen, v, -np.inf).max(1), self.size[0])
        keep = (r0 < r1) & (c0 < c1)
        window = np.stack([r0, r1, c0, c1], axis=1)
        return number[keep], window[keep], np.maximum(nearest[number[keep]], 0.0)


@dataclass(frozen=True)
class Spinning:
    """A LiDAR with beams at equal steps of elevation that turns clockwise, seen as an image of beams by azimuths."""

    size: tuple[int, int]
    eye: Array
    elevations: tuple[float, float]
    """Of the lowest and the highest beam, radians."""
    yaw: float
    """Heading of column 0's left edge in the world, radians."""

    @property
    def step(self) -> float:
        """Between neighbouring beams, radians."""
        return (self.elevations[1] - self.elevations[0]) / (self.size[0] - 1)

    def rays(self) -> Rays:
        """Unit rays; row 0 is the lowest beam, columns go clockwise."""
        beams, columns = self.size
        elevation = np.linspace(*self.elevations, beams)[:, None]
        azimuth = self.yaw - (np.arange(columns) + 0.5) * (2 * np.pi / columns)
        zero = np.zeros((), np.float32)
        direction = (
            (np.cos(elevation) * np.cos(azimuth)).astype(np.float32),
            (np.cos(elevation) * np.sin(azimuth)).astype(np.float32),
            np.broadcast_to(np.sin(elevation), self.size).astype(np.float32),
        )
        return Rays((zero, zero, zero), direction)

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Ranges of azimuth and elevation about an upright cylinder round each shape; two where azimuth wraps."""
        beams, columns = self.size
        half = bounds(shapes)
        offset = shapes["center"] - self.eye
        radius = np.hypot(half[:, 0], half[:, 1])
        away = np.hypot(offset[:, 0], offset[:, 1])
        closest = np.maximum(away - radius, 1e-3)
        top, bottom = offset[:, 2] + half[:, 2], offset[:, 2] - half[:, 2]
        highest = np.arctan2(top, np.where(top > 0, closest, away + radius))
        lowest = np.arctan2(bottom, np.where(bottom < 0, closest, away + radius))
        r0, r1 = _clipped(
            (lowest - self.elevations[0]) / self.step + 0.5, (highest - self.elevations[0]) / self.step + 0.5, beams
        )
        width = np.where(away > radius, np.arcsin(np.minimum(radius / np.maximum(away, 1e-9), 1.0)), np.pi)
        middle = (self.yaw - np.arctan2(offset[:, 1], offset[:, 0])) % (2 * np.pi)
        per_radian = columns / (2 * np.pi)
        number, window = [], []
        for turn in (-2 * np.pi, 0.0, 2 * np.pi):
            c0, c1 = _clipped((middle - width + turn) * per_radian, (middle + width + turn) * per_radian, columns)
            keep = np.flatnonzero((r0 < r1) & (c0 < c1))
            number.append(keep)
            window.append(np.stack([r0, r1, c0, c1], axis=1)[keep])
        numbers = np.concatenate(number)
        return numbers, np.concatenate(window), closest[numbers]


@dataclass(frozen=True)
class Sunlight:
    """Parallel rays from the sun down to a square of ground: what it sees is lit."""

    center: Array
    """Middle of the square [3], metres."""
    toward_sun: Array
    """Unit vector [3]."""
    reach: float
    """Half side of the square across the rays, metres."""
    step: float
    """Between rays, metres."""
    height: float = 120.0
    """How far above the middle the rays start, along themselves, metres."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of rays."""
        count = int(2 * self.reach / self.step)
        return count, count

    @property
    def eye(self) -> Array:
        """Where the middle ray starts."""
        return self.center + self.height * self.toward_sun

    @property
    def axes(self) -> tuple[Array, Array]:
        """Unit vectors along columns and rows, across the rays."""
        across = np.array([-self.toward_sun[1], self.toward_sun[0], 0.0])
        across /= np.linalg.norm(across)
        return across, np.cross(self.toward_sun, across)

    def rays(self) -> Rays:
        """Rays of one direction, at equal steps across it."""
        across, up = self.axes
        u = (np.arange(self.size[1]) + 0.5) * self.step - self.reach
        v = ((np.arange(self.size[0]) + 0.5) * self.step - self.reach)[:, None]
        origin = tuple((across[i] * u + up[i] * v).astype(np.float32) for i in range(3))
        direction = tuple(np.asarray(-c, np.float32) for c in self.toward_sun)
        return Rays(origin, direction)  # type: ignore[arg-type]

    def locate(self, points: Array) -> tuple[Array, Array, Array]:
        """Row, column (either may lie outside the grid) and ``t`` of the ray through each point [..., 3]."""
        across, up = self.axes
        offset: Array = points - self.eye.astype(np.float32)
        column = np.floor((dot(offset, across) + np.float32(self.reach)) / np.float32(self.step)).astype(np.int64)
        row = np.floor((dot(offset, up) + np.float32(self.reach)) / np.float32(self.step)).astype(np.int64)
        return row, column, -(dot(offset, self.toward_sun))

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Rectangles about each box as the sun sees it."""
        offset = corners(shapes) - self.eye
        across, up = self.axes
        u, v = (dot(offset, across) + self.reach) / self.step, (dot(offset, up) + self.reach) / self.step
        c0, c1 = _clipped(u.min(1), u.max(1), self.size[1])
        r0, r1 = _clipped(v.min(1), v.max(1), self.size[0])
        keep = np.flatnonzero((r0 < r1) & (c0 < c1))
        window = np.stack([r0, r1, c0, c1], axis=1)[keep]
        return keep, window, -dot(offset, self.toward_sun).max(1)[keep]
