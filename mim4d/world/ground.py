"""Texture of the ground: asphalt with markings, kerbs, pavements, grass and paving, each with wear."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .place import Place
from .street import Road
from .texture import Noise, band, covered, hashed

ASPHALT, KERB, SLABS = (0.115, 0.115, 0.118), (0.40, 0.39, 0.37), (0.33, 0.31, 0.285)
GRASS, DRY, PAVING = (0.085, 0.13, 0.035), (0.20, 0.17, 0.09), (0.26, 0.245, 0.225)
PAINT_WHITE, PAINT_YELLOW = (0.70, 0.70, 0.68), (0.62, 0.42, 0.06)


def _tone(color: tuple[float, ...], factor: Array) -> Array:
    """Scale a colour by factors [P] to [3, P]."""
    return np.asarray(color, np.float32)[:, None] * factor


def _blend(below: Array, color: Array | tuple[float, ...], opacity: Array) -> Array:
    """Blend ``color`` over ``below`` [3, P] with ``opacity`` [P]."""
    above = color if isinstance(color, np.ndarray) else np.asarray(color, np.float32)[:, None]
    return below + (above - below) * opacity


@dataclass(frozen=True)
class Spots:
    """P points on the ground; all arrays are [P], in metres, but for the noise."""

    x: Array
    y: Array
    footprint: Array
    """Width of a pixel on the ground."""
    edge: Array
    """Distance to the carriageway, negative on it."""
    s: Array
    """Arc length on the main road."""
    d: Array
    """Offset to its left."""
    fine: Array
    """Noise with grains of a few centimetres."""
    broad: Array
    """Noise with patches of a few metres."""

    def subset(self, rows: Array) -> "Spots":
        """Select points."""
        return Spots(**{name: value[rows] for name, value in vars(self).items()})


def ground_albedo(place: Place, noise: Noise, x: Array, y: Array, footprint: Array) -> Array:
    """Compute the linear reflectance [3, P] of the ground.

    Args:
        place: The place.
        noise: Texture of the scene.
        x: [P] in the world, metres.
        y: [P] in the world, metres.
        footprint: [P] width of a pixel on the ground, metres.
    """
    street = place.street
    edge, places = street.kerb_distance(x, y)  # [P], and (s, d) [P] per road
    fine = noise(x, y, 9.0, footprint)
    broad = noise(y, x, 61.0, footprint)
    spots = Spots(x, y, footprint, edge, *places[0], fine, broad)
    color = np.zeros((3, len(x)), np.float32)

    def lay(opacity: Array, paint: Callable[[Spots], Array]) -> None:
        rows = np.flatnonzero(opacity > 0)
        if rows.size:
            color[:, rows] = _blend(color[:, rows], paint(spots.subset(rows)), opacity[rows])

    asphalt = covered(edge, footprint)
    pavement = covered(edge - street.frontage, footprint)
    # Each layer is computed only where it shows.
    lay(np.where(pavement < 1, np.float32(1), np.float32(0)), lambda there: _open_ground(place, noise, there))
    lay(np.where(asphalt < 1, pavement, 0), _pavement)
    if street.verge:
        verge = np.where(asphalt < 1, covered(edge - street.verge, footprint), 0)
        lay(verge, lambda there: _tone(GRASS, 1 + 0.32 * there.fine + 0.18 * there.broad))
    lay(np.where(asphalt < 1, covered(edge - 0.18, footprint), 0), _kerb)
    lay(asphalt, lambda there: _asphalt(noise, there))
    wear = np.clip(0.86 + 0.10 * fine + 0.08 * broad, 0.25, 0.95)
    for i, road in enumerate(street.roads):
        s, d = places[i]
        near = np.flatnonzero((np.abs(d) < road.half_width) & (s > 0) & (s < road.curve.length))
        if near.size:
            color[:, near] = _markings(road, color[:, near], s[near], d[near], footprint[near], wear[near])
    return color


def _open_ground(place: Place, noise: Noise, spots: Spots) -> Array:
    """Compute the albedo [3, P] of grass with dry patches and of paved yards."""
    x, y, footprint, fine, broad = spots.x, spots.y, spots.footprint, spots.fine, spots.broad
    patches = noise(x + 31.0, y - 17.0, 330.0, footprint)
    dry = np.clip(0.35 + 0.35 * broad + 0.15 * fine, 0, 1)
    grass = _blend(_tone(GRASS, 1 + 0.32 * fine + 0.18 * broad), DRY, dry * 0.7)
    paved = _tone(PAVING, 1 + 0.13 * fine + 0.10 * broad)
    joints = np.minimum(np.abs(x % 2.4 - 1.2), np.abs(y % 2.4 - 1.2))
    paved *= 1 - 0.25 * covered(joints - 0.02, footprint) * np.clip(0.06 / footprint, 0, 1)
    threshold = 2.4 * (place.grass - 0.5)
    return _blend(paved, grass, np.clip((threshold - patches) * 4 + 0.5, 0, 1))


def _pavement(spots: Spots) -> Array:
    """Compute the albedo [3, P] of slabs in rows along the main road, each with its own tint."""
    size = np.float32(0.6)
    across, along = spots.d / size, spots.s / size
    tint = hashed(np.floor(along).astype(np.int32), np.floor(across).astype(np.int32)) - np.float32(0.5)
    fade = np.clip(0.3 / spots.footprint - 0.5, 0, 1)
    joint = size * np.minimum(np.minimum(along % 1, 1 - along % 1), np.minimum(across % 1, 1 - across % 1))
    tone = 1 + 0.10 * spots.fine + 0.10 * spots.broad + 0.22 * tint * fade
    dark = covered(joint - 0.012, spots.footprint) * np.clip(0.05 / spots.footprint, 0, 1)
    return _tone(SLABS, tone * (1 - 0.35 * dark))


def _kerb(spots: Spots) -> Array:
    """Compute the albedo [3, P] of kerb stones."""
    stones = hashed(np.floor(spots.x + spots.y).astype(np.int32), np.int32(0))
    return _tone(KERB, 0.85 + 0.08 * spots.fine + 0.25 * stones)


def _asphalt(noise: Noise, spots: Spots) -> Array:
    """Compute the albedo [3, P] of asphalt with patches, cracks and dust near the kerb."""
    footprint = spots.footprint
    rough = noise(spots.x * 1.3, spots.y, 27.0, footprint)
    tone = 1 + 0.16 * spots.fine + 0.15 * spots.broad + 0.10 * rough
    patch = hashed(np.floor(spots.s / 11).astype(np.int32), np.floor(spots.d / 2.6).astype(np.int32), 5)
    tone *= np.where(patch > 0.9, np.float32(0.72), np.where(patch < 0.06, np.float32(1.22), np.float32(1.0)))
    crack = np.abs(rough) + 40 * np.maximum(footprint - 0.03, 0)
    tone *= 1 - 0.45 * np.clip(1 - crack * 22, 0, 1)
    tone *= 1 + 0.28 * np.clip(1 + spots.edge / 0.7, 0, 1)
    return _tone(ASPHALT, np.clip(tone, 0.3, 2.0))


def _markings(road: Road, color: Array, s: Array, d: Array, footprint: Array, wear: Array) -> Array:
    """Paint the markings of one road over ``color`` [3, P] at ``s``, ``d`` [P]."""
    clear = road.clear_of_junctions(s)
    between = covered(-clear, footprint) * wear
    dashes = band(s % 9.0, 3.0, 6.0, footprint)
    if road.divider == "double":
        for offset in (-0.16, 0.16):
            color = _blend(color, PAINT_YELLOW, band(d, offset - 0.06, offset + 0.06, footprint) * between)
    else:
        color = _blend(color, PAINT_WHITE, band(d, -0.07, 0.07, footprint) * dashes * between)
    carriageway = road.lanes * road.lane_width
    away = np.abs(d)
    for lane in range(1, road.lanes):
        line = lane * road.lane_width
        color = _blend(color, PAINT_WHITE, band(away, line - 0.07, line + 0.07, footprint) * dashes * between)
    if road.parking:
        color = _blend(color, PAINT_WHITE, band(away, carriageway - 0.06, carriageway + 0.06, footprint) * between)
        bays = band(s % 6.2, 0.0, 0.1, footprint) * covered(carriageway - away, footprint)
        color = _blend(color, PAINT_WHITE, bays * between)
    elif road.divider == "double":
        for inset in (0.30, 0.55):
            line = road.half_width - inset
            color = _blend(color, PAINT_YELLOW, band(away, line - 0.05, line + 0.05, footprint) * between)
    for low, high in road.crossings:
        stripes = band(s, low, high, footprint) * band(d % 1.1, 0.0, 0.55, footprint)
        color = _blend(color, PAINT_WHITE, stripes * covered(away - road.half_width + 0.3, footprint) * wear)
    for line, direction in road.stops:
        incoming = covered(road.hand * direction * d, footprint) * covered(away - carriageway, footprint)
        color = _blend(color, PAINT_WHITE, band(s, line - 0.2, line + 0.2, footprint) * incoming * wear)
    return color
