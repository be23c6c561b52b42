"""Buildings: houses, shops, blocks and towers. Frame: x along the street, y away from it, origin mid-front."""

from dataclasses import dataclass

import numpy as np

from .shapes import Kind, Material, Shapes, join, shape

BRICK, PLASTER, CONCRETE, GLASS = 0, 1, 2, 3
"""Facade styles, see ``Material.FACADE``."""

WALLS = {
    BRICK: np.array([(0.28, 0.10, 0.06), (0.33, 0.16, 0.09), (0.22, 0.12, 0.09), (0.40, 0.27, 0.16)]),
    PLASTER: np.array(
        [
            (0.60, 0.55, 0.43),
            (0.66, 0.63, 0.58),
            (0.50, 0.30, 0.20),
            (0.42, 0.50, 0.50),
            (0.62, 0.48, 0.28),
            (0.48, 0.52, 0.42),
        ]
    ),
    CONCRETE: np.array([(0.38, 0.37, 0.35), (0.48, 0.46, 0.42), (0.28, 0.29, 0.30)]),
    GLASS: np.array([(0.12, 0.17, 0.21), (0.08, 0.13, 0.14), (0.16, 0.17, 0.20)]),
}


@dataclass(frozen=True)
class Zone:
    """The kind of buildings along a stretch of road."""

    width: tuple[float, float]
    depth: tuple[float, float]
    storeys: tuple[int, int]
    setback: tuple[float, float]
    """Range of the distance from the pavement to the front, metres."""
    gap: tuple[float, float]
    """Range of the distance between neighbours, metres."""
    styles: tuple[int, ...]
    gabled: float
    """Fraction of buildings with a pitched roof."""


ZONES = {
    "city": Zone((16, 32), (14, 24), (4, 11), (0.0, 4.0), (0.0, 5.0), (BRICK, PLASTER, CONCRETE, GLASS, GLASS), 0.0),
    "town": Zone((8, 18), (9, 14), (2, 4), (0.0, 2.0), (0.0, 3.0), (BRICK, BRICK, PLASTER, PLASTER), 0.4),
    "suburb": Zone((8, 14), (8, 12), (1, 2), (4.0, 9.0), (4.0, 10.0), (BRICK, PLASTER, PLASTER), 0.9),
    "works": Zone((24, 45), (18, 30), (1, 3), (6.0, 12.0), (6.0, 15.0), (CONCRETE, PLASTER), 0.1),
}


def building(rng: np.random.Generator, zone: Zone, width: float, depth: float) -> Shapes:
    """Make a building of a zone on a plot of ``width`` by ``depth`` metres."""
    style = int(rng.choice(zone.styles))
    table = WALLS[style]
    wall = table[rng.integers(len(table))] * rng.uniform(0.85, 1.15)
    storey, bay = rng.uniform(3.0, 3.8), rng.uniform(2.2, 4.2)
    height = storey * rng.integers(zone.storeys[0], zone.storeys[1] + 1)
    look = (storey, bay, style, float(rng.integers(1 << 12)))
    box = {"center": (0, depth / 2, height / 2), "half": (width / 2, depth / 2, height / 2)}
    parts = [shape(Kind.BOX, box["center"], box["half"], wall, material=Material.FACADE, look=look)]
    trim = wall * 0.6 + 0.2
    if rng.random() < zone.gabled:
        parts.append(_gable(rng, width, depth, height))
    else:
        parts += _flat_roof(rng, width, depth, height, trim)
        if zone.storeys[1] > 6 and rng.random() < 0.4:
            parts += _upper_block(rng, width, depth, height, wall, look)
    if zone.storeys[1] <= 4 and zone.setback[1] < 3 and rng.random() < 0.6:
        awning = np.array([(0.45, 0.05, 0.05), (0.05, 0.22, 0.12), (0.05, 0.10, 0.30), (0.6, 0.5, 0.3)])[
            rng.integers(4)
        ]
        parts.append(shape(Kind.PRISM, (0, -0.55, 2.85), (width * 0.4, 0.55, 0.18), awning, form=(0.0, 0.0, 0.3)))
    elif style != GLASS and rng.random() < 0.5:
        parts += _balconies(rng, width, height, storey, trim)
    return join(parts)


def _gable(rng: np.random.Generator, width: float, depth: float, height: float) -> Shapes:
    """Make a pitched roof with eaves, its ridge along the street."""
    rise = rng.uniform(0.25, 0.42) * depth
    tiles = np.array([(0.30, 0.10, 0.06), (0.12, 0.11, 0.11), (0.22, 0.14, 0.09)])[rng.integers(3)]
    hip = 0.0 if rng.random() < 0.6 else rise
    return shape(
        Kind.PRISM,
        (0, depth / 2, height + rise / 2),
        (width / 2 + 0.4, depth / 2 + 0.5, rise / 2),
        tiles,
        form=(hip, hip, depth / 2 + 0.45),
        material=Material.ROOF,
    )


def _flat_roof(rng: np.random.Generator, width: float, depth: float, height: float, trim: np.ndarray) -> list[Shapes]:
    """Make a flat roof with a cornice and technical boxes."""
    parts = [
        shape(
            Kind.BOX,
            (0, depth / 2, height + 0.2),
            (width / 2 + 0.2, depth / 2 + 0.2, 0.25),
            trim,
            material=Material.ROOF,
        )
    ]
    for _ in range(int(rng.integers(0, 3))):
        size = rng.uniform(0.8, 2.2, 3)
        x = rng.uniform(-0.3, 0.3) * width
        parts.append(
            shape(
                Kind.BOX,
                (x, depth * rng.uniform(0.3, 0.7), height + 0.4 + size[2] / 2),
                size * (1, 1, 0.5),
                (0.4, 0.4, 0.4),
            )
        )
    return parts


def _upper_block(
    rng: np.random.Generator, width: float, depth: float, height: float, wall: np.ndarray, look: tuple[float, ...]
) -> list[Shapes]:
    """Make a narrower tower on top of a building."""
    rise = look[0] * rng.integers(3, 9)
    narrow = rng.uniform(0.5, 0.75)
    return [
        shape(
            Kind.BOX,
            (0, depth / 2, height + rise / 2),
            (width / 2 * narrow, depth / 2 * narrow, rise / 2),
            wall,
            material=Material.FACADE,
            look=look,
        ),
        shape(
            Kind.BOX,
            (0, depth / 2, height + rise + 0.2),
            (width / 2 * narrow + 0.2, depth / 2 * narrow + 0.2, 0.2),
            wall * 0.7,
        ),
    ]


def _balconies(rng: np.random.Generator, width: float, height: float, storey: float, trim: np.ndarray) -> list[Shapes]:
    """Make one column of balconies."""
    x = rng.uniform(-0.3, 0.3) * width
    return [
        shape(Kind.BOX, (x, -0.5, z + 0.45), (1.5, 0.5, 0.5), trim) for z in np.arange(storey, height - 1.0, storey)
    ]
