"""The surfaces of shapes: normals and reflectance at points on them."""

from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .facade import facade
from .raycast import prism_planes
from .shapes import Columns, Kind, Material
from .texture import Noise, band, covered, hashed


@dataclass(frozen=True)
class Points:
    """P points on the surfaces of shapes, each in the frame of its shape."""

    shapes: Columns
    """All shapes."""
    number: Array
    """[P] number of the shape of each point."""
    local: Array
    """[3, P] float32 positions, metres."""
    normal: Array
    """[3, P] float32 unit normals."""
    face: Array
    """[P] sides of the shapes, as the ray caster counts them."""
    footprint: Array
    """[P] width of a pixel at the point, metres."""

    def field(self, name: str) -> Array:
        """Gather a field [P], [3, P] or [4, P] of the shapes of the points."""
        return self.shapes.at(name, self.number)


def local_points(shapes: Columns, number: Array, world: Array, face: Array, footprint: Array) -> Points:
    """Transform points [3, P] in the world on the shapes with ``number`` [P] to their frames, and add their normals."""
    offset: Array = world - shapes.at("center", number)
    local = _turned(offset, shapes.at("cos", number), -shapes.at("sin", number))
    return Points(shapes, number, local, _normals(shapes, number, local, face), face, footprint)


def world_normals(points: Points) -> Array:
    """Compute the unit normals [3, P] in the world."""
    return _turned(points.normal, points.field("cos"), points.field("sin"))


def _turned(vectors: Array, cos: Array, sin: Array) -> Array:
    """Rotate vectors [3, P] about z by angles of which ``cos`` and ``sin`` [P] are given."""
    x, y, z = vectors
    return np.stack([cos * x - sin * y, sin * x + cos * y, z])


def _normals(shapes: Columns, number: Array, local: Array, face: Array) -> Array:
    """Compute the unit normals [3, P] at points ``local`` [3, P]."""
    normal = np.zeros_like(local)  # [3, P]
    kind = shapes.at("kind", number)
    box = np.flatnonzero(kind == int(Kind.BOX))
    side = face[box]
    normal[side, box] = np.where(local[side, box] < 0, np.float32(-1), np.float32(1))
    if box.size == len(number):
        return normal
    prism = np.flatnonzero(kind == int(Kind.PRISM))
    if prism.size:
        different, which = np.unique(number[prism], return_inverse=True)
        planes = prism_planes(shapes.at("half", different).T, shapes.at("form", different).T)  # [different, 6, 4]
        normal[:, prism] = planes[which, face[prism], :3].T
    ball = np.flatnonzero(kind == int(Kind.ELLIPSOID))
    normal[:, ball] = local[:, ball] / shapes.at("half", number[ball]) ** 2
    cone = np.flatnonzero(kind == int(Kind.CONE))
    if cone.size:
        half, form = shapes.at("half", number[cone]), shapes.at("form", number[cone])
        x, y, _ = local[:, cone]
        normal[:, cone] = x, y, (half[0] - form[0]) / (2 * half[2]) * np.hypot(x, y)
        normal[:, cone[face[cone] == 1]] = np.array([[0], [0], [1]])
    wheel = np.flatnonzero((kind == int(Kind.WHEEL)) | (kind == int(Kind.RING)))
    if wheel.size:
        flat = face[wheel] == 1
        x, y, z = local[:, wheel]
        normal[:, wheel] = np.where(flat, 0, x), np.where(flat, np.where(y < 0, -1, 1), 0), np.where(flat, 0, z)
    x, y, z = normal
    return normal / np.maximum(np.sqrt(x * x + y * y + z * z), np.float32(1e-6))


def reflectance(points: Points, material: int, noise: Noise) -> "Look":
    """Compute the reflectance of surfaces of one material.

    Args:
        points: The P points.
        material: Their :class:`Material`.
        noise: Texture of the scene.

    Returns:
        Albedo [3, P], gloss [P] (fraction of the light that is mirrored) and glow [3, P] (emitted light); the last two
        may be 0.
    """
    return _PAINTERS[Material(material)](points, noise)


Look = tuple[Array, Array | float, Array | float]
"""Albedo [3, P], gloss [P] and glow [3, P]; the last two may be 0."""


