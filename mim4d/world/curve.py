"""Plane curves of straight and circular pieces, along which roads and moving objects are placed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array


@dataclass(frozen=True)
class Curve:
    """A chain of pieces of constant curvature.

    A position is given by its arc length ``s`` and its offset ``d`` to the left, both in metres. The curve continues
    straight beyond its ends.

    Raises:
        ValueError: If the first or the last piece is curved.

    >>> quarter = Curve((0.0, 0.0, 0.0), (1.0, 3 * np.pi, 1.0), (0.0, 1 / 6, 0.0))  # a left turn of radius 6
    >>> x, y, heading = quarter.point(quarter.length)
    >>> round(float(x), 6), round(float(y), 6), round(float(np.degrees(heading)), 6)
    (7.0, 7.0, 90.0)
    """

    start: tuple[float, float, float]
    """x, y in metres and heading in radians at the start."""
    lengths: tuple[float, ...]
    """Length of each piece, metres."""
    curvatures: tuple[float, ...]
    """Curvature of each piece, 1/m, positive to the left; 0 is straight."""
    knots: Array = field(init=False, repr=False, compare=False)
    """[pieces + 1, 4]: arc length, x, y and heading at the start of each piece and at the end of the last one."""

    def __post_init__(self) -> None:
        if self.curvatures[0] or self.curvatures[-1]:
            raise ValueError(f"the first and the last curvature must be 0 (straight), found {self.curvatures}")
        x, y, heading = self.start
        knots = [(0.0, x, y, heading)]
        for length, curvature in zip(self.lengths, self.curvatures, strict=True):
            s, x, y, heading = knots[-1]
            end_x, end_y = _advance(x, y, heading, curvature, length)
            knots.append((s + length, float(end_x), float(end_y), heading + curvature * length))
        object.__setattr__(self, "knots", np.array(knots))

    @property
    def length(self) -> float:
        """Length of the curve, metres."""
        return float(sum(self.lengths))

    def point(self, s: ArrayLike, d: ArrayLike = 0.0) -> tuple[Array, Array, Array]:
        """Compute the position and heading at ``s`` along the curve and ``d`` to its left.

        Args:
            s: Arc length, metres; may be below 0 or above ``length``.
            d: Offset to the left, metres; is broadcast with ``s``.

        Returns:
            x, y in metres and heading in radians, of the broadcast shape.
        """
        s, d = np.broadcast_arrays(np.asarray(s, float), np.asarray(d, float))
        knots = self.knots
        piece = np.clip(np.searchsorted(knots[:, 0], s, side="right") - 1, 0, len(self.lengths) - 1)
        s0, x0, y0, heading0 = knots[piece].T if piece.ndim else knots[piece]
        curvature = np.asarray(self.curvatures)[piece]
        inside = np.clip(s, 0.0, self.length)
        x, y = _advance(x0, y0, heading0, curvature, inside - s0)
        heading = heading0 + curvature * (inside - s0)
        beyond = s - inside
        x, y = x + beyond * np.cos(heading), y + beyond * np.sin(heading)
        return x - d * np.sin(heading), y + d * np.cos(heading), heading

    def locate(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Invert :meth:`point`: find the nearest position on the curve.

        Args:
            x: Metres, of any shape.
            y: Metres, of the same shape.

        Returns:
            ``s`` (below 0 before the start, above ``length`` past the end) and ``d``, in metres, of the same shape.
        """
        best = np.full_like(x, np.inf)
        best_s, best_d = np.zeros_like(x), np.zeros_like(x)
        last = len(self.lengths) - 1
        for i, (length, curvature) in enumerate(zip(self.lengths, self.curvatures, strict=True)):
            s0, x0, y0, heading = (float(v) for v in self.knots[i])
            s, d = _locate_on_piece(x - x0, y - y0, heading, curvature, length)
            low = -np.inf if i == 0 else 0.0
            high = np.inf if i == last else length
            distance = np.abs(d) + np.maximum(low - s, 0) + np.maximum(s - high, 0)
            nearer = distance < best
            best = np.where(nearer, distance, best)
            best_s = np.where(nearer, s + s0, best_s)
            best_d = np.where(nearer, d, best_d)
        return best_s, best_d

    def polyline(self, step: float = 2.0, d: float = 0.0, s_range: Sequence[float] | None = None) -> Array:
        """Sample points [P, 2] about ``step`` metres apart along the curve, ``d`` metres to its left."""
        low, high = s_range if s_range is not None else (0.0, self.length)
        s = np.linspace(low, high, max(2, int(np.ceil((high - low) / step)) + 1))
        x, y, _ = self.point(s, d)
        return np.stack([x, y], axis=-1)


def _advance(
    x: Array | float, y: Array | float, heading: Array | float, curvature: Array | float, s: Array | float
) -> tuple[Array, Array]:
    """Compute the position after ``s`` metres on an arc from (x, y, heading)."""
    half = np.asarray(0.5 * curvature * s)  # angle between the first tangent and the chord
    chord = s * np.sinc(half / np.pi)
    return x + chord * np.cos(heading + half), y + chord * np.sin(heading + half)


def _locate_on_piece(dx: Array, dy: Array, heading: float, curvature: float, length: float) -> tuple[Array, Array]:
    """Compute arc length and left offset on one piece that starts at the origin of (dx, dy)."""
    cos, sin = np.cos(heading), np.sin(heading)
    along, left = dx * cos + dy * sin, dy * cos - dx * sin
    if abs(curvature) < 1e-9:
        return along, left
    # In the frame (along, left) the centre of the circle is at (0, radius).
    radius = 1.0 / curvature
    turn = np.arctan2(along, (radius - left) * np.sign(curvature))
    # Angles are measured from the middle of the arc, so that its ends are far from the branch cut at +-pi.
    middle = 0.5 * abs(curvature) * length
    turn = (turn - middle + np.pi) % (2 * np.pi) - np.pi + middle
    distance = np.hypot(along, radius - left)
    return turn * abs(radius), (abs(radius) - distance) * np.sign(curvature)
