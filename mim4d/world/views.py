"""Views: grids of rays of a camera, a spinning LiDAR and the sun, and which of the rays can hit a shape.

``t`` is the distance along a ray in units of its direction: the depth along the optical axis for a camera (so that
``t`` is the depth map), metres for the LiDAR and the sun.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from .arrays import Array, dot, rotated
from .shapes import EDGES, Shapes, bounds, corners

NEAR = 0.2
"""Depth of the near plane of a camera, metres."""


@dataclass(frozen=True)
class Rays:
    """A grid of rays relative to the eye of a view; each component is [H, W] float32, or a scalar for all rays."""

    origin: tuple[Array, Array, Array]
    direction: tuple[Array, Array, Array]


@dataclass(frozen=True)
class Grid:
    """The rays of a view as homogeneous lines B + w A relative to its eye, see :mod:`mim4d.world.raycast`.

    B of row r and column c is ``columns[:, c] + rows[r] * down``.
    """

    pole: Array
    """[4] A."""
    columns: Array
    """[4, W] part of B per column."""
    down: Array
    """[4] direction in which B changes from row to row."""
    rows: Array
    """[H] how far."""
    scale: Array
    """[H, 1] or []: t per 1 / w."""
    parallel: bool = False
    """Whether the rays are parallel, so that w = -t."""

    @property
    def farthest(self) -> float:
        """Nearness of infinity."""
        return -np.inf if self.parallel else 0.0

    def nearness(self, t: Array) -> Array:
        """Compute the nearness of hits at ``t``, of the same shape; of rays that meet in the eye, with scale 1."""
        with np.errstate(divide="ignore"):
            return -t if self.parallel else 1 / np.maximum(t, 0.0)

    def distance(self, w: Array) -> Array:
        """Compute ``t`` [H, W] float32 of hits of nearness ``w`` [H, W]."""
        if self.parallel:
            return -w
        with np.errstate(divide="ignore"):
            t: Array = self.scale.astype(np.float32) / w
        return t


class View(Protocol):
    """The interface between the ray caster and a view."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of rays."""

    @property
    def eye(self) -> Array:
        """[3] point in the world to which the origins of rays are relative, metres."""

    def grid(self) -> Grid:
        """Return all rays of the view, as the ray caster needs them."""

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Find windows of rays that can hit each shape.

        Returns:
            The number of the shape [windows] (a shape may have several windows or none); the window [windows, 4] as
            first and last (exclusive) row, then column; and a lower bound [windows] of ``t`` of the hits.
        """


def _clipped(low: Array, high: Array, count: int) -> tuple[Array, Array]:
    """Find the rays, at positions i + 1/2, that lie in [low, high]: first and last (exclusive), clipped to 0..count.

    >>> [int(end) for end in _clipped(np.array(0.6), np.array(3.5), count=10)]  # rays at 1.5, 2.5 and 3.5
    [1, 4]
    """
    first = np.clip(np.ceil(low - 0.5), 0, count).astype(np.int64)
    last = np.clip(np.floor(high - 0.5) + 1, 0, count).astype(np.int64)
    return first, last


@dataclass(frozen=True)
class Pinhole:
    """A camera; the centre of the top-left pixel is (0.5, 0.5)."""

    size: tuple[int, int]
    intrinsics: Array
    """[3, 3] camera matrix, pixels."""
    world_from_camera: Array
    """[4, 4] pose of the camera."""

    @property
    def eye(self) -> Array:
        """[3] centre of the camera in the world."""
        return self.world_from_camera[:3, 3]

    def refined(self, factor: int) -> "Pinhole":
        """Return the same camera with ``factor`` times as many pixels along each axis."""
        size = (self.size[0] * factor, self.size[1] * factor)
        return Pinhole(size, self.intrinsics * np.array([[factor], [factor], [1.0]]), self.world_from_camera)

    def rays(self) -> Rays:
        """Return the rays through the pixel centres, of depth 1 along the optical axis."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - self.intrinsics[0, 2]) / self.intrinsics[0, 0]  # [W]
        y = ((np.arange(height) + 0.5 - self.intrinsics[1, 2]) / self.intrinsics[1, 1])[:, None]  # [H, 1]
        rotation = self.world_from_camera[:3, :3]
        zero = np.zeros((), np.float32)
        direction = tuple((r[0] * x + r[1] * y + r[2]).astype(np.float32) for r in rotation)
        return Rays((zero, zero, zero), direction)

    def directions(self, row: Array, column: Array) -> Array:
        """Compute the directions [3, P] float32 of the rays through the centres of pixels [P]."""
        x = ((column + 0.5 - self.intrinsics[0, 2]) / self.intrinsics[0, 0]).astype(np.float32)
        y = ((row + 0.5 - self.intrinsics[1, 2]) / self.intrinsics[1, 1]).astype(np.float32)
        right, down, forward = self.world_from_camera[:3, :3].T.astype(np.float32)[..., None]
        return right * x + down * y + forward

    def grid(self) -> Grid:
        """Return the same rays for the ray caster."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - self.intrinsics[0, 2]) / self.intrinsics[0, 0]  # [W]
        y = (np.arange(height) + 0.5 - self.intrinsics[1, 2]) / self.intrinsics[1, 1]  # [H]
        right, down, forward = self.world_from_camera[:3, :3].T
        columns = np.zeros((4, width))
        columns[:3] = right[:, None] * x + forward[:, None]
        return Grid(np.array([0.0, 0.0, 0.0, 1.0]), columns, np.array([*down, 0.0]), y, np.ones(()))

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Find rectangles around the projected bounding boxes, clipped at the near plane."""
        points = rotated(self.world_from_camera[:3, :3].T, corners(shapes) - self.eye)  # [shapes, 8, 3], camera frame
        depth = points[..., 2]  # [shapes, 8]
        nearest = depth.min(1)  # [shapes]
        number = np.flatnonzero(depth.max(1) > NEAR)
        points, depth = points[number], depth[number]
        # If an edge crosses the near plane, its crossing replaces the corner behind the plane.
        a, b = points[:, EDGES[:, 0]], points[:, EDGES[:, 1]]  # [shapes, 12, 3] each
        drop = b[..., 2] - a[..., 2]  # [shapes, 12]
        fraction = (NEAR - a[..., 2]) / np.where(drop == 0, 1.0, drop)  # [shapes, 12]
        crossing = a + fraction[..., None] * (b - a)  # [shapes, 12, 3]
        crosses = (a[..., 2] > NEAR) != (b[..., 2] > NEAR)  # [shapes, 12]
        seen = np.concatenate([depth > NEAR, crosses], axis=1)  # [shapes, 20]
        every = np.concatenate([points, crossing], axis=1)  # [shapes, 20, 3]
        safe = np.where(seen, every[..., 2], 1.0)  # [shapes, 20]
        u = self.intrinsics[0, 0] * every[..., 0] / safe + self.intrinsics[0, 2]
        v = self.intrinsics[1, 1] * every[..., 1] / safe + self.intrinsics[1, 2]
        c0, c1 = _clipped(np.where(seen, u, np.inf).min(1), np.where(seen, u, -np.inf).max(1), self.size[1])
        r0, r1 = _clipped(np.where(seen, v, np.inf).min(1), np.where(seen, v, -np.inf).max(1), self.size[0])
        keep = (r0 < r1) & (c0 < c1)
        window = np.stack([r0, r1, c0, c1], axis=1)
        return number[keep], window[keep], np.maximum(nearest[number[keep]], 0.0)