def _plain(points: Points, noise: Noise) -> Look:
    u, v, w = points.local
    stain = noise(u + w, v + 0.7 * w, 3.0, points.footprint)
    return points.field("color") * (1 + 0.10 * stain), 0.0, 0.0


def _roof(points: Points, noise: Noise) -> Look:
    x, y, z = points.local
    rows = hashed(np.floor(z / 0.22).astype(np.int32), np.floor(x / 0.3).astype(np.int32)) - 0.5
    fade = np.clip(0.25 / points.footprint - 0.6, 0, 1)
    tone = 1 + 0.35 * rows * fade + 0.16 * noise(x, y + z, 7.0, points.footprint)
    return points.field("color") * tone, 0.0, 0.0


def _leaves(points: Points, noise: Noise) -> Look:
    x, y, z = points.local
    around = np.arctan2(y, x) * np.float32(1.5)
    clumps = noise(x + 0.6 * z, y + 0.8 * z, 5.0, points.footprint)
    leaves = noise(around + 0.3 * x, z + 0.4 * y, 3.1, points.footprint)
    height = z / points.field("half")[2]
    tone = np.clip(0.85 + 0.30 * height + 0.35 * clumps + 0.40 * leaves, 0.15, 2.2)
    within = (points.field("kind") == int(Kind.ELLIPSOID)) & (points.face == 1)
    warm = np.stack([1 + 0.12 * leaves, np.ones_like(x), 1 - 0.1 * leaves])
    return points.field("color") * (tone * np.where(within, 0.45, 1)) * warm, 0.0, 0.0


def _bark(points: Points, noise: Noise) -> Look:
    x, y, z = points.local
    ridges = noise(np.arctan2(y, x) * 0.4, z * 0.25, 1.2, points.footprint)
    return points.field("color") * (1 + 0.25 * ridges), 0.0, 0.0


def _stripes(points: Points, noise: Noise) -> Look:
    period, fraction = points.field("look")[0], points.field("look")[1]
    white = band((points.local[2] + 0.6 * period) % period, 0.0, fraction * period, points.footprint)
    color = points.field("color")
    return color + (np.float32(0.75) - color) * white, 0.03, 0.0


def _sign(points: Points, noise: Noise) -> Look:
    _, y, z = points.local
    half_y, half_z = points.field("half")[1], points.field("half")[2]
    inside = np.minimum(half_y - np.abs(y), half_z - np.abs(z))
    rim = covered(0.05 - inside, points.footprint) * (points.face == 0) * (points.normal[0] > 0)
    seed = points.field("look")[0].astype(np.int32)
    glyph = hashed(np.floor(y / 0.12).astype(np.int32), np.floor(z / 0.12).astype(np.int32), seed) > 0.62
    white = np.float32(0.75) * (1 - 0.85 * glyph)
    color = points.field("color")
    gray = np.where(points.normal[0] < 0, np.float32(0.3), color)
    return gray + (white - gray) * rim, 0.03, 0.0


def _glow(points: Points, noise: Noise) -> Look:
    return points.field("color") * 0.3, 0.0, points.field("color") * points.field("look")[0]


def _wheel(points: Points, noise: Noise) -> Look:
    x, _, z = points.local
    radius = np.hypot(x, z) / points.field("half")[0]
    spokes = 0.5 + 0.5 * np.cos(5 * np.arctan2(z, x))
    rim = covered((radius - 0.66) * 0.33, points.footprint) * (points.face == 1)
    tone = (0.10 + 0.35 * spokes * (radius > 0.2)) * rim
    return points.field("color") + tone, 0.06 * rim, 0.0


