"""A camera's picture of a scene: cast rays, find what they meet, light it."""

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
"""Rays a pixel along each axis, where it shows an edge."""
BIAS = 0.12
"""How far behind the first lit surface a point still counts as lit, metres."""
OFFSET = 0.3
"""How far off its surface a point is looked up among the sun's rays, metres: two of their steps, against moire."""


@dataclass(frozen=True)
class ShadowMap:
    """What the sun sees: a point further along its ray than the first surface lies in shadow."""

    view: Sunlight
    t: Array
    """[H, W] metres along each ray."""

    @classmethod
    def of(cls, view: Sunlight, shapes: Shapes) -> "ShadowMap":
        """Cast the sun's rays at ``shapes``."""
        return cls(view, cast(view, shapes, ground=False).t)

    def share(self, points: Array) -> Array:
        """How much of the sun reaches each of ``points`` [N, 3]: the mean of five rays about it, 0..1."""
        row, column, t = self.view.locate(points)
        rows, columns = self.t.shape
        total = np.zeros(len(points), np.float32)
        for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            r, c = np.clip(row + i, 0, rows - 1), np.clip(column + j, 0, columns - 1)
            total += self.t[r, c] > t - np.float32(BIAS)
        outside = (row < 0) | (row >= rows) | (column < 0) | (column >= columns)
        return np.where(outside, np.float32(1), total / 5)


@dataclass(frozen=True)
class Contact:
    """Where things stand on the ground: next to them, and under them, less light arrives from the sky."""

    view: Sunlight
    cover: Array
    """[H, W] share of the ground nearby that is taken, 0..1."""

    @classmethod
    def of(cls, center: Array, reach: float, step: float, blur: float, shapes: Shapes) -> "Contact":
        """Look down on those of ``shapes`` that touch the ground, ``reach`` metres about ``center``."""
        # A hair off the vertical, which would leave the axes across it undefined.
        view = Sunlight(center, np.array([1e-3, 0.0, 1.0]), reach, step)
        standing = shapes["center"][:, 2] - shapes["half"][:, 2] < 0.5
        taken = np.isfinite(cast(view, shapes[standing], ground=False).t).astype(np.float32)
        size = 2 * round(blur / step / 2) + 1
        for axis in (0, 1):
            taken = _running_mean(taken, size, axis)
        return cls(view, taken)

    def share(self, points: Array) -> Array:
        """How much of the sky's light reaches ``points`` [N, 3], 0..1."""
        row, column, _ = self.view.locate(points)
        rows, columns = self.cover.shape
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        cover = np.where(inside, self.cover[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)], 0)
        return 1 - np.float32(0.7) * cover * np.exp(-np.maximum(points[:, 2], 0) / np.float32(0.7))


