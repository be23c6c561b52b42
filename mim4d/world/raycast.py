"""Cast rays at shapes: closed-form intersections, computed only for the rays that can hit a shape.

All intersection functions take rays in the frame of one shape, as three components [rows, columns] of origin and
direction (which are broadcast). They return ``t`` [rows, columns] of the first hit, infinity for a miss, and the number
of the side that is hit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .shapes import Kind, Shapes
from .views import Rays, View

Vector = tuple[Array, Array, Array]
GROUND, SKY = -1, -2
"""Values of ``Hits.shape`` for rays that hit no shape."""


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray of a view."""

    t: Array
    """[H, W] float32: distance along the ray in units of its direction; infinity for the sky."""
    shape: Array
    """[H, W] int32: number of the shape, or :data:`GROUND` or :data:`SKY`."""
    face: Array
    """[H, W] int8: side of the shape, as its intersection function counts sides."""


def cast(view: View, shapes: Shapes, ground: bool = True) -> Hits:
    """Intersect the rays of a view with shapes and the ground plane z = 0.

    Args:
        view: The grid of rays.
        shapes: [shapes] in the world.
        ground: Whether there is a ground plane.

    Returns:
        The nearest hit of each ray.
    """
    rays = view.rays()
    t, nearest = _ground(rays, float(view.eye[2]), view.size, ground)  # [H, W] each
    face = np.zeros(view.size, np.int8)  # [H, W]
    numbers, windows, near = view.windows(shapes)  # [windows], [windows, 4], [windows]
    offsets = view.eye - shapes["center"]  # [shapes, 3]
    planes = prism_planes(shapes["half"], shapes["form"]).astype(np.float32)  # [shapes, 6, 4]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in np.argsort(near, kind="stable"):  # near to far, so that most hidden shapes are skipped
            r0, r1, c0, c1 = windows[i]
            so_far = t[r0:r1, c0:c1]  # [rows, columns], a view into t
            if near[i] >= so_far.max():
                continue
            number = numbers[i]
            one = shapes[number]
            origin, direction = _local(rays.window(windows[i]), offsets[number], float(one["yaw"]))
            if one["kind"] == Kind.PRISM:
                t_shape, face_shape = meet_prism(origin, direction, planes[number])
            else:
                t_shape, face_shape = _MEET[one["kind"]](origin, direction, one)
            closer = t_shape < so_far
            np.copyto(so_far, t_shape, where=closer)
            np.copyto(nearest[r0:r1, c0:c1], np.int32(number), where=closer)
            np.copyto(face[r0:r1, c0:c1], face_shape, where=closer)
    return Hits(t, nearest, face)


def _ground(rays: Rays, eye_height: float, size: tuple[int, int], ground: bool) -> tuple[Array, Array]:
    """Compute ``t`` [H, W] of the hits of the ground plane, and :data:`GROUND` or :data:`SKY` [H, W]."""
    t = np.full(size, np.inf, np.float32)
    nearest = np.full(size, SKY, np.int32)
    if ground:
        down = np.broadcast_to(rays.direction[2], size) < -1e-6
        height = np.broadcast_to(rays.origin[2] + np.float32(eye_height), size)
        t[down] = height[down] / -np.broadcast_to(rays.direction[2], size)[down]
        nearest[down] = GROUND
    return t, nearest


def _local(rays: Rays, offset: Array, yaw: float) -> tuple[Vector, Vector]:
    """Transform rays to the frame of a shape; ``offset`` [3] is the vector from its centre to the eye."""
    cos, sin = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    x, y, z = (o + np.float32(c) for o, c in zip(rays.origin, offset, strict=True))
    dx, dy, dz = rays.direction
    return (cos * x + sin * y, cos * y - sin * x, z), (cos * dx + sin * dy, cos * dy - sin * dx, dz)


def _between(near: Array, far: Array) -> Array:
    """Return ``near`` where the ray enters the shape before it leaves it and after its start, else infinity."""
    return np.where((near < far) & (near > 0), near, np.float32(np.inf))


