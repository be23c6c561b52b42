"""The surfaces of shapes: normals and reflectance at points on them."""

from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .facade import facade
from .raycast import prism_planes
from .shapes import Kind, Material, Shapes
from .texture import Noise, band, covered, hashed


@dataclass(frozen=True)
class Points:
    """P points on the surfaces of shapes, each in the frame of its shape."""

    shapes: Shapes
    """[P] the shape of each point."""
    local: Array
    """[P, 3] float32 positions, metres."""
    normal: Array
    """[P, 3] float32 unit normals."""
    face: Array
    """[P] sides of the shapes, as the ray caster counts them."""
    footprint: Array
    """[P] width of a pixel at the point, metres."""

    def subset(self, rows: Array) -> "Points":
        """Select points."""
        return Points(self.shapes[rows], self.local[rows], self.normal[rows], self.face[rows], self.footprint[rows])


def local_points(shapes: Shapes, world: Array, face: Array, footprint: Array) -> Points:
    """Transform points [P, 3] in the world on ``shapes`` [P] to the frames of the shapes, and add their normals."""
    offset: Array = world - shapes["center"].astype(np.float32)
    local = _turned(offset, -shapes["yaw"])
    return Points(shapes, local, _normals(shapes, local, face), face, footprint)


def world_normals(points: Points) -> Array:
    """Compute the unit normals [P, 3] in the world."""
    return _turned(points.normal, points.shapes["yaw"])


def _turned(vectors: Array, yaw: Array) -> Array:
    """Rotate vectors [P, 3] about z by ``yaw`` [P]."""
    cos, sin = np.cos(yaw).astype(np.float32), np.sin(yaw).astype(np.float32)
    x, y = vectors[:, 0], vectors[:, 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y, vectors[:, 2]], axis=1)


def _normals(shapes: Shapes, local: Array, face: Array) -> Array:
    """Compute the unit normals [P, 3] at points ``local`` [P, 3]."""
    normal = np.zeros_like(local)  # [P, 3]
    kind = shapes["kind"]
    box = np.flatnonzero(kind == Kind.BOX)
    normal[box, face[box]] = np.sign(local[box, face[box]])
    prism = np.flatnonzero(kind == Kind.PRISM)
    if prism.size:
        planes = prism_planes(shapes["half"][prism], shapes["form"][prism])
        normal[prism] = planes[np.arange(prism.size), face[prism], :3]
    ball = np.flatnonzero(kind == Kind.ELLIPSOID)
    normal[ball] = local[ball] / (shapes["half"][ball] ** 2).astype(np.float32)
    cone = np.flatnonzero(kind == Kind.CONE)
    if cone.size:
        slope = (shapes["half"][cone, 0] - shapes["form"][cone, 0]) / (2 * shapes["half"][cone, 2])
        normal[cone, :2] = local[cone, :2]
        normal[cone, 2] = slope * np.hypot(local[cone, 0], local[cone, 1])
        top = cone[face[cone] == 1]
        normal[top] = (0, 0, 1)
    wheel = np.flatnonzero((kind == Kind.WHEEL) | (kind == Kind.RING))
    side = face[wheel] == 1
    normal[wheel, 0] = np.where(side, 0, local[wheel, 0])
    normal[wheel, 1] = np.where(side, np.sign(local[wheel, 1]), 0)
    normal[wheel, 2] = np.where(side, 0, local[wheel, 2])
    normal[wheel[side & (normal[wheel, 1] == 0)], 1] = 1
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)


def reflectance(points: Points, noise: Noise) -> tuple[Array, Array, Array]:
    """Compute the reflectance of surfaces.

    Args:
        points: The P points.
        noise: Texture of the scene.

    Returns:
        Albedo [P, 3], gloss [P] (fraction of the light that is mirrored) and glow [P, 3] (emitted light).
    """
    albedo = points.shapes["color"].copy()
    gloss = np.zeros(len(albedo), np.float32)
    glow = np.zeros_like(albedo)
    material = points.shapes["material"]
    for kind, paint in _PAINTERS.items():
        rows = np.flatnonzero(material == kind)
        if rows.size:
            albedo[rows], gloss[rows], glow[rows] = paint(points.subset(rows), noise)
    return albedo, gloss, glow


Look = tuple[Array, Array | float, Array | float]
"""Albedo [P, 3], gloss [P] and glow [P, 3]; the last two may be 0."""


def _plain(points: Points, noise: Noise) -> Look:
    u, v, w = points.local.T
    stain = noise(u + w, v + 0.7 * w, 3.0, points.footprint)
    return points.shapes["color"] * (1 + 0.06 * stain)[:, None], 0.0, 0.0


