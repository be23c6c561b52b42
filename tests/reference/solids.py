"""The demo world's solids from their definitions, and where a ray enters one found by walking it: float64, loops."""

import math


def inside_box(point, half):
    """Whether a point of the solid's own frame lies in a box."""
    return all(abs(c) <= h for c, h in zip(point, half, strict=True))


def inside_prism(point, half, form):
    """A box whose front, rear and sides are drawn in towards the top, linearly with height."""
    x, y, z = point
    if abs(z) > half[2]:
        return False
    share = (z / half[2] + 1) / 2
    return -half[0] + form[1] * share <= x <= half[0] - form[0] * share and abs(y) <= half[1] - form[2] * share


def inside_ellipsoid(point, half):
    """Half axes along x, y, z."""
    return sum((c / h) ** 2 for c, h in zip(point, half, strict=True)) <= 1


def inside_cone(point, half, top):
    """An upright cylinder whose radius goes linearly from ``half[0]`` below to ``top``."""
    x, y, z = point
    return abs(z) <= half[2] and math.hypot(x, y) <= half[0] + (top - half[0]) * (z / half[2] + 1) / 2


def inside_wheel(point, half):
    """A cylinder about y of radius ``half[0]`` and half width ``half[1]``."""
    x, y, z = point
    return abs(y) <= half[1] and math.hypot(x, z) <= half[0]


def local(point, center, yaw):
    """A point of the world in the frame of a solid at ``center`` turned by ``yaw`` about z."""
    x, y, z = (p - c for p, c in zip(point, center, strict=True))
    return (math.cos(yaw) * x + math.sin(yaw) * y, -math.sin(yaw) * x + math.cos(yaw) * y, z)


def walk(inside, origin, direction, near, far, step=0.01):
    """Where in ``near`` .. ``far`` a ray first enters a solid, to 1e-6, or infinity; shorter chords are missed."""
    at = lambda t: inside(tuple(o + t * d for o, d in zip(origin, direction, strict=True)))  # noqa: E731
    t = near
    while t < far:
        if at(t + step):
            low, high = t, t + step
            while high - low > 1e-6:
                middle = (low + high) / 2
                low, high = (low, middle) if at(middle) else (middle, high)
            return high
        t += step
    return math.inf