def _slab(origin: Array, direction: Array, half: np.floating) -> tuple[Array, Array]:
    """Compute ``t`` where a ray enters and leaves the slab -half .. half of one axis."""
    inverse = 1 / direction
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def meet_box(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a box; the side is the axis (0, 1, 2) along which the ray enters."""
    half = one["half"].astype(np.float32)
    near, far = _slab(origin[0], direction[0], half[0])
    face = np.zeros((), np.int8)
    for axis in (1, 2):
        enter, leave = _slab(origin[axis], direction[axis], half[axis])
        face = np.where(enter > near, np.int8(axis), face)
        near, far = np.maximum(near, enter), np.minimum(far, leave)
    return _between(near, far), face


def prism_planes(half: Array, form: Array) -> Array:
    """Compute the planes of the sides of prisms: front, rear, left, right, top and bottom.

    Args:
        half: [..., 3] half sizes, metres.
        form: [..., 3] how far the top is set back at the front, the rear and both sides, metres.

    Returns:
        [..., 6, 4]: outward unit normal n and offset c of each plane n x = c.

    >>> prism_planes(np.array([1.0, 2.0, 3.0]), np.zeros(3))[0]  # the front of a box is x = 1
    array([1., 0., 0., 1.])
    """
    hx, hy, hz = np.moveaxis(np.asarray(half), -1, 0)  # [...] each
    front, rear, side = np.moveaxis(np.asarray(form), -1, 0)  # [...] each
    zero, one = np.zeros_like(hx), np.ones_like(hx)
    rows = []
    for sign, inset, axis, reach in ((1, front, 0, hx), (-1, rear, 0, hx), (1, side, 1, hy), (-1, side, 1, hy)):
        size = np.hypot(2 * hz, inset)
        level, up = sign * 2 * hz / size, inset / size
        normal = (level, zero, up) if axis == 0 else (zero, level, up)
        rows.append(np.stack([*normal, sign * level * reach - up * hz], axis=-1))
    rows.append(np.stack([zero, zero, one, hz], axis=-1))
    rows.append(np.stack([zero, zero, -one, hz], axis=-1))
    return np.stack(rows, axis=-2)


def meet_prism(origin: Vector, direction: Vector, planes: Array) -> tuple[Array, Array]:
    """Intersect rays with the half-spaces of :func:`prism_planes` [6, 4]; the side is the number of the plane."""
    near, far = np.full((), -np.inf, np.float32), np.full((), np.inf, np.float32)
    face = np.zeros((), np.int8)
    for number, (a, b, c, offset) in enumerate(planes):
        speed = a * direction[0] + b * direction[1] + c * direction[2]
        gap = offset - (a * origin[0] + b * origin[1] + c * origin[2])
        t = gap / speed
        entering = speed < 0
        enter = np.where(entering, t, np.float32(-np.inf))
        face = np.where(enter > near, np.int8(number), face)
        near = np.maximum(near, enter)
        far = np.minimum(far, np.where(entering, np.float32(np.inf), t))
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
    scale = (1 / one["half"]).astype(np.float32)  # makes it a unit sphere
    x, y, z = (o * s for o, s in zip(origin, scale, strict=True))
    dx, dy, dz = (d * s for d, s in zip(direction, scale, strict=True))
    a = dx * dx + dy * dy + dz * dz
    near, far = _quadratic(a, x * dx + y * dy + z * dz, x * x + y * y + z * z - 1)
    if not one["form"][1]:
        return _between(near, far), np.zeros((), np.int8)
    outside = np.where((near > 0) & ~_gap(origin, direction, near, one), near, np.float32(np.inf))
    inside = np.where((far > 0) & ~_gap(origin, direction, far, one), far, np.float32(np.inf))
    return np.minimum(outside, inside), (inside < outside).astype(np.int8)


def _gap(origin: Vector, direction: Vector, t: Array, one: np.void) -> Array:
    """Whether foliage has a gap at a hit: a fixed pattern on its surface, so that all sensors see the same gaps."""
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    phase = np.float32(one["center"][2] * 7 + one["half"][0] * 31)
    wave = np.sin(5.1 * x + 3.7 * z + phase) + np.sin(4.3 * y - 4.1 * z + 1.7 * phase)
    wave += np.sin(17.1 * x - 12.7 * y + 8.3 * z) + np.sin(16.3 * z + 13.9 * y - 7.1 * x + phase)
    wave += np.sin(29.3 * z + 19.1 * x) * np.sin(27.7 * y - 15.3 * x)
    return wave > np.float32(one["form"][1])


def meet_cone(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with an upright cone or cylinder: side 0, or its top 1. The bottom is never visible."""
    low, high, half = np.float32(one["half"][0]), np.float32(one["form"][0]), np.float32(one["half"][2])
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
    t = np.where(on_side, near, np.float32(np.inf))
    first = on_top & (top < t)
    return np.where(first, top, t), first.astype(np.int8)


def meet_wheel(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a cylinder about the y axis: its tread is side 0, its flat ends are side 1."""
    radius, half = np.float32(one["half"][0]), np.float32(one["half"][1])
    x, _, z = origin
    dx, _, dz = direction
    near, far = _quadratic(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius)
    enter, leave = _slab(origin[1], direction[1], half)
    return _between(np.maximum(near, enter), np.minimum(far, leave)), (enter > near).astype(np.int8)


def meet_ring(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Intersect rays with a flat ring in the plane y = 0."""
    t = -origin[1] / direction[1]
    squared = (origin[0] + t * direction[0]) ** 2 + (origin[2] + t * direction[2]) ** 2
    outer, inner = np.float32(one["half"][0] ** 2), np.float32(one["form"][0] ** 2)
    return np.where((squared <= outer) & (squared >= inner) & (t > 0), t, np.float32(np.inf)), np.ones((), np.int8)


_MEET: dict[int, Callable[[Vector, Vector, np.void], tuple[Array, Array]]] = {
    Kind.BOX: meet_box,
    Kind.ELLIPSOID: meet_ellipsoid,
    Kind.CONE: meet_cone,
    Kind.WHEEL: meet_wheel,
    Kind.RING: meet_ring,
}