def _roof(points: Points, noise: Noise) -> Look:
    x, y, z = points.local.T
    rows = hashed(np.floor(z / 0.22).astype(np.int32), np.floor(x / 0.3).astype(np.int32)) - 0.5
    fade = np.clip(0.25 / points.footprint - 0.6, 0, 1)
    tone = 1 + 0.35 * rows * fade + 0.10 * noise(x, y + z, 7.0, points.footprint)
    return points.shapes["color"] * tone[:, None], 0.0, 0.0


def _leaves(points: Points, noise: Noise) -> Look:
    x, y, z = points.local.T
    around = np.arctan2(y, x) * np.float32(1.5)
    clumps = noise(x + 0.6 * z, y + 0.8 * z, 5.0, points.footprint)
    leaves = noise(around + 0.3 * x, z + 0.4 * y, 3.1, points.footprint)
    height = z / points.shapes["half"][:, 2]
    tone = np.clip(0.85 + 0.30 * height + 0.35 * clumps + 0.40 * leaves, 0.15, 2.2)
    within = (points.shapes["kind"] == Kind.ELLIPSOID) & (points.face == 1)
    warm = np.stack([1 + 0.12 * leaves, np.ones_like(x), 1 - 0.1 * leaves], axis=1)
    return points.shapes["color"] * (tone * np.where(within, 0.45, 1))[:, None] * warm, 0.0, 0.0


def _bark(points: Points, noise: Noise) -> Look:
    x, y, z = points.local.T
    ridges = noise(np.arctan2(y, x) * 0.4, z * 0.25, 1.2, points.footprint)
    return points.shapes["color"] * (1 + 0.25 * ridges)[:, None], 0.0, 0.0


def _stripes(points: Points, noise: Noise) -> Look:
    period, fraction = points.shapes["look"][:, 0], points.shapes["look"][:, 1]
    white = band((points.local[:, 2] + 0.6 * period) % period, 0.0, fraction * period, points.footprint)
    color = points.shapes["color"]
    return color + (np.float32(0.75) - color) * white[:, None], 0.03, 0.0


def _sign(points: Points, noise: Noise) -> Look:
    _, y, z = points.local.T
    half_y, half_z = points.shapes["half"][:, 1], points.shapes["half"][:, 2]
    inside = np.minimum(half_y - np.abs(y), half_z - np.abs(z))
    rim = covered(0.05 - inside, points.footprint) * (points.face == 0) * (points.normal[:, 0] > 0)
    seed = points.shapes["look"][:, 0].astype(np.int32)
    glyph = hashed(np.floor(y / 0.12).astype(np.int32), np.floor(z / 0.12).astype(np.int32), seed) > 0.62
    white = np.float32(0.75) * (1 - 0.85 * glyph)
    color = points.shapes["color"]
    gray = np.where((points.normal[:, 0] < 0)[:, None], np.float32(0.3), color)
    return gray + (white[:, None] - gray) * rim[:, None], 0.03, 0.0


def _glow(points: Points, noise: Noise) -> Look:
    return points.shapes["color"] * 0.3, 0.0, points.shapes["color"] * points.shapes["look"][:, :1]


def _wheel(points: Points, noise: Noise) -> Look:
    x, _, z = points.local.T
    radius = np.hypot(x, z) / points.shapes["half"][:, 0]
    spokes = 0.5 + 0.5 * np.cos(5 * np.arctan2(z, x))
    rim = covered((radius - 0.66) * 0.33, points.footprint) * (points.face == 1)
    tone = (0.10 + 0.35 * spokes * (radius > 0.2)) * rim
    return points.shapes["color"] + tone[:, None], 0.06 * rim, 0.0


