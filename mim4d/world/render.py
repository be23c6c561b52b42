"""A camera's picture of a scene: cast rays, find what they meet, light it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ground import ground_albedo
from .light import Light, developed, hazed, lit, sky
from .place import Place
from .raycast import GROUND, SKY, Hits, cast
from .shapes import Shapes
from .surface import local_points, reflectance, world_normals
from .texture import Noise
from .views import Pinhole, Sunlight

Floats = NDArray[np.floating]
FINE = 2
"""Rays a pixel along each axis, where it shows an edge."""
BIAS = 0.12
"""How far behind the first lit surface a point still counts as lit, metres."""


@dataclass(frozen=True)
class ShadowMap:
    """What the sun sees: a point further along its ray than the first surface lies in shadow."""

    view: Sunlight
    t: Floats
    """[H, W] metres along each ray."""

    @classmethod
    def of(cls, view: Sunlight, shapes: Shapes) -> "ShadowMap":
        """Cast the sun's rays at ``shapes``."""
        return cls(view, cast(view, shapes, ground=False).t)

    def share(self, points: Floats) -> Floats:
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
class Seen:
    """Surfaces that rays meet, N of them."""

    albedo: Floats
    """[N, 3] linear reflectance."""
    normal: Floats
    """[N, 3] unit, in the world."""
    gloss: Floats
    """[N] share of what they mirror."""
    glow: Floats
    """[N, 3] light of their own."""


@dataclass(frozen=True)
class Painter:
    """Everything about a scene that a picture needs besides shapes and a view."""

    place: Place
    light: Light
    noise: Noise
    shadows: tuple[ShadowMap, ...]

    def picture(self, view: Pinhole, shapes: Shapes) -> tuple[NDArray[np.uint8], Hits]:
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
        pixels: tuple[NDArray[np.int64], ...],
        t: Floats,
        shape: NDArray[np.int32],
        face: NDArray[np.int8],
    ) -> Floats:
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
            shade = np.minimum(shade, shadow.share(where + 0.08 * seen.normal))
        radiance = lit(self.light, seen.albedo, seen.normal, shade) + seen.glow
        radiance = self._mirrored(radiance, unit[hit], seen, shade)
        color[hit] = hazed(self.light, radiance, t[hit] * length[hit])
        return color

    def surface(
        self,
        shapes: Shapes,
        where: Floats,
        unit: Floats,
        shape: NDArray[np.int32],
        face: NDArray[np.int8],
        footprint: Floats,
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

    def _mirrored(self, radiance: Floats, unit: Floats, seen: Seen, shade: Floats) -> Floats:
        """Add the sky, or what stands at the horizon, as mirrored in glossy surfaces."""
        rows = np.flatnonzero(seen.gloss > 0)
        normal = seen.normal[rows]
        facing = -(unit[rows] * normal).sum(1)
        away = unit[rows] + 2 * facing[:, None] * normal
        up = np.clip(away[:, 2] * 3, 0, 1)[:, None]
        street = 0.25 * self.light.horizon.astype(np.float32)
        image = street + (0.6 * self.light.horizon + 0.4 * self.light.zenith - street).astype(np.float32) * up
        sun = np.clip(away @ self.light.toward_sun.astype(np.float32), 0, 1) ** 150 * shade[rows]
        image = image + sun[:, None] * 4 * self.light.sun.astype(np.float32)
        share = seen.gloss[rows] + (1 - seen.gloss[rows]) * 0.4 * np.clip(1 - facing, 0, 1) ** 5
        radiance[rows] += (image - 0.5 * radiance[rows]) * share[:, None]
        return radiance
