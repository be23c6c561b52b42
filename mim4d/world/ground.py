"""Texture of the ground: asphalt with markings, kerbs, pavements, grass and paving, each with wear."""

import numpy as np

from .arrays import Array
from .place import Place
from .street import Road
from .texture import Noise, band, covered, hashed

ASPHALT, KERB, SLABS = (0.115, 0.115, 0.118), (0.40, 0.39, 0.37), (0.33, 0.31, 0.285)
GRASS, DRY, PAVING = (0.085, 0.13, 0.035), (0.20, 0.17, 0.09), (0.26, 0.245, 0.225)
PAINT_WHITE, PAINT_YELLOW = (0.70, 0.70, 0.68), (0.62, 0.42, 0.06)


def _tone(color: tuple[float, ...], factor: Array) -> Array:
    """Scale a colour by factors [P] to [P, 3]."""
    return np.asarray(color, np.float32) * factor[:, None]


def _blend(below: Array, color: Array | tuple[float, ...], opacity: Array) -> Array:
    """Blend ``color`` over ``below`` [P, 3] with ``opacity`` [P]."""
    return below + (np.asarray(color, np.float32) - below) * opacity[:, None]


def ground_albedo(place: Place, noise: Noise, x: Array, y: Array, footprint: Array) -> Array:
    """Compute the linear reflectance [P, 3] of the ground.

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
    color = _open_ground(place, noise, x, y, footprint, fine, broad)
    color = _blend(color, _pavement(places, x, y, footprint, fine, broad), covered(edge - street.frontage, footprint))
    if street.verge:
        grass = _tone(GRASS, 1 + 0.22 * fine + 0.15 * broad)
        color = _blend(color, grass, covered(edge - street.verge, footprint))
    stones = 0.85 + 0.08 * fine + 0.25 * hashed(np.floor(x + y).astype(np.int32), np.int32(0))
    color = _blend(color, _tone(KERB, stones), covered(edge - 0.18, footprint))
    color = _blend(color, _asphalt(places, noise, x, y, footprint, fine, broad, edge), covered(edge, footprint))
    wear = np.clip(0.86 + 0.10 * fine + 0.08 * broad, 0.25, 0.95)
    for i, road in enumerate(street.roads):
        s, d = places[i]
        near = np.flatnonzero((np.abs(d) < road.half_width) & (s > 0) & (s < road.curve.length))
        if near.size:
            color[near] = _markings(road, color[near], s[near], d[near], footprint[near], wear[near])
    return color


def _open_ground(place: Place, noise: Noise, x: Array, y: Array, footprint: Array, fine: Array, broad: Array) -> Array:
    """Compute the albedo [P, 3] of grass with dry patches and of paved yards."""
    patches = noise(x + 31.0, y - 17.0, 330.0, footprint)
    dry = np.clip(0.35 + 0.35 * broad + 0.15 * fine, 0, 1)
    grass = _blend(_tone(GRASS, 1 + 0.25 * fine + 0.12 * broad), DRY, dry * 0.7)
    paved = _tone(PAVING, 1 + 0.07 * fine + 0.08 * broad)
    joints = np.minimum(np.abs(x % 2.4 - 1.2), np.abs(y % 2.4 - 1.2))
    paved *= (1 - 0.25 * covered(joints - 0.02, footprint) * np.clip(0.06 / footprint, 0, 1))[:, None]
    threshold = 2.4 * (place.grass - 0.5)
    return _blend(paved, grass, np.clip((threshold - patches) * 4 + 0.5, 0, 1))


def _pavement(
    places: list[tuple[Array, Array]], x: Array, y: Array, footprint: Array, fine: Array, broad: Array
) -> Array:
    """Compute the albedo [P, 3] of slabs in rows along the main road, each with its own tint."""
    s, d = places[0]
    size = np.float32(0.6)
    across, along = d / size, s / size
    tint = hashed(np.floor(along).astype(np.int32), np.floor(across).astype(np.int32)) - np.float32(0.5)
    fade = np.clip(0.3 / footprint - 0.5, 0, 1)
    joint = size * np.minimum(np.minimum(along % 1, 1 - along % 1), np.minimum(across % 1, 1 - across % 1))
    tone = 1 + 0.05 * fine + 0.07 * broad + 0.22 * tint * fade
    return _tone(SLABS, tone * (1 - 0.35 * covered(joint - 0.012, footprint) * np.clip(0.05 / footprint, 0, 1)))


def _asphalt(
    places: list[tuple[Array, Array]],
    noise: Noise,
    x: Array,
    y: Array,
    footprint: Array,
    fine: Array,
    broad: Array,
    edge: Array,
) -> Array:
    """Compute the albedo [P, 3] of asphalt with patches, cracks and dust near the kerb."""
    tone = 1 + 0.10 * fine + 0.13 * broad
    s, d = places[0]
    patch = hashed(np.floor(s / 11).astype(np.int32), np.floor(d / 2.6).astype(np.int32), 5)
    tone *= np.where(patch > 0.9, np.float32(0.72), np.where(patch < 0.06, np.float32(1.22), np.float32(1.0)))
    crack = np.abs(noise(x * 1.3, y, 27.0, footprint)) + 40 * np.maximum(footprint - 0.03, 0)
    tone *= 1 - 0.45 * np.clip(1 - crack * 22, 0, 1)
    tone *= 1 + 0.28 * np.clip(1 + edge / 0.7, 0, 1)
    return _tone(ASPHALT, np.clip(tone, 0.3, 2.0))


def _markings(road: Road, color: Array, s: Array, d: Array, footprint: Array, wear: Array) -> Array:
    """Paint the markings of one road over ``color`` [P, 3] at ``s``, ``d`` [P]."""
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