def _paint(points: Points, noise: Noise) -> Look:
    """Compute the look of a body: door seams, lights, plates and grille."""
    fp = points.footprint
    x, y, z = points.local
    hx, hy, hz = points.field("half")
    up = z / hz
    look = points.field("look")
    facing = points.normal[0]
    ahead, behind = facing > 0.5, facing < -0.5
    beside = np.abs(points.normal[1]) > 0.5
    color = points.field("color") * (1 + 0.02 * noise(x + y, z, 3.0, fp) - 0.12 * np.clip(-up, 0, 1))
    passenger = look[0] == 1
    # Doors: seams on both sides.
    seam = np.minimum(np.abs(x - 0.12 * hx), np.abs(x + 0.42 * hx))
    seam = np.minimum(seam, np.abs(x - 0.5 * hx))
    dark = covered(seam - 0.012, np.maximum(fp, 0.01)) * np.clip(0.03 / fp, 0, 1) * (beside & passenger)
    color *= 1 - 0.7 * dark
    # Front: a grille between headlights. Rear: lights and a plate.
    corner = hy - np.abs(y)
    lamps = band(corner, 0.06, 0.42, fp) * band(up, 0.15, 0.62, fp / hz)
    grille = covered(np.abs(y) - hy * 0.48, fp) * band(up, -0.45, 0.35, fp / hz)
    plate = covered(np.abs(y) - 0.26, fp) * band(up, -0.35, 0.0, fp / hz)
    head, tail = lamps * ahead * passenger, lamps * behind
    color = color + (np.float32(0.02) - color) * (grille * ahead * passenger)
    color = color + (np.float32(0.85) - color) * head
    color = color + (np.array([[0.45], [0.01], [0.01]], np.float32) - color) * tail
    color = color + (np.float32(0.7) - color) * (plate * behind)
    if (look[0] == 2).any():
        color = np.where(look[0] == 2, _cargo(points, color), color)
    glow = tail * (0.15 + 1.3 * look[1]) * np.array([[1.0], [0.06], [0.04]], np.float32)
    return color, 0.10 * (look[0] > 0), glow


def _cargo(points: Points, color: Array) -> Array:
    """Compute the albedo [3, P] of a cargo box: ribs, a stripe and lettering on its sides."""
    x, _, z = points.local
    look, half = points.field("look"), points.field("half")
    seed = look[2].astype(np.int32)
    beside = np.abs(points.normal[1]) > 0.5
    rib = band(x % 0.6, 0.0, 0.04, np.maximum(points.footprint, 0.02)) * beside
    color = color * (1 - 0.25 * rib)
    sample = [hashed(seed, np.full(1, i)) for i in range(5)]  # 5 of [P]
    ink = np.stack([0.05 + 0.6 * sample[0], 0.05 + 0.4 * sample[1], 0.05 + 0.6 * sample[2]])  # [3, P]
    level = (sample[3] - 0.5) * half[2]
    stripe = covered(np.abs(z - level) - (0.08 + 0.25 * sample[4]), points.footprint) * beside
    glyph = hashed(np.floor(x / 0.16).astype(np.int32), np.floor(z / 0.16).astype(np.int32), seed) > 0.45
    letters = glyph & (np.abs(x) < 0.5 * half[0]) & (np.abs(z - level - 0.75) < 0.32)
    opacity = np.maximum(stripe, 0.85 * letters * beside)  # [P]
    return color + (ink - color) * opacity


def _cabin(points: Points, noise: Noise) -> Look:
    """Compute the look of a cabin: glass between pillars on four sides, the colour of the body on the roof."""
    fp = points.footprint
    x, y, z = points.local
    hx, hy, hz = points.field("half")
    front, rear, inset = points.field("form")
    rise = (z / hz + 1) / 2
    beside, level = points.face // 2 == 1, points.face >= 4
    # Distances to the edge of the side, which is set back with height, and to the nearest pillar, metres.
    edge = np.where(beside, np.where(x > 0, hx - front * rise - x, hx - rear * rise + x), hy - inset * rise - np.abs(y))
    window = 2 * hx / np.maximum(points.field("look")[0], 1)
    place = (x + hx) % window
    pillar = np.where(beside, np.minimum(place, window - place), np.inf)
    sill, head = (rise - 0.06) * 2 * hz, (0.93 - rise) * 2 * hz
    inside = np.minimum(np.minimum(edge - 0.07, pillar - 0.04), np.minimum(sill, head))
    glass = covered(-inside, fp) * ~level
    tint = np.float32(0.03) + 0.02 * noise(x, z, 4.0, fp)
    color = points.field("color") + (tint - points.field("color")) * glass
    return color, 0.07 + 0.03 * glass, 0.0


_PAINTERS = {
    Material.PLAIN: _plain,
    Material.FACADE: lambda points, noise: facade(points.field, points.local, points.face, points.footprint, noise),
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
