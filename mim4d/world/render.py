"""Render the image of a camera: cast rays, find the surfaces that they hit, and light them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .arrays import Array, dot
from .ground import ground_albedo
from .light import Light, developed, hazed, lit, sky
from .place import Place
from .raycast import GROUND, SKY, Hits, cast
from .shapes import Columns, Shapes
from .surface import local_points, reflectance, world_normals
from .texture import Noise
from .views import Pinhole, Sunlight

FINE = 2
"""Rays per pixel along each axis at edges."""
BATCH = 8192
"""Rays that are shaded together."""
BIAS = 0.12
"""Largest distance behind the first sunlit surface at which a point is sunlit too, metres."""
OFFSET = 0.3
"""Distance from its surface at which a point is tested for shadow, metres: two steps of the map, against moire."""


@dataclass(frozen=True)
class ShadowMap:
    """A shadow map: points behind the first surface along a ray of the sun are in shadow."""

    view: Sunlight
    t: Array
    """[H, W] distance of the first surface along each ray, metres."""

    @classmethod
    def of(cls, view: Sunlight, shapes: Shapes) -> "ShadowMap":
        """Cast the rays of the sun at ``shapes``."""
        return cls(view, cast(view, shapes, ground=False).t)

    @cached_property
    def _shaded(self) -> tuple[int, int, int, int]:
        """First and last (exclusive) row and column of the rays that may be next to one that hits a shape."""
        return _extent(np.isfinite(self.t), 1)

    def sunlit(self, points: Array) -> Array:
        """Compute the fraction [P] of sunlight that reaches points [P, 3]: the mean of five neighbouring rays, 0..1."""
        row, column, t = self.view.locate(points)  # [P] each
        rows, columns = self.t.shape
        sunlit = np.ones(len(points), np.float32)  # [P]
        r0, r1, c0, c1 = self._shaded
        there = np.flatnonzero((row >= r0) & (row < r1) & (column >= c0) & (column < c1))
        row, column, t = row[there], column[there], t[there] - np.float32(BIAS)
        total = np.zeros(len(there), np.float32)
        for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            r, c = np.minimum(np.maximum(row + i, 0), rows - 1), np.minimum(np.maximum(column + j, 0), columns - 1)
            total += self.t[r, c] > t
        sunlit[there] = total / 5
        return sunlit


def _extent(mask: Array, margin: int) -> tuple[int, int, int, int]:
    """Find the first and last (exclusive) row and column of a mask [H, W], with a margin, clipped to the mask.

    >>> _extent(np.eye(9)[:6, 3:] > 0, margin=1)
    (2, 6, 0, 4)
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not rows.size:
        return 0, 0, 0, 0
    (r0, r1), (c0, c1) = (
        (max(int(i[0]) - margin, 0), min(int(i[-1]) + 1 + margin, n))
        for i, n in zip((rows, columns), mask.shape, strict=True)
    )
    return r0, r1, c0, c1


@dataclass(frozen=True)
class Contact:
    """Ambient occlusion at the ground: next to objects and below them, less light arrives from the sky."""

    view: Sunlight
    cover: Array
    """[H, W] fraction of the ground nearby that objects cover, 0..1."""

    @classmethod
    def of(cls, center: Array, reach: float, step: float, blur: float, shapes: Shapes) -> "Contact":
        """Find the ground that shapes cover in a square around ``center``.

        Args:
            center: [3] centre of the square, metres.
            reach: Half side of the square, metres.
            step: Size of a cell, metres.
            blur: Width of the area over which the cover is averaged, metres.
            shapes: [shapes] of which those that touch the ground count.
        """
        # Slightly off the vertical, for which the axes across it are undefined.
        view = Sunlight(center, np.array([1e-3, 0.0, 1.0]), reach, step)
        standing = shapes["center"][:, 2] - shapes["half"][:, 2] < 0.5
        cover = np.isfinite(cast(view, shapes[standing], ground=False).t).astype(np.float32)  # [H, W]
        size = 2 * round(blur / step / 2) + 1
        for axis in (0, 1):
            cover = _running_mean(cover, size, axis)
        return cls(view, cover)

    def __or__(self, other: "Contact") -> "Contact":
        """Join the cover of two maps of the same ground: each takes its part of the light that the other leaves."""
        return Contact(self.view, 1 - (1 - self.cover) * (1 - other.cover))

    def open_sky(self, points: Array) -> Array:
        """Compute the fraction [P] of the light of the sky that reaches points [P, 3], 0..1."""
        row, column, _ = self.view.locate(points)  # [P] each
        open_sky = np.ones(len(points), np.float32)
        r0, r1, c0, c1 = self._covered
        there = np.flatnonzero((row >= r0) & (row < r1) & (column >= c0) & (column < c1))
        height = np.maximum(points[there, 2], 0)
        open_sky[there] -= np.float32(0.7) * self.cover[row[there], column[there]] * np.exp(height / np.float32(-0.7))
        return open_sky

    @cached_property
    def _covered(self) -> tuple[int, int, int, int]:
        """First and last (exclusive) row and column of the ground with cover."""
        return _extent(self.cover > 0, 0)


