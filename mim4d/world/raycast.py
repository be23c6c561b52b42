"""Where rays meet shapes: closed-form intersections, tested only for the rays that can meet each shape."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .shapes import Kind, Shapes
from .views import Rays, View

Vector = tuple[Array, Array, Array]
GROUND, SKY = -1, -2
"""What ``Hits.shape`` holds where a ray meets no shape."""


@dataclass(frozen=True)
class Hits:
    """The first thing each ray of a view meets."""

    t: Array
    """[H, W] float32 along the ray, in units of its direction; infinite for the sky."""
    shape: Array
    """[H, W] number of the shape, or ``GROUND`` or ``SKY``."""
    face: Array
    """[H, W] which side of the shape, as its intersection function counts them."""


def cast(view: View, shapes: Shapes, ground: bool = True) -> Hits:
    """Meet a view's rays with shapes and the ground z = 0.

    Args:
        view: The grid of rays.
        shapes: [N] in the world.
        ground: Whether the ground plane is there.

    Returns:
        The nearest hit of each ray.
    """
    rays = view.rays()
    t, nearest = _ground(rays, float(view.eye[2]), view.size, ground)
    face = np.zeros(view.size, np.int8)
    numbers, windows, near = view.windows(shapes)
    offsets = view.eye - shapes["center"]
    planes = prism_planes(shapes["half"], shapes["form"]).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in np.argsort(near, kind="stable"):  # near to far: most of what is hidden is never tested
            r0, r1, c0, c1 = windows[i]
            so_far = t[r0:r1, c0:c1]
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
    t = np.full(size, np.inf, np.float32)
    nearest = np.full(size, SKY, np.int32)
    if ground:
        down = np.broadcast_to(rays.direction[2], size) < -1e-6
        height = np.broadcast_to(rays.origin[2] + np.float32(eye_height), size)
        t[down] = height[down] / -np.broadcast_to(rays.direction[2], size)[down]
        nearest[down] = GROUND
    return t, nearest


def _local(rays: Rays, offset: Array, yaw: float) -> tuple[Vector, Vector]:
    """Rays in a shape's own frame; ``offset`` [3] is from its centre to the eye."""
    cos, sin = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    x, y, z = (o + np.float32(c) for o, c in zip(rays.origin, offset, strict=True))
    dx, dy, dz = rays.direction
    return (cos * x + sin * y, cos * y - sin * x, z), (cos * dx + sin * dy, cos * dy - sin * dx, dz)


def _between(near: Array, far: Array) -> Array:
    """``near`` where the ray enters before it leaves and ahead of its start, else infinity."""
    return np.where((near < far) & (near > 0), near, np.float32(np.inf))


def _slab(origin: Array, direction: Array, half: np.floating) -> tuple[Array, Array]:
    inverse = 1 / direction
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def meet_box(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Slab test; the face is the axis (0, 1, 2) the ray enters along."""
    half = one["half"].astype(np.float32)
    near, far = _slab(origin[0], direction[0], half[0])
    face = np.zeros((), np.int8)
    for axis in (1, 2):
        enter, leave = _slab(origin[axis], direction[axis], half[axis])
        face = np.where(enter > near, np.int8(axis), face)
        near, far = np.maximum(near, enter), np.minimum(far, leave)
    return _between(near, far), face


def prism_planes(half: Array, form: Array) -> Array:
    """Outward planes [6, 4] (normal, offset) of prisms' faces front, rear, left, right, top, bottom; [..., 6, 4]."""
    hx, hy, hz = np.moveaxis(np.asarray(half), -1, 0)
    front, rear, side = np.moveaxis(np.asarray(form), -1, 0)
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
    """Half-space test against :func:`prism_planes` [6, 4]; the face is the plane's number."""
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
    """Roots of a t^2 + 2 b t + c, smaller first for a > 0; NaN where there are none."""
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def meet_ellipsoid(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Unit sphere after scaling by the half axes; the face is 0 outside and, seen through gaps, 1 inside."""
    scale = (1 / one["half"]).astype(np.float32)
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
    """Where foliage has holes: a fixed pattern on its surface, so that every sensor sees the same."""
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    phase = np.float32(one["center"][2] * 7 + one["half"][0] * 31)
    wave = np.sin(5.1 * x + 3.7 * z + phase) + np.sin(4.3 * y - 4.1 * z + 1.7 * phase)
    wave += np.sin(17.1 * x - 12.7 * y + 8.3 * z) + np.sin(16.3 * z + 13.9 * y - 7.1 * x + phase)
    wave += np.sin(29.3 * z + 19.1 * x) * np.sin(27.7 * y - 15.3 * x)
    return wave > np.float32(one["form"][1])


def meet_cone(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Side of an upright (tapered) cylinder, face 0, or its top, face 1; the bottom is never seen."""
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
    """Cylinder about y: the tread is face 0, the sides are face 1."""
    radius, half = np.float32(one["half"][0]), np.float32(one["half"][1])
    x, _, z = origin
    dx, _, dz = direction
    near, far = _quadratic(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius)
    enter, leave = _slab(origin[1], direction[1], half)
    return _between(np.maximum(near, enter), np.minimum(far, leave)), (enter > near).astype(np.int8)


def meet_ring(origin: Vector, direction: Vector, one: np.void) -> tuple[Array, Array]:
    """Flat ring in the plane y = 0."""
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