def _running_mean(field: Array, size: int, axis: int) -> Array:
    """Mean over ``size`` (odd) neighbours along an axis, zero beyond the rim."""
    field = np.moveaxis(field, axis, 0)
    total = np.cumsum(np.pad(field, ((size // 2 + 1, size // 2), (0, 0))), axis=0, dtype=np.float64)
    return np.moveaxis((total[size:] - total[:-size]) / size, 0, axis).astype(np.float32)


@dataclass(frozen=True)
class Seen:
    """Surfaces that rays meet, N of them."""

    albedo: Array
    """[N, 3] linear reflectance."""
    normal: Array
    """[N, 3] unit, in the world."""
    gloss: Array
    """[N] share of what they mirror."""
    glow: Array
    """[N, 3] light of their own."""


@dataclass(frozen=True)
class Painter:
    """Everything about a scene that a picture needs besides shapes and a view."""

    place: Place
    light: Light
    noise: Noise
    shadows: tuple[ShadowMap, ...]
    contacts: tuple[Contact, ...]

    def picture(self, view: Pinhole, shapes: Shapes) -> tuple[Array, Hits]:
        """Render.

        Args:
            view: The camera, in pixels of the picture.
            shapes: All shapes where they are at the time of the picture.

        Returns:
            the picture [H, W, 3], and what rays of ``FINE`` times the resolution meet.
        """
        fine = view.refined(FINE)
        hits = cast(fine, shapes)
        height, width = view.size
        block = (height, FINE, width, FINE)
        key = np.where(hits.shape >= 0, hits.shape * 8 + hits.face, hits.shape)
        blocks = key.reshape(block)
        even = (blocks == blocks[:, :1, :, :1]).all((1, 3))
        # A pixel all of whose rays meet one face is shaded once, through its centre; an edge is shaded ray by ray.
        color = np.zeros((*view.size, 3), np.float32)
        depth = hits.t.reshape(block).mean((1, 3))
        inner = np.nonzero(even)
        color[inner] = self._shade(
            view, shapes, inner, depth[inner], hits.shape[::FINE, ::FINE][inner], hits.face[::FINE, ::FINE][inner]
        )
        edge = np.nonzero(~even.repeat(FINE, 0).repeat(FINE, 1))
        rays = np.zeros((*fine.size, 3), np.float32)
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
        """Light [N, 3] along the rays through ``pixels``, which meet ``shape`` at depth ``t`` [N]."""
        direction = np.stack([c[pixels] for c in view.rays().direction], axis=1)
        length = np.linalg.norm(direction, axis=1)
        unit = direction / length[:, None]
        color = np.empty_like(direction)
        above = shape == SKY
        color[above] = sky(self.light, self.noise, unit[above])
        hit = np.flatnonzero(~above)
        where = view.eye.astype(np.float32) + direction[hit] * t[hit, None]
        footprint = t[hit] / np.float32(view.intrinsics[0, 0])
        seen = self.surface(shapes, where, unit[hit], shape[hit], face[hit], footprint)
        shade = np.ones(len(hit), np.float32)
        for shadow in self.shadows:
            shade = np.minimum(shade, shadow.share(where + np.float32(OFFSET) * seen.normal))
        open_sky = np.ones(len(hit), np.float32)
        for contact in self.contacts:
            open_sky *= contact.share(where)
        radiance = lit(self.light, seen.albedo, seen.normal, shade, open_sky) + seen.glow
        radiance = self._mirrored(radiance, unit[hit], seen, shade)
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
        """What rays along ``unit`` [N, 3] meet at ``where`` [N, 3], metres: the ground or a side of ``shapes[shape]``.

        ``footprint`` [N] is a pixel's width there in metres, were the surface to face the ray.
        """
        albedo, normal, glow = np.empty_like(where), np.zeros_like(where), np.zeros_like(where)
        gloss = np.zeros(len(where), np.float32)
        floor = np.flatnonzero(shape == GROUND)
        slant = np.sqrt(1 / np.maximum(-unit[floor, 2], 0.02))
        x, y = where[floor, 0], where[floor, 1]
        albedo[floor] = ground_albedo(self.place, self.noise, x, y, footprint[floor] * slant)
        normal[floor, 2] = 1
        solid = np.flatnonzero(shape >= 0)
        points = local_points(shapes[shape[solid]], where[solid], face[solid], footprint[solid])
        normal[solid] = world_normals(points)
        albedo[solid], gloss[solid], glow[solid] = reflectance(points, self.noise)
        return Seen(albedo, normal, gloss, glow)

    def _mirrored(self, radiance: Array, unit: Array, seen: Seen, shade: Array) -> Array:
        """Add the sky, or what stands at the horizon, as mirrored in glossy surfaces."""
        rows = np.flatnonzero(seen.gloss > 0)
        normal = seen.normal[rows]
        facing = -(unit[rows] * normal).sum(1)
        away = unit[rows] + 2 * facing[:, None] * normal
        up = np.clip(away[:, 2] * 3, 0, 1)[:, None]
        street = 0.12 * self.light.horizon.astype(np.float32)
        image = street + (0.6 * self.light.horizon + 0.4 * self.light.zenith - street).astype(np.float32) * up
        sun = np.clip(dot(away, self.light.toward_sun), 0, 1) ** 150 * shade[rows]
        image = image + sun[:, None] * 4 * self.light.sun.astype(np.float32)
        share = seen.gloss[rows] + (1 - seen.gloss[rows]) * 0.3 * np.clip(1 - facing, 0, 1) ** 5
        radiance[rows] += (image - 0.5 * radiance[rows]) * share[:, None]
        return radiance
