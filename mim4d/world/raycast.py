"""Cast rays at shapes: closed-form intersections, computed only for the rays that can hit a shape.

The caster works with the nearness ``w`` of a hit, which is larger for nearer hits: 1 / t for views whose rays meet in
the eye, -t for parallel rays. A ray is then the line of homogeneous points B + w A, where A is the same for all rays
and B is the sum of a part per row and a part per column (:class:`mim4d.world.views.Grid`). In w, planes are affine and
quadrics are the root of a quadratic form, both in B. So one ray costs one addition per plane of a solid, and the rest
is computed once per row and column.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .shapes import Kind, Shapes, bounds
from .views import Grid, View

GROUND, SKY = -1, -2
"""Values of ``Hits.shape`` for rays that hit no shape."""
BLOCK = 16384
"""Rays per block of a window: their temporary arrays fit in the cache of a core."""
MISS = np.float32(-np.inf)
"""The nearness of a miss."""
BOX, PRISM, ELLIPSOID, CONE, WHEEL, RING = (int(kind) for kind in Kind)  # comparing numpy scalars with enums is slow


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray of a view."""

    t: Array
    """[H, W] float32: distance along the ray in units of its direction; infinity for the sky."""
    shape: Array
    """[H, W] int32: number of the shape, or :data:`GROUND` or :data:`SKY`."""
    face: Array
    """[H, W] int8: side of the shape, see :class:`Solids`."""


