"""Cast every ray at every shape by closed forms, in double precision.

All intersection functions take rays in the frame of one shape, as three components [rows, columns] of origin and
direction (which are broadcast). They return ``t`` [rows, columns] of the first hit, infinity for a miss, and the number
of the side that is hit.
"""

from collections.abc import Callable

import numpy as np

from mim4d.world.arrays import Array
from mim4d.world.raycast import GROUND, SKY, Hits, prism_planes
from mim4d.world.shapes import Kind, Shapes
from mim4d.world.views import Rays, View

Vector = tuple[Array, Array, Array]


def cast(view: View, shapes: Shapes, ground: bool = True) -> Hits:
    """Intersect every ray of a view with every shape, one after the other, and with the ground plane z = 0."""
    rays = view.rays()
    t, nearest = _ground(rays, float(view.eye[2]), view.size, ground)  # [H, W] each
    face = np.zeros(view.size, np.int8)  # [H, W]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number, one in enumerate(shapes):
            origin, direction = _local(rays, view.eye - one["center"], float(one["yaw"]))
            t_shape, face_shape = _MEET[Kind(one["kind"])](origin, direction, one)
            closer = t_shape < t
            np.copyto(t, t_shape, where=closer)
            np.copyto(nearest, np.int32(number), where=closer)
            np.copyto(face, face_shape, where=closer)
    return Hits(t, nearest, face)


def _ground(rays: Rays, eye_height: float, size: tuple[int, int], ground: bool) -> tuple[Array, Array]:
    """Compute ``t`` [H, W] of the hits of the ground plane, and :data:`GROUND` or :data:`SKY` [H, W]."""
    t = np.full(size, np.inf, float)
    nearest = np.full(size, SKY, np.int32)
    if ground:
        down = np.broadcast_to(rays.direction[2], size) < -1e-6
        height = np.broadcast_to(rays.origin[2] + float(eye_height), size)
        t[down] = height[down] / -np.broadcast_to(rays.direction[2], size)[down]
        nearest[down] = GROUND
    return t, nearest


def _local(rays: Rays, offset: Array, yaw: float) -> tuple[Vector, Vector]:
    """Transform rays to the frame of a shape; ``offset`` [3] is the vector from its centre to the eye."""
    cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
    x, y, z = (o + float(c) for o, c in zip(rays.origin, offset, strict=True))
    dx, dy, dz = rays.direction
    return (cos * x + sin * y, cos * y - sin * x, z), (cos * dx + sin * dy, cos * dy - sin * dx, dz)


def _between(near: Array, far: Array) -> Array:
    """Return ``near`` where the ray enters the shape before it leaves it and after its start, else infinity."""
    return np.where((near < far) & (near > 0), near, float(np.inf))


