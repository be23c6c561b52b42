"""Everything that is annotated: what it is, and where it is at any time."""

from dataclasses import dataclass

import numpy as np

from .curve import Curve
from .models import Model


@dataclass(frozen=True)
class Pace:
    """Speed over time, linear between knots, and the way gone since time 0."""

    times: tuple[float, ...]
    """Seconds, rising; before the first and after the last the speed is constant."""
    speeds: tuple[float, ...]
    """m/s, not negative."""

    def speed(self, t: float) -> float:
        """m/s at ``t`` seconds."""
        return float(np.interp(t, self.times, self.speeds))

    def way(self, t: float) -> float:
        """Metres gone from time 0 to ``t``; negative before 0."""
        return self._integral(t) - self._integral(0.0)

    def _integral(self, t: float) -> float:
        """Metres from the first knot to ``t``."""
        if t < self.times[0]:
            return (t - self.times[0]) * self.speeds[0]
        knots = np.array([k for k in self.times if k < t] + [t])
        speeds = np.interp(knots, self.times, self.speeds)
        return float(np.sum(np.diff(knots) * 0.5 * (speeds[1:] + speeds[:-1])))


STILL = Pace((0.0,), (0.0,))


@dataclass(frozen=True)
class Motion:
    """A way along a curve."""

    curve: Curve
    offset: float
    """To the left of the curve, metres."""
    start: float
    """Arc length at time 0, metres."""
    direction: int
    """+1 along the curve, -1 against it."""
    pace: Pace
    turned: float = 0.0
    """Heading relative to the direction of travel, radians."""

    def pose(self, t: float) -> tuple[float, float, float]:
        """x, y in metres and heading in radians at ``t`` seconds."""
        s = self.start + self.direction * self.pace.way(t)
        x, y, heading = self.curve.point(s, self.offset)
        return float(x), float(y), float(heading) + (0.0 if self.direction > 0 else np.pi) + self.turned


@dataclass(frozen=True)
class Actor:
    """A thing that is annotated."""

    model: Model
    motion: Motion
    parked: bool = False
    """A vehicle that stands at the kerb rather than in traffic."""

    def attribute(self, t: float) -> str:
        """nuScenes' attribute at ``t`` seconds; empty for things that have none."""
        moving = self.motion.pace.speed(t) > 0.2
        category = self.model.category
        if category.startswith("human"):
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.without_rider" if self.parked else "cycle.with_rider"
        if category.startswith("vehicle"):
            return "vehicle.moving" if moving else "vehicle.parked" if self.parked else "vehicle.stopped"
        return ""