def cast(view: View, shapes: Shapes, ground: bool = True) -> Hits:
    """Intersect the rays of a view with shapes and the ground plane z = 0.

    Args:
        view: The grid of rays.
        shapes: [shapes] in the world.
        ground: Whether there is a ground plane; only for views whose rays meet in the eye.

    Returns:
        The nearest hit of each ray.
    """
    grid = view.grid()
    w = np.full(view.size, grid.farthest, np.float32)  # [H, W]
    nearest = np.full(view.size, SKY, np.int32)  # [H, W]
    face = np.zeros(view.size, np.int8)  # [H, W]
    if ground:
        below = np.add.outer(grid.rows * grid.down[2], grid.columns[2])  # [H, W] upward component of the direction
        down = below < -1e-6
        np.copyto(w, (below / -view.eye[2]).astype(np.float32), where=down)
        nearest[down] = GROUND
    numbers, windows, reach = view.windows(shapes)  # [windows], [windows, 4], [windows]
    bound = grid.nearness(reach)  # [windows], at least the nearness of every hit
    solids = Solids(shapes[numbers], view.eye, grid)
    number, rects, limit = numbers.tolist(), windows.tolist(), bound.tolist()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in np.argsort(-bound, kind="stable").tolist():  # near to far, so that most hidden shapes are skipped
            top, bottom, c0, c1 = rects[i]
            rows = max(1, BLOCK // (c1 - c0))
            for r0 in range(top, bottom, rows):
                r1 = min(r0 + rows, bottom)
                so_far = w[r0:r1, c0:c1]  # [rows, columns], a view into w
                if limit[i] <= so_far.min():
                    continue
                hit, side = solids.meet(i, (r0, r1, c0, c1), so_far)
                if limit[i] >= 0 and grid.parallel:
                    hit[hit >= 0] = MISS  # before the start of the ray
                closer = hit > so_far
                np.copyto(so_far, hit, where=closer)
                np.copyto(nearest[r0:r1, c0:c1], number[i], where=closer)
                np.copyto(face[r0:r1, c0:c1], side, where=closer)
    return Hits(grid.distance(w), nearest, face)


class Solids:
    """Shapes as planes and quadrics in the coordinates of a view.

    Sides are counted as follows. Box: the axis 0, 1, 2 along which the ray enters. Prism: the planes of
    :func:`prism_planes`. Ellipsoid: 0 outside, 1 inside, which gaps in foliage show. Cone: 0, and 1 for its top; its
    bottom is never visible. Wheel: 0 for its tread, 1 for its flat ends. Ring: 1.
    """

    def __init__(self, shapes: Shapes, eye: Array, grid: Grid) -> None:
        """Transform [shapes] to the coordinates of ``grid``, which are relative to ``eye`` [3]."""
        self.grid = grid
        self.kind = shapes["kind"].tolist()
        self.half = shapes["half"]  # [shapes, 3]
        self.form = shapes["form"]  # [shapes, 3]
        self.phase = shapes["center"][:, 2] * 7 + shapes["half"][:, 0] * 31  # [shapes], of the gaps in foliage
        self.offset = shapes["center"] - eye  # [shapes, 3]
        self.cos, self.sin = np.cos(shapes["yaw"]), np.sin(shapes["yaw"])  # [shapes] each
        self._planes(shapes)
        self._quadrics(shapes)

    def _planes(self, shapes: Shapes) -> None:
        """Compute the six planes of each shape: where the ray enters first, then where it leaves."""
        is_prism = (shapes["kind"] == PRISM)[:, None]
        normal = prism_planes(bounds(shapes), np.where(is_prism, shapes["form"], 0))  # [shapes, 6, 4]
        normal[shapes["kind"] == RING, 2, 3] = 0  # a ring lies in the plane y = 0
        cos, sin = self.cos[:, None], self.sin[:, None]
        x, y = normal[..., 0], normal[..., 1]
        normal[..., 0], normal[..., 1] = cos * x - sin * y, sin * x + cos * y
        normal[..., 3] = -normal[..., 3] - (normal[..., :3] * self.offset[:, None]).sum(-1)
        facing = (normal * self.grid.pole).sum(-1)  # [shapes, 6], above 0 where rays enter
        facing = np.where(np.abs(facing) < 1e-9, -1e-9, facing)
        order = np.argsort(facing <= 0, axis=1, kind="stable")  # [shapes, 6]
        self.entered = (facing > 0).sum(1).tolist()  # [shapes]
        self.order = order.tolist()
        self.front = (facing > 0).tolist()
        plane = -normal / facing[..., None]  # [shapes, 6, 4]: w = plane B
        self.plain = plane
        self.plane = np.take_along_axis(plane, order[..., None], 1)

    def _quadrics(self, shapes: Shapes) -> None:
        """Compute ``w = linear B +- sqrt(B form B)`` of the round shapes."""
        kind = shapes["kind"]
        matrix = np.zeros((len(shapes), 4, 4))  # [shapes, 4, 4] of x matrix x = 0 in the frame of the shape
        for i, (one, half, form) in enumerate(zip(kind.tolist(), self.half.tolist(), self.form.tolist(), strict=True)):
            if one == ELLIPSOID:
                matrix[i] = np.diag([half[0] ** -2, half[1] ** -2, half[2] ** -2, -1.0])
            elif one == WHEEL:
                matrix[i] = np.diag([1.0, 0.0, 1.0, -(half[0] ** 2)])
            elif one == CONE:
                slope = (form[0] - half[0]) / (2 * half[2])
                middle = 0.5 * (form[0] + half[0])
                matrix[i] = np.diag([1.0, 1.0, -(slope**2), -(middle**2)])
                matrix[i, 2, 3] = matrix[i, 3, 2] = -slope * middle
        local = np.zeros((len(shapes), 4, 4))  # local_from_world
        local[:, 0, 0] = local[:, 1, 1] = self.cos
        local[:, 0, 1], local[:, 1, 0] = self.sin, -self.sin
        local[:, 2, 2] = local[:, 3, 3] = 1
        local[:, :3, 3] = -(local[:, :3, :3] * self.offset[:, None]).sum(-1)
        self.local = local
        half_way = (matrix[..., None] * local[:, None]).sum(2)  # [shapes, 4, 4]
        matrix = (local[:, :, :, None] * half_way[:, :, None]).sum(1)
        row = (matrix * self.grid.pole).sum(-1)  # [shapes, 4]
        square = (row * self.grid.pole).sum(-1)  # [shapes]
        square = np.where(square == 0, 1e-12, square)
        self.sign = np.sign(square).tolist()
        linear = -row / square[:, None]  # [shapes, 4]
        form = linear[:, :, None] * linear[:, None] - matrix / square[:, None, None]  # [shapes, 4, 4]
        down = (form * self.grid.down).sum(-1)  # [shapes, 4]
        self.linear = np.stack([linear, 2 * down], axis=1)  # [shapes, 2, 4]: of w, and of the form across the rows
        self.curve = (down * self.grid.down).sum(-1)  # [shapes]
        first, second = PAIRS
        self.squares = form[:, first, second] * np.where(first == second, 1, 2)  # [shapes, 10]
        self.products = self.grid.columns[first] * self.grid.columns[second]  # [10, W]

    def meet(self, i: int, rect: tuple[int, int, int, int], so_far: Array) -> tuple[Array, Array | int]:
        """Compute the nearness [rows, columns] of the hits of one shape, and their sides.

        Args:
            i: Number of the shape.
            rect: First and last (exclusive) row, then column.
            so_far: [rows, columns] nearness of the nearest hits so far; farther hits may be left out.
        """
        kind = self.kind[i]
        if kind in (BOX, PRISM):
            return self._polyhedron(i, rect, kind)
        if kind == ELLIPSOID:
            return self._ellipsoid(i, rect, so_far)
        if kind == CONE:
            return self._cone(i, rect, so_far)
        if kind == WHEEL:
            return self._wheel(i, rect)
        return self._ring(i, rect, so_far)

    def _affine(self, coefficients: Array, rect: tuple[int, int, int, int]) -> tuple[Array, Array]:
        """Evaluate functions [F, 4] of B: parts [F, rows, 1] and [F, columns], whose sum is their value."""
        r0, r1, c0, c1 = rect
        slope = (coefficients * self.grid.down).sum(1)  # [F]
        rows = slope[:, None] * self.grid.rows[r0:r1]
        columns = np.add.reduce(coefficients[:, :, None] * self.grid.columns[:, c0:c1], axis=1)
        return rows.astype(np.float32)[..., None], columns.astype(np.float32)

    def _polyhedron(self, i: int, rect: tuple[int, int, int, int], kind: int) -> tuple[Array, Array | int]:
        """Meet a convex solid: the ray is inside after it has entered by all planes and before it leaves by any."""
        rows, columns = self._affine(self.plane[i], rect)
        entered, order = self.entered[i], self.order[i]
        if not entered:  # seen from within
            return np.full((rows.shape[1], columns.shape[1]), MISS), 0
        sides = [plane // 2 for plane in order] if kind == BOX else order
        enter = rows[0] + columns[0]
        side: Array | int = sides[0]
        if entered > 1:
            side = np.full(enter.shape, side, np.int8)
        for k in range(1, entered):
            other = rows[k] + columns[k]
            np.copyto(side, sides[k], where=other < enter)  # type: ignore[arg-type]
            np.minimum(enter, other, out=enter)
        leave = rows[entered] + columns[entered]
        for k in range(entered + 1, 6):
            np.maximum(leave, rows[k] + columns[k], out=leave)
        np.copyto(enter, MISS, where=leave >= enter)
        return enter, side

    def _roots(self, i: int, rect: tuple[int, int, int, int]) -> tuple[Array, Array]:
        """Compute the middle of the two hits of a quadric and half their distance, in nearness; NaN for misses."""
        r0, r1, c0, c1 = rect
        down = self.grid.rows[r0:r1, None]
        coefficients = self.linear[i]
        part = np.add.reduce(coefficients[:, :, None] * self.grid.columns[:, c0:c1], axis=1)  # [2, columns]
        middle = (coefficients[0] * self.grid.down).sum() * down + part[0]
        squared = np.add.reduce(self.squares[i][:, None] * self.products[:, c0:c1], axis=0)  # [columns]
        form = down * part[1]  # [rows, columns], in double precision because the terms nearly cancel
        form += squared
        form += self.curve[i] * down * down
        return middle.astype(np.float32), np.sqrt(form).astype(np.float32)

    def _points(self, i: int, rect: tuple[int, int, int, int], w: Array, rows: Array, columns: Array) -> Array:
        """Compute the points [3, P] of hits in the frame of a shape; rows and columns count from the window's first."""
        grid = self.grid
        at = grid.columns[:, rect[2] + columns] + grid.down[:, None] * grid.rows[rect[0] + rows]  # [4, P]
        at += grid.pole[:, None] * w[rows, columns]
        x, y, z, h = at
        x, y, z = x / h - self.offset[i, 0], y / h - self.offset[i, 1], z / h - self.offset[i, 2]
        cos, sin = self.cos[i], self.sin[i]
        return np.stack([cos * x + sin * y, cos * y - sin * x, z]).astype(np.float32)

    def _drop_gaps(self, i: int, rect: tuple[int, int, int, int], w: Array, so_far: Array) -> None:
        """Turn hits in gaps of foliage into misses: a fixed pattern, so that all sensors see the same gaps."""
        if not self.form[i, 1]:
            return
        rows, columns = np.nonzero(w > so_far)
        if rows.size:
            x, y, z = self._points(i, rect, w, rows, columns)
            phase = np.float32(self.phase[i])
            wave = np.sin(5.1 * x + 3.7 * z + phase) + np.sin(4.3 * y - 4.1 * z + 1.7 * phase)
            wave += np.sin(17.1 * x - 12.7 * y + 8.3 * z) + np.sin(16.3 * z + 13.9 * y - 7.1 * x + phase)
            wave += np.sin(29.3 * z + 19.1 * x) * np.sin(27.7 * y - 15.3 * x)
            gap = wave > np.float32(self.form[i, 1])
            w[rows[gap], columns[gap]] = MISS

    def _ellipsoid(self, i: int, rect: tuple[int, int, int, int], so_far: Array) -> tuple[Array, Array | int]:
        middle, root = self._roots(i, rect)
        if not self.form[i, 1]:
            return (middle + root if self.sign[i] > 0 else np.full_like(middle, MISS)), 0
        outside, inside = middle + root, middle - root
        if self.sign[i] < 0:  # seen from within
            outside, inside = inside, outside
        self._drop_gaps(i, rect, outside, so_far)
        hit = np.fmax(outside, so_far)
        self._drop_gaps(i, rect, inside, hit)
        behind = inside > hit
        np.copyto(outside, inside, where=behind)
        return outside, behind.astype(np.int8)

    def _cone(self, i: int, rect: tuple[int, int, int, int], so_far: Array) -> tuple[Array, Array | int]:
        middle, root = self._roots(i, rect)
        w = middle + root if self.sign[i] > 0 else middle - root
        rows, columns = self._affine(self.plain[i, 4:], rect)
        for k in (0, 1):
            level = rows[k] + columns[k]
            np.copyto(w, MISS, where=w > level if self.front[i][4 + k] else w < level)
        self._drop_gaps(i, rect, w, so_far)
        if not self.front[i][4] or not self.form[i, 0]:
            return w, 0
        top = rows[0] + columns[0]
        r, c = np.nonzero(top > np.fmax(so_far, w))
        x, y, _ = self._points(i, rect, top, r, c)
        inside = x * x + y * y <= np.float32(self.form[i, 0] ** 2)
        r, c = r[inside], c[inside]
        w[r, c] = top[r, c]
        side = np.zeros(w.shape, np.int8)
        side[r, c] = 1
        return w, side

    def _wheel(self, i: int, rect: tuple[int, int, int, int]) -> tuple[Array, Array | int]:
        middle, root = self._roots(i, rect)
        within = self.sign[i] < 0  # seen from within the endless cylinder
        leave = middle + root if within else middle - root
        enter = np.full_like(middle, np.inf) if within else middle + root
        side = np.full(enter.shape, within, np.int8)
        rows, columns = self._affine(self.plain[i, 2:4], rect)
        for k in (0, 1):
            level = rows[k] + columns[k]
            if self.front[i][2 + k]:
                np.copyto(side, 1, where=level < enter)
                np.minimum(enter, level, out=enter)
            else:
                np.maximum(leave, level, out=leave)
        np.copyto(enter, MISS, where=~(leave < enter))
        return enter, side

    def _ring(self, i: int, rect: tuple[int, int, int, int], so_far: Array) -> tuple[Array, Array | int]:
        rows, columns = self._affine(self.plain[i, 2:3], rect)
        level = rows[0] + columns[0]
        w = np.full(level.shape, MISS)
        r, c = np.nonzero(level > so_far)
        x, _, z = self._points(i, rect, level, r, c)
        squared = x * x + z * z
        inside = (squared <= np.float32(self.half[i, 0] ** 2)) & (squared >= np.float32(self.form[i, 0] ** 2))
        w[r[inside], c[inside]] = level[r[inside], c[inside]]
        return w, 1


PAIRS = np.array([(a, b) for a in range(4) for b in range(a, 4)]).T
"""[2, 10] the different pairs of four coordinates."""


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