def _paint(points: Points, noise: Noise) -> Look:
    """Compute the look of a body: door seams, lights, plates and grille."""
    shapes, fp = points.shapes, points.footprint
    x, y, z = points.local.T
    hx, hy, hz = shapes["half"].astype(np.float32).T
    up = z / hz
    facing = points.normal[:, 0]
    ahead, behind = facing > 0.5, facing < -0.5
    beside = np.abs(points.normal[:, 1]) > 0.5
    color = shapes["color"].copy()
    glow = np.zeros_like(color)
    color *= (1 + 0.02 * noise(x + y, z, 3.0, fp) - 0.12 * np.clip(-up, 0, 1))[:, None]
    passenger = shapes["look"][:, 0] == 1
    # Doors: seams on both sides.
    seam = np.minimum(np.abs(x - 0.12 * hx), np.abs(x + 0.42 * hx))
    seam = np.minimum(seam, np.abs(x - 0.5 * hx))
    dark = covered(seam - 0.012, np.maximum(fp, 0.01)) * np.clip(0.03 / fp, 0, 1) * (beside & passenger)
    color *= (1 - 0.7 * dark)[:, None]
    # Front: a grille between headlights. Rear: lights and a plate.
    corner = hy - np.abs(y)
    lamps = band(corner, 0.06, 0.42, fp) * band(up, 0.15, 0.62, fp / hz)
    grille = covered(np.abs(y) - hy * 0.48, fp) * band(up, -0.45, 0.35, fp / hz)
    plate = covered(np.abs(y) - 0.26, fp) * band(up, -0.35, 0.0, fp / hz)
    head, tail = lamps * ahead * passenger, lamps * behind
    braking = shapes["look"][:, 1]
    color = color + (np.float32(0.02) - color) * (grille * ahead * passenger)[:, None]
    color = color + (np.float32(0.85) - color) * head[:, None]
    color = color + (np.array([0.45, 0.01, 0.01], np.float32) - color) * tail[:, None]
    color = color + (np.float32(0.7) - color) * (plate * behind)[:, None]
    color = np.where((shapes["look"][:, 0] == 2)[:, None], _cargo(points, color), color)
    glow += (tail * (0.15 + 1.3 * braking))[:, None] * np.array([1.0, 0.06, 0.04], np.float32)
    return color, 0.10 * (shapes["look"][:, 0] > 0), glow


def _cargo(points: Points, color: Array) -> Array:
    """Compute the albedo [P, 3] of a cargo box: ribs, a stripe and lettering on its sides."""
    x, _, z = points.local.T
    look, half = points.shapes["look"], points.shapes["half"].astype(np.float32)
    seed = look[:, 2].astype(np.int32)
    beside = np.abs(points.normal[:, 1]) > 0.5
    rib = band(x % 0.6, 0.0, 0.04, np.maximum(points.footprint, 0.02)) * beside
    color = color * (1 - 0.25 * rib)[:, None]
    sample = [hashed(seed, np.full(1, i)) for i in range(5)]  # 5 of [P]
    ink = np.stack([0.05 + 0.6 * sample[0], 0.05 + 0.4 * sample[1], 0.05 + 0.6 * sample[2]], axis=1)  # [P, 3]
    level = (sample[3] - 0.5) * half[:, 2]
    stripe = covered(np.abs(z - level) - (0.08 + 0.25 * sample[4]), points.footprint) * beside
    glyph = hashed(np.floor(x / 0.16).astype(np.int32), np.floor(z / 0.16).astype(np.int32), seed) > 0.45
    letters = glyph & (np.abs(x) < 0.5 * half[:, 0]) & (np.abs(z - level - 0.75) < 0.32)
    opacity = np.maximum(stripe, 0.85 * letters * beside)  # [P]
    return color + (ink - color) * opacity[:, None]


def _cabin(points: Points, noise: Noise) -> Look:
    """Compute the look of a cabin: glass between pillars on four sides, the colour of the body on the roof."""
    shapes, fp = points.shapes, points.footprint
    x, y, z = points.local.T
    hx, hy, hz = shapes["half"].astype(np.float32).T
    front, rear, inset = shapes["form"].astype(np.float32).T
    rise = (z / hz + 1) / 2
    beside, level = points.face // 2 == 1, points.face >= 4
    # Distances to the edge of the side, which is set back with height, and to the nearest pillar, metres.
    edge = np.where(beside, np.where(x > 0, hx - front * rise - x, hx - rear * rise + x), hy - inset * rise - np.abs(y))
    window = 2 * hx / np.maximum(shapes["look"][:, 0], 1)
    place = (x + hx) % window
    pillar = np.where(beside, np.minimum(place, window - place), np.inf)
    sill, head = (rise - 0.06) * 2 * hz, (0.93 - rise) * 2 * hz
    inside = np.minimum(np.minimum(edge - 0.07, pillar - 0.04), np.minimum(sill, head))
    glass = covered(-inside, fp) * ~level
    tint = np.float32(0.03) + 0.02 * noise(x, z, 4.0, fp)
    color = shapes["color"] + (tint[:, None] - shapes["color"]) * glass[:, None]
    return color, 0.07 + 0.03 * glass, 0.0


_PAINTERS = {
    Material.PLAIN: _plain,
    Material.FACADE: lambda points, noise: facade(points.shapes, points.local, points.face, points.footprint, noise),
    Material.ROOF: _roof,
    Material.PAINT: _paint,
    Material.CABIN: _cabin,
    Material.WHEEL: _wheel,
    Material.LEAVES: _leaves,
    Material.BARK: _bark,
    Material.STRIPES: _stripes,
    Material.SIGN: _sign,
    Material.GLOW: _glow,
}