def _slab(origin: Array, direction: Array, half: np.floating) -> tuple[Array, Array]:
    """Compute ``t`` where a ray enters and leaves the slab -half .. half of one axis."""
    inverse = 1 / direction
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def meet_box(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a box; the side is the axis (0, 1, 2) along which the ray enters."""
    half = one["half"].astype(float)
    near, far = _slab(origin[0], direction[0], half[0])
    face = np.zeros((), np.int8)
    for axis in (1, 2):
        enter, leave = _slab(origin[axis], direction[axis], half[axis])
        face = np.where(enter > near, np.int8(axis), face)
        near, far = np.maximum(near, enter), np.minimum(far, leave)
    return _between(near, far), face


def meet_prism(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with the half-spaces of :func:`prism_planes` [6, 4]; the side is the number of the plane."""
    near, far = np.full((), -np.inf, float), np.full((), np.inf, float)
    face = np.zeros((), np.int8)
    for number, (a, b, c, offset) in enumerate(prism_planes(one["half"], one["form"])):
        speed = a * direction[0] + b * direction[1] + c * direction[2]
        gap = offset - (a * origin[0] + b * origin[1] + c * origin[2])
        t = gap / speed
        entering = speed < 0
        enter = np.where(entering, t, float(-np.inf))
        face = np.where(enter > near, np.int8(number), face)
        near = np.maximum(near, enter)
        far = np.minimum(far, np.where(entering, float(np.inf), t))
    return _between(near, far), face


def _quadratic(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Solve a t^2 + 2 b t + c = 0: the smaller and the larger root for a > 0, NaN if there are none.

    >>> [float(root) for root in _quadratic(np.array(1.0), np.array(-2.0), np.array(3.0))]
    [1.0, 3.0]
    """
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def meet_ellipsoid(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with an ellipsoid; the side is 0 outside and 1 inside, which gaps in foliage show."""
    scale = (1 / one["half"]).astype(float)  # makes it a unit sphere
    x, y, z = (o * s for o, s in zip(origin, scale, strict=True))
    dx, dy, dz = (d * s for d, s in zip(direction, scale, strict=True))
    a = dx * dx + dy * dy + dz * dz
    near, far = _quadratic(a, x * dx + y * dy + z * dz, x * x + y * y + z * z - 1)
    if not one["form"][1]:
        return _between(near, far), np.zeros((), np.int8)
    outside = np.where((near > 0) & ~_gap(origin, direction, near, one), near, float(np.inf))
    inside = np.where((far > 0) & ~_gap(origin, direction, far, one), far, float(np.inf))
    return np.minimum(outside, inside), (inside < outside).astype(np.int8)


def _gap(origin: Vector, direction: Vector, t: Array, one: np.void) -> Array:
    """Whether foliage has a gap at a hit: a fixed pattern on its surface, so that all sensors see the same gaps."""
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    phase = float(one["center"][2] * 7 + one["half"][0] * 31)
    wave = np.sin(5.1 * x + 3.7 * z + phase) + np.sin(4.3 * y - 4.1 * z + 1.7 * phase)
    wave += np.sin(17.1 * x - 12.7 * y + 8.3 * z) + np.sin(16.3 * z + 13.9 * y - 7.1 * x + phase)
    wave += np.sin(29.3 * z + 19.1 * x) * np.sin(27.7 * y - 15.3 * x)
    return wave > float(one["form"][1])


def meet_cone(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with an upright cone or cylinder: side 0, or its top 1. The bottom is never visible."""
    low, high, half = float(one["half"][0]), float(one["form"][0]), float(one["half"][2])
    x, y, z = origin
    dx, dy, dz = direction
    slope = (high - low) / (2 * half)
    radius = low + slope * (z + half)
    a = dx * dx + dy * dy - slope * slope * dz * dz
    near, _ = _quadratic(a, x * dx + y * dy - slope * radius * dz, x * x + y * y - radius * radius)
    on_side = (np.abs(z + near * dz) <= half) & (near > 0)
    if one["form"][1]:
        on_side &= ~_gap(origin, direction, near, one)
    top = (half - z) / dz
    on_top = (dz < 0) & (top > 0) & ((x + top * dx) ** 2 + (y + top * dy) ** 2 <= high * high)
    t = np.where(on_side, near, float(np.inf))
    first = on_top & (top < t)
    return np.where(first, top, t), first.astype(np.int8)


def meet_wheel(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a cylinder about the y axis: its tread is side 0, its flat ends are side 1."""
    radius, half = float(one["half"][0]), float(one["half"][1])
    x, _, z = origin
    dx, _, dz = direction
    near, far = _quadratic(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius)
    enter, leave = _slab(origin[1], direction[1], half)
    return _between(np.maximum(near, enter), np.minimum(far, leave)), (enter > near).astype(np.int8)


def meet_ring(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a flat ring in the plane y = 0."""
    t = -origin[1] / direction[1]
    squared = (origin[0] + t * direction[0]) ** 2 + (origin[2] + t * direction[2]) ** 2
    outer, inner = float(one["half"][0] ** 2), float(one["form"][0] ** 2)
    return np.where((squared <= outer) & (squared >= inner) & (t > 0), t, float(np.inf)), np.ones((), np.int8)


_MEET: dict[int, Callable[[Vector, Vector, np.void], tuple[Array, Array]]] = {
    Kind.BOX: meet_box,
    Kind.PRISM: meet_prism,
    Kind.ELLIPSOID: meet_ellipsoid,
    Kind.CONE: meet_cone,
    Kind.WHEEL: meet_wheel,
    Kind.RING: meet_ring,
}