def _running_mean(field: Array, size: int, axis: int) -> Array:
    """Average ``size`` (odd) neighbours along an axis of a field [H, W]; outside it is 0.

    >>> _running_mean(np.array([[3.0, 0.0, 6.0]]), size=3, axis=1)
    array([[1., 3., 2.]], dtype=float32)
    """
    field = np.moveaxis(field, axis, 0)
    total = np.cumsum(np.pad(field, ((size // 2 + 1, size // 2), (0, 0))), axis=0, dtype=np.float64)
    return np.moveaxis((total[size:] - total[:-size]) / size, 0, axis).astype(np.float32)


@dataclass(frozen=True)
class Seen:
    """The surfaces at P hits."""

    albedo: Array
    """[3, P] linear reflectance."""
    normal: Array
    """[3, P] unit normals in the world."""
    gloss: Array | float
    """[P] fraction of light that is mirrored."""
    glow: Array | float
    """[3, P] emitted light."""


@dataclass(frozen=True)
class Painter:
    """Renders images of a scene; holds all that they need besides shapes and a view."""

    place: Place
    light: Light
    noise: Noise
    shadows: tuple[ShadowMap, ...]
    contacts: tuple[Contact, ...]

    def picture(self, view: Pinhole, shapes: Shapes) -> tuple[Array, Hits]:
        """Render an image.

        If all rays of a pixel hit one side of a shape, it is shaded once at its centre; at edges, each ray is shaded.

        Args:
            view: The camera.
            shapes: [shapes] all shapes at the time of the image.

        Returns:
            The image [H, W, 3] uint8, and the hits of rays at :data:`FINE` times its resolution.
        """
        fine = view.refined(FINE)
        hits = cast(fine, shapes)  # [FINE*H, FINE*W]
        key = np.where(hits.shape >= 0, hits.shape * 8 + hits.face, hits.shape)
        inner = np.ones(view.size, bool)  # [H, W]
        depth = np.zeros(view.size, np.float32)  # [H, W], the mean of the pixel's rays
        for i, j in np.ndindex(FINE, FINE):
            inner &= key[i::FINE, j::FINE] == key[::FINE, ::FINE]
            depth += hits.t[i::FINE, j::FINE] * np.float32(1 / FINE**2)
        columns = Columns(shapes)
        pixels: tuple[Array, ...] = np.nonzero(inner)
        corner = (pixels[0] * FINE, pixels[1] * FINE)
        once = self.shade(view, columns, pixels, depth[pixels], hits.shape[corner], hits.face[corner])
        edges = np.nonzero(~inner)
        row, column = (
            (FINE * pixel + step[:, None]).ravel()  # the rays of all edges, one ray per pixel after the other
            for pixel, step in zip(edges, np.indices((FINE, FINE)).reshape(2, -1), strict=True)
        )
        rays = row, column
        each = self.shade(fine, columns, rays, hits.t[rays], hits.shape[rays], hits.face[rays])
        color = np.empty((*view.size, 3), np.uint8)  # [H, W, 3]
        color[pixels] = self._developed(once)
        color[edges] = self._developed(each.reshape(3, FINE**2, -1).mean(1))
        return color, hits

    def _developed(self, radiance: Array) -> Array:
        """Convert light [3, P] to colours [P, 3] uint8."""
        return (developed(self.light, radiance) * 255 + 0.5).astype(np.uint8).T

    def shade(
        self,
        view: Pinhole,
        shapes: Columns,
        pixels: tuple[Array, ...],
        t: Array,
        shape: Array,
        face: Array,
    ) -> Array:
        """Compute the light [3, P] along rays through ``pixels`` that hit ``shape`` [P] at depth ``t`` [P]."""
        color = np.empty((3, len(t)), np.float32)
        for kind, rows in by_material(shapes, shape):
            direction = view.directions(pixels[0][rows], pixels[1][rows])  # [3, rows], as all arrays below
            length = np.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2)
            unit = direction / length
            if kind == SKY:
                color[:, rows] = sky(self.light, self.noise, unit)
                continue
            depth = t[rows]
            where = view.eye.astype(np.float32)[:, None] + direction * depth
            footprint = depth / np.float32(view.intrinsics[0, 0])
            seen = self.surface(shapes, kind, where, unit, shape[rows], face[rows], footprint)
            sunlit = np.ones(len(rows), np.float32)
            for shadow in self.shadows:
                sunlit = np.minimum(sunlit, shadow.sunlit((where + np.float32(OFFSET) * seen.normal).T))
            open_sky = np.ones(len(rows), np.float32)
            for contact in self.contacts:
                open_sky *= contact.open_sky(where.T)
            radiance = lit(self.light, seen.albedo, seen.normal, sunlit, open_sky) + seen.glow
            if np.any(seen.gloss):
                radiance = self._mirrored(radiance, unit, seen, sunlit)
            color[:, rows] = hazed(self.light, radiance, depth * length)
        return color

    def surface(
        self,
        shapes: Columns,
        kind: int,
        where: Array,
        unit: Array,
        shape: Array,
        face: Array,
        footprint: Array,
    ) -> Seen:
        """Look up the surfaces at hits of one kind.

        Args:
            shapes: All shapes.
            kind: Material of the hits, or :data:`GROUND`.
            where: [3, P] positions of the hits in the world, metres.
            unit: [3, P] unit directions of the rays.
            shape: [P] numbers of the shapes.
            face: [P] sides of the shapes.
            footprint: [P] width of a pixel at the hit on a surface that faces the ray, metres.
        """
        if kind == GROUND:
            slant = np.sqrt(1 / np.maximum(-unit[2], np.float32(0.02)))
            up = np.zeros_like(where)
            up[2] = 1
            return Seen(ground_albedo(self.place, self.noise, where[0], where[1], footprint * slant), up, 0.0, 0.0)
        points = local_points(shapes, shape, where, face, footprint)
        albedo, gloss, glow = reflectance(points, kind, self.noise)
        return Seen(albedo, world_normals(points), gloss, glow)

    def _mirrored(self, radiance: Array, unit: Array, seen: Seen, sunlit: Array) -> Array:
        """Add the reflection of the sky or the horizon in glossy surfaces to radiance [3, P]."""
        facing = -(unit * seen.normal).sum(0)  # [P]
        away = unit + 2 * facing * seen.normal  # [3, P]
        up = np.clip(away[2] * 3, 0, 1)
        street = 0.12 * self.light.horizon.astype(np.float32)[:, None]
        image = (
            street + ((0.6 * self.light.horizon + 0.4 * self.light.zenith).astype(np.float32)[:, None] - street) * up
        )
        sun = np.clip(dot(away.T, self.light.toward_sun), 0, 1) ** 150 * sunlit
        image += sun * (4 * self.light.sun.astype(np.float32)[:, None])
        mirrored = seen.gloss + (1 - seen.gloss) * 0.3 * np.clip(1 - facing, 0, 1) ** 5  # weak Schlick
        return radiance + (image - 0.5 * radiance) * np.where(np.greater(seen.gloss, 0), mirrored, 0).astype(np.float32)


def by_material(shapes: Columns, shape: Array) -> Iterator[tuple[int, Array]]:
    """Sort hits by what they hit, in batches whose arrays fit in the cache of a core.

    Args:
        shapes: All shapes.
        shape: [P] numbers of the shapes, or :data:`GROUND` or :data:`SKY`.

    Yields:
        A material, :data:`GROUND` or :data:`SKY`, and rows of ``shape``.
    """
    kind = shape.astype(np.int8)  # [P]
    solid = np.flatnonzero(shape >= 0)
    kind[solid] = shapes.at("material", shape[solid])
    order = np.argsort(kind, kind="stable")
    kinds, first = np.unique(kind[order], return_index=True)
    for number, rows in zip(kinds.tolist(), np.split(order, first[1:]), strict=True):
        for start in range(0, len(rows), BATCH):
            yield number, rows[start : start + BATCH]
