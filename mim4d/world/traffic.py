"""Actors: the annotated objects of a scene, and their motion."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array
from .curve import Curve
from .models import Model


@dataclass(frozen=True)
class Pace:
    """Speed over time, linear between knots.

    >>> brake = Pace(times=(0.0, 2.0, 4.0), speeds=(6.0, 6.0, 0.0))
    >>> brake.distance([1.0, 2.0, 4.0, 9.0]).tolist()
    [6.0, 12.0, 18.0, 18.0]
    """

    times: tuple[float, ...]
    """Times of the knots, increasing, seconds; before the first and after the last the speed is constant."""
    speeds: tuple[float, ...]
    """Speeds at the knots, not negative, m/s."""

    @property
    def still(self) -> bool:
        """Whether the speed is always 0."""
        return not any(self.speeds)

    def speed(self, t: float) -> float:
        """Return the speed at ``t`` seconds, m/s."""
        return float(np.interp(t, self.times, self.speeds))

    def distance(self, t: ArrayLike) -> Array:
        """Compute the distance travelled from time 0 to ``t`` seconds (any shape), metres; negative before 0."""
        return self._since_first_knot(t) - self._before

    @cached_property
    def _before(self) -> Array:
        """Distance from the first knot to time 0."""
        return self._since_first_knot(0.0)

    @cached_property
    def _knots(self) -> tuple[Array, Array, Array]:
        """Times and speeds of the knots, and distances from the first knot to each: [knots] each."""
        times, speeds = np.array(self.times), np.array(self.speeds)
        return times, speeds, np.concatenate([[0.0], np.cumsum(np.diff(times) * 0.5 * (speeds[1:] + speeds[:-1]))])

    def _since_first_knot(self, t: ArrayLike) -> Array:
        """Compute the distance from the first knot to ``t``: whole pieces, and a part by its mean speed."""
        t, (times, speeds, at_knots) = np.asarray(t, float), self._knots
        knot = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 1)
        return at_knots[knot] + (t - times[knot]) * 0.5 * (speeds[knot] + np.interp(t, times, speeds))


STILL = Pace((0.0,), (0.0,))
"""The pace of an object that does not move."""


@dataclass(frozen=True)
class Motion:
    """Motion along a curve."""

    curve: Curve
    offset: float
    """Offset to the left of the curve, metres."""
    start: float
    """Arc length at time 0, metres."""
    direction: int
    """+1 along the curve, -1 against it."""
    pace: Pace
    turned: float = 0.0
    """Heading relative to the direction of travel, radians."""

    def poses(self, t: ArrayLike) -> Array:
        """Compute x, y in metres and heading in radians, [..., 3], at times ``t`` [...] in seconds."""
        s = self.start + self.direction * self.pace.distance(t)
        x, y, heading = self.curve.point(s, self.offset)
        return np.stack([x, y, heading + (0.0 if self.direction > 0 else np.pi) + self.turned], axis=-1)

    def pose(self, t: float) -> tuple[float, float, float]:
        """Compute x, y in metres and heading in radians at ``t`` seconds."""
        x, y, heading = self.poses(t).tolist()
        return x, y, heading


@dataclass(frozen=True)
class Actor:
    """An annotated object."""

    model: Model
    motion: Motion
    parked: bool = False
    """Whether a vehicle is parked rather than in traffic."""

    def attribute(self, t: float) -> str:
        """Return nuScenes' attribute at ``t`` seconds; empty for categories without attributes."""
        moving = self.motion.pace.speed(t) > 0.2
        category = self.model.category
        if category.startswith("human"):
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.without_rider" if self.parked else "cycle.with_rider"
        if category.startswith("vehicle"):
            return "vehicle.moving" if moving else "vehicle.parked" if self.parked else "vehicle.stopped"
        return ""


EGO_SIZE = (4.6, 1.9)
"""Length and width of the ego car, metres."""
EGO_MIDDLE = 1.4
"""Distance from the origin of the ego frame, under the rear axle, to the middle of the ego car, metres."""


LONGEST = 30.0
"""Distance between two actors, in x or y, from which on they cannot touch, metres."""


class Room:
    """Prevents collisions: every actor is a row of discs on the ground, and no two actors may ever overlap."""

    def __init__(self, duration: float, ego: Motion) -> None:
        self._times = np.arange(-0.1, duration + 0.15, 0.1)
        poses = ego.poses(self._times)
        poses[:, :2] += EGO_MIDDLE * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=1)
        self._discs = [_discs(poses, EGO_SIZE[0] + 0.4, EGO_SIZE[1] + 0.4)]  # with a margin
        self._ends = self._discs[0][0][None, :, 0]  # [actors, times, 2]

    def claim(self, actor: Actor) -> bool:
        """Add an actor if it always keeps 15 cm from those added before.

        Returns:
            Whether it was added.
        """
        length, width, _ = actor.model.size
        discs, radius = _discs(actor.motion.poses(self._times), length, width)
        for number in np.flatnonzero(np.abs(self._ends - discs[:, 0]).max(-1).min(-1) < LONGEST):
            others, other_radius = self._discs[number]
            gaps = np.linalg.norm(discs[:, :, None] - others[:, None], axis=-1)  # [times, discs, other discs]
            if gaps.min() < radius + other_radius + 0.15:
                return False
        self._discs.append((discs, radius))
        self._ends = np.concatenate([self._ends, discs[None, :, 0]])
        return True


def _discs(poses: Array, length: float, width: float) -> tuple[Array, float]:
    """Compute the centres [times, discs, 2] and the radius of discs that cover a rectangle at poses [times, 3]."""
    heading = poses[:, 2] if length >= width else poses[:, 2] + np.pi / 2  # [times]
    length, width = max(length, width), min(length, width)
    count = int(np.ceil(length / width)) + 1
    along = np.linspace(-0.5, 0.5, count) * (length - width)  # [discs]
    forward = np.stack([np.cos(heading), np.sin(heading)], axis=-1)  # [times, 2]
    return poses[:, None, :2] + along[:, None] * forward[:, None], 0.55 * width
