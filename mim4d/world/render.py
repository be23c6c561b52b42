"""Render the image of a camera: cast rays, find the surfaces that they hit, and light them."""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, dot
from .ground import ground_albedo
from .light import Light, developed, hazed, lit, sky
from .place import Place
from .raycast import GROUND, SKY, Hits, cast
from .shapes import Shapes
from .surface import local_points, reflectance, world_normals
from .texture import Noise
from .views import Pinhole, Sunlight

FINE = 2
"""Rays per pixel along each axis at edges."""
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

    def sunlit(self, points: Array) -> Array:
        """Compute the fraction [P] of sunlight that reaches points [P, 3]: the mean of five neighbouring rays, 0..1."""
        row, column, t = self.view.locate(points)  # [P] each
        rows, columns = self.t.shape
        total = np.zeros(len(points), np.float32)  # [P]
        for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            r, c = np.clip(row + i, 0, rows - 1), np.clip(column + j, 0, columns - 1)
            total += self.t[r, c] > t - np.float32(BIAS)
        outside = (row < 0) | (row >= rows) | (column < 0) | (column >= columns)
        return np.where(outside, np.float32(1), total / 5)


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

    def open_sky(self, points: Array) -> Array:
        """Compute the fraction [P] of the light of the sky that reaches points [P, 3], 0..1."""
        row, column, _ = self.view.locate(points)  # [P] each
        rows, columns = self.cover.shape
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        cover = np.where(inside, self.cover[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)], 0)
        return 1 - np.float32(0.7) * cover * np.exp(-np.maximum(points[:, 2], 0) / np.float32(0.7))


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
    """[P, 3] linear reflectance."""
    normal: Array
    """[P, 3] unit normals in the world."""
    gloss: Array
    """[P] fraction of light that is mirrored."""
    glow: Array
    """[P, 3] emitted light."""


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

        Args:
            view: The camera.
            shapes: [shapes] all shapes at the time of the image.

        Returns:
            The image [H, W, 3] uint8, and the hits of rays at :data:`FINE` times its resolution.
        """
        fine = view.refined(FINE)
        hits = cast(fine, shapes)  # [FINE*H, FINE*W]
        height, width = view.size
        block = (height, FINE, width, FINE)
        key = np.where(hits.shape >= 0, hits.shape * 8 + hits.face, hits.shape)
        blocks = key.reshape(block)  # [H, FINE, W, FINE]
        even = (blocks == blocks[:, :1, :, :1]).all((1, 3))  # [H, W]
        # If all rays of a pixel hit one side of a shape, it is shaded once at its centre; at edges, each ray is shaded.
        color = np.zeros((*view.size, 3), np.float32)  # [H, W, 3]
        depth = hits.t.reshape(block).mean((1, 3))  # [H, W]
        inner = np.nonzero(even)
        color[inner] = self._shade(
            view, shapes, inner, depth[inner], hits.shape[::FINE, ::FINE][inner], hits.face[::FINE, ::FINE][inner]
        )
        edge = np.nonzero(~even.repeat(FINE, 0).repeat(FINE, 1))
        rays = np.zeros((*fine.size, 3), np.float32)  # [FINE*H, FINE*W, 3]
        rays[edge] = self._shade(fine, shapes, edge, hits.t[edge], hits.shape[edge], hits.face[edge])
        color[~even] = rays.reshape(*block, 3).mean((1, 3))[~even]
        return (developed(self.light, color) * 255 + 0.5).astype(np.uint8), hits

    def _shade(
        self,
        view: Pinhole,
        shapes: Shapes,
        pixels: tuple[Array, ...],
        t: Array,
        shape: Array,
        face: Array,
    ) -> Array:
        """Compute the light [P, 3] along rays through ``pixels`` that hit ``shape`` [P] at depth ``t`` [P]."""
        direction = np.stack([c[pixels] for c in view.rays().direction], axis=1)  # [P, 3]
        length = np.linalg.norm(direction, axis=1)  # [P]
        unit = direction / length[:, None]  # [P, 3]
        color = np.empty_like(direction)
        is_sky = shape == SKY  # [P]
        color[is_sky] = sky(self.light, self.noise, unit[is_sky])
        hit = np.flatnonzero(~is_sky)  # [hits], as all arrays below
        where = view.eye.astype(np.float32) + direction[hit] * t[hit, None]  # [hits, 3]
        footprint = t[hit] / np.float32(view.intrinsics[0, 0])
        seen = self.surface(shapes, where, unit[hit], shape[hit], face[hit], footprint)
        sunlit = np.ones(len(hit), np.float32)
        for shadow in self.shadows:
            sunlit = np.minimum(sunlit, shadow.sunlit(where + np.float32(OFFSET) * seen.normal))
        open_sky = np.ones(len(hit), np.float32)
        for contact in self.contacts:
            open_sky *= contact.open_sky(where)
        radiance = lit(self.light, seen.albedo, seen.normal, sunlit, open_sky) + seen.glow  # [hits, 3]
        radiance = self._mirrored(radiance, unit[hit], seen, sunlit)
        color[hit] = hazed(self.light, radiance, t[hit] * length[hit])
        return color

    def surface(
        self,
        shapes: Shapes,
        where: Array,
        unit: Array,
        shape: Array,
        face: Array,
        footprint: Array,
    ) -> Seen:
        """Look up the surfaces at hits.

        Args:
            shapes: [shapes] all shapes.
            where: [P, 3] positions of the hits in the world, metres.
            unit: [P, 3] unit directions of the rays.
            shape: [P] numbers of the shapes, or :data:`GROUND`.
            face: [P] sides of the shapes.
            footprint: [P] width of a pixel at the hit on a surface that faces the ray, metres.
        """
        albedo, normal, glow = np.empty_like(where), np.zeros_like(where), np.zeros_like(where)
        gloss = np.zeros(len(where), np.float32)
        on_ground = np.flatnonzero(shape == GROUND)
        slant = np.sqrt(1 / np.maximum(-unit[on_ground, 2], 0.02))
        x, y = where[on_ground, 0], where[on_ground, 1]
        albedo[on_ground] = ground_albedo(self.place, self.noise, x, y, footprint[on_ground] * slant)
        normal[on_ground, 2] = 1
        solid = np.flatnonzero(shape >= 0)
        points = local_points(shapes[shape[solid]], where[solid], face[solid], footprint[solid])
        normal[solid] = world_normals(points)
        albedo[solid], gloss[solid], glow[solid] = reflectance(points, self.noise)
        return Seen(albedo, normal, gloss, glow)

    def _mirrored(self, radiance: Array, unit: Array, seen: Seen, sunlit: Array) -> Array:
        """Add the reflection of the sky or the horizon in glossy surfaces to radiance [P, 3]."""
        rows = np.flatnonzero(seen.gloss > 0)  # [glossy], as all arrays below
        normal = seen.normal[rows]
        facing = -(unit[rows] * normal).sum(1)
        away = unit[rows] + 2 * facing[:, None] * normal
        up = np.clip(away[:, 2] * 3, 0, 1)[:, None]
        street = 0.12 * self.light.horizon.astype(np.float32)
        image = street + (0.6 * self.light.horizon + 0.4 * self.light.zenith - street).astype(np.float32) * up
        sun = np.clip(dot(away, self.light.toward_sun), 0, 1) ** 150 * sunlit[rows]
        image = image + sun[:, None] * 4 * self.light.sun.astype(np.float32)
        mirrored = seen.gloss[rows] + (1 - seen.gloss[rows]) * 0.3 * np.clip(1 - facing, 0, 1) ** 5  # weak Schlick
        radiance[rows] += (image - 0.5 * radiance[rows]) * mirrored[:, None]
        return radiance