@dataclass(frozen=True)
class Spinning:
    """A LiDAR that turns clockwise, with beams at equal steps of elevation, as a grid of beams and azimuths."""

    size: tuple[int, int]
    eye: Array
    elevations: tuple[float, float]
    """Elevations of the lowest and the highest beam, radians."""
    yaw: float
    """Heading of the left edge of column 0 in the world, radians."""

    @property
    def step(self) -> float:
        """Angle between neighbouring beams, radians."""
        return (self.elevations[1] - self.elevations[0]) / (self.size[0] - 1)

    def rays(self) -> Rays:
        """Return unit rays; row 0 is the lowest beam, columns go clockwise."""
        beams, columns = self.size
        elevation = np.linspace(*self.elevations, beams)[:, None]  # [H, 1]
        azimuth = self.yaw - (np.arange(columns) + 0.5) * (2 * np.pi / columns)  # [W]
        zero = np.zeros((), np.float32)
        direction = (
            (np.cos(elevation) * np.cos(azimuth)).astype(np.float32),
            (np.cos(elevation) * np.sin(azimuth)).astype(np.float32),
            np.broadcast_to(np.sin(elevation), self.size).astype(np.float32),
        )
        return Rays((zero, zero, zero), direction)

    def grid(self) -> Grid:
        """Return the same rays for the ray caster, which measures along the ground."""
        beams, columns = self.size
        elevation = np.linspace(*self.elevations, beams)  # [H]
        azimuth = self.yaw - (np.arange(columns) + 0.5) * (2 * np.pi / columns)  # [W]
        flat = np.zeros((4, columns))
        flat[0], flat[1] = np.cos(azimuth), np.sin(azimuth)
        scale = 1 / np.cos(elevation)[:, None]
        return Grid(np.array([0.0, 0.0, 0.0, 1.0]), flat, np.array([0.0, 0.0, 1.0, 0.0]), np.tan(elevation), scale)

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Find ranges of azimuth and elevation around an upright cylinder about each shape; two if azimuth wraps."""
        beams, columns = self.size
        half = bounds(shapes)  # [shapes, 3]
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
    """Parallel rays of the sun to a square on the ground."""

    center: Array
    """[3] centre of the square, metres."""
    toward_sun: Array
    """[3] unit vector."""
    reach: float
    """Half side of the square across the rays, metres."""
    step: float
    """Distance between rays, metres."""
    height: float = 120.0
    """Distance along the rays from their start to the centre, metres."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of rays."""
        count = int(2 * self.reach / self.step)
        return count, count

    @property
    def eye(self) -> Array:
        """[3] start of the central ray."""
        return self.center + self.height * self.toward_sun

    @cached_property
    def axes(self) -> tuple[Array, Array]:
        """Unit vectors [3] across the rays, along columns and rows."""
        across = np.array([-self.toward_sun[1], self.toward_sun[0], 0.0])
        across /= np.linalg.norm(across)
        return across, np.cross(self.toward_sun, across)

    def rays(self) -> Rays:
        """Return parallel rays at equal steps."""
        across, up = self.axes
        u = (np.arange(self.size[1]) + 0.5) * self.step - self.reach  # [W]
        v = ((np.arange(self.size[0]) + 0.5) * self.step - self.reach)[:, None]  # [H, 1]
        origin = tuple((across[i] * u + up[i] * v).astype(np.float32) for i in range(3))
        direction = tuple(np.asarray(-c, np.float32) for c in self.toward_sun)
        return Rays(origin, direction)  # type: ignore[arg-type]

    def grid(self) -> Grid:
        """Return the same rays for the ray caster."""
        across, up = self.axes
        columns = np.ones((4, self.size[1]))
        columns[:3] = across[:, None] * ((np.arange(self.size[1]) + 0.5) * self.step - self.reach)
        rows = (np.arange(self.size[0]) + 0.5) * self.step - self.reach
        pole, down = np.array([*self.toward_sun, 0.0]), np.array([*up, 0.0])
        return Grid(pole, columns, down, rows, np.ones(()), parallel=True)

    def locate(self, points: Array) -> tuple[Array, Array, Array]:
        """Find the row and column (which may be outside the grid) and ``t`` of the ray through each point [..., 3]."""
        across, up = self.axes
        offset: Array = points - self.eye.astype(np.float32)  # [..., 3]
        column = np.floor((dot(offset, across) + np.float32(self.reach)) / np.float32(self.step)).astype(np.int64)
        row = np.floor((dot(offset, up) + np.float32(self.reach)) / np.float32(self.step)).astype(np.int64)
        return row, column, -(dot(offset, self.toward_sun))

    def windows(self, shapes: Shapes) -> tuple[Array, Array, Array]:
        """Find rectangles around the projected bounding boxes."""
        offset = corners(shapes) - self.eye  # [shapes, 8, 3]
        across, up = self.axes
        u, v = (dot(offset, across) + self.reach) / self.step, (dot(offset, up) + self.reach) / self.step  # [shapes, 8]
        c0, c1 = _clipped(u.min(1), u.max(1), self.size[1])
        r0, r1 = _clipped(v.min(1), v.max(1), self.size[0])
        keep = np.flatnonzero((r0 < r1) & (c0 < c1))
        window = np.stack([r0, r1, c0, c1], axis=1)[keep]
        return keep, window, -dot(offset, self.toward_sun).max(1)[keep]
