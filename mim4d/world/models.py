"""Annotated objects made of shapes, in a frame of their own: x forward, origin on the ground under the middle."""

from dataclasses import dataclass

import numpy as np

from .shapes import Kind, Material, Shapes, corners, join, placed, shape

Size = tuple[float, float, float]
"""Length, width and height of the bounding box, metres."""

PAINTS = np.array(
    [
        (0.80, 0.80, 0.80),
        (0.55, 0.56, 0.58),
        (0.22, 0.23, 0.25),
        (0.03, 0.03, 0.035),
        (0.45, 0.03, 0.03),
        (0.04, 0.10, 0.35),
        (0.55, 0.40, 0.08),
        (0.06, 0.20, 0.12),
        (0.35, 0.30, 0.24),
    ]
)
CLOTHES = np.array(
    [
        (0.05, 0.06, 0.12),
        (0.50, 0.05, 0.06),
        (0.60, 0.58, 0.55),
        (0.07, 0.22, 0.45),
        (0.10, 0.30, 0.15),
        (0.70, 0.50, 0.08),
        (0.15, 0.12, 0.10),
        (0.45, 0.20, 0.40),
    ]
)
TYRE, DARK, STEEL, WHITE = (0.02, 0.02, 0.02), (0.05, 0.05, 0.055), (0.35, 0.36, 0.37), (0.75, 0.75, 0.73)
WOOD, CONCRETE = (0.16, 0.10, 0.06), (0.42, 0.41, 0.39)


@dataclass(frozen=True)
class Model:
    """An object of an annotated category."""

    category: str
    """Name of the category in nuScenes."""
    size: Size
    shapes: Shapes


def _model(category: str, parts: list[Shapes]) -> Model:
    """Join parts and measure their bounding box, which is centred above the origin."""
    shapes = join(parts)
    reach = np.abs(corners(shapes)).max((0, 1))  # [3]
    return Model(category, (2 * reach[0], 2 * reach[1], reach[2]), shapes)


def _pick(rng: np.random.Generator, table: np.ndarray) -> tuple[float, ...]:
    """Pick a colour of a table [colours, 3] and vary its brightness."""
    return tuple(np.clip(table[rng.integers(len(table))] * rng.uniform(0.8, 1.2), 0.0, 0.9))


def _wheels(length: float, width: float, radius: float, axles: tuple[float, ...]) -> list[Shapes]:
    """Make two wheels per axle, flush with the sides of the body."""
    return [
        shape(
            Kind.WHEEL, (x, side * (width / 2 - 0.11), radius), (radius, 0.115, radius), TYRE, material=Material.WHEEL
        )
        for x in axles
        for side in (-1, 1)
    ]


def car(rng: np.random.Generator, braking: bool = False) -> Model:
    """Make a saloon, a hatchback or a sport utility vehicle."""
    style = rng.choice(("saloon", "hatch", "suv"), p=(0.45, 0.25, 0.3))
    length = rng.uniform(*{"saloon": (4.4, 4.9), "hatch": (3.8, 4.3), "suv": (4.4, 4.9)}[style])
    width = rng.uniform(1.75, 1.95)
    height = rng.uniform(*{"saloon": (1.42, 1.5), "hatch": (1.45, 1.55), "suv": (1.62, 1.8)}[style])
    radius = 0.36 if style == "suv" else 0.32
    color = _pick(rng, PAINTS)
    floor, waist = radius * 0.75, height * 0.62
    look = (1.0, float(braking), float(rng.integers(1 << 12)))
    body = shape(
        Kind.PRISM,
        (0, 0, (floor + waist) / 2),
        (length / 2, width / 2, (waist - floor) / 2),
        color,
        form=(0.22, 0.12, 0.07),
        material=Material.PAINT,
        look=look,
    )
    front, back = {"saloon": (0.27, 0.20), "hatch": (0.25, 0.02), "suv": (0.24, 0.02)}[style]
    low, high = -length / 2 + back * length, length / 2 - front * length
    cabin = shape(
        Kind.PRISM,
        ((low + high) / 2, 0, (waist + height) / 2),
        ((high - low) / 2, width / 2 - 0.09, (height - waist) / 2),
        color,
        form=(0.62, 0.45 if style == "saloon" else 0.25, 0.16),
        material=Material.CABIN,
        look=(2.0,),
    )
    sill = shape(Kind.BOX, (0, 0, floor), (length / 2 - 0.12, width / 2 - 0.05, 0.09), DARK)
    axles = (length * 0.31, -length * 0.30)
    mirrors = [
        shape(Kind.BOX, (high - 0.55, side * (width / 2 + 0.04), waist + 0.06), (0.06, 0.08, 0.06), color)
        for side in (-1, 1)
    ]
    parts = [body, cabin, sill, *mirrors, *_wheels(length, width, radius, axles)]
    return _model("vehicle.car", parts)


def truck(rng: np.random.Generator, braking: bool = False) -> Model:
    """Make a lorry with a box body behind its cab."""
    length, width, height = rng.uniform(6.2, 9.5), rng.uniform(2.2, 2.5), rng.uniform(2.8, 3.5)
    cab, color = 1.9, _pick(rng, PAINTS)
    cargo = WHITE if rng.random() < 0.5 else _pick(rng, PAINTS)
    look = (1.0, float(braking), float(rng.integers(1 << 12)))
    x = length / 2 - cab / 2
    parts = [
        shape(
            Kind.PRISM,
            (x, 0, 1.0),
            (cab / 2, width / 2 - 0.04, 0.55),
            color,
            form=(0.06, 0, 0.02),
            material=Material.PAINT,
            look=look,
        ),
        shape(
            Kind.PRISM,
            (x, 0, 2.05),
            (cab / 2, width / 2 - 0.06, 0.5),
            color,
            form=(0.35, 0, 0.08),
            material=Material.CABIN,
            look=(1.0,),
        ),
        shape(
            Kind.BOX,
            (-cab / 2 - 0.1, 0, (1.0 + height) / 2),
            ((length - cab - 0.2) / 2, width / 2, (height - 1.0) / 2),
            cargo,
            material=Material.PAINT,
            look=(2.0, float(braking), look[2]),
        ),
        shape(Kind.BOX, (-0.3, 0, 0.8), (length / 2 - 0.4, width / 2 - 0.35, 0.18), DARK),
        *_wheels(length, width, 0.45, (length / 2 - 1.0, -length / 2 + 1.3, -length / 2 + 2.3)),
    ]
    return _model("vehicle.truck", parts)


def bus(rng: np.random.Generator, braking: bool = False) -> Model:
    """Make a city bus: a row of windows above a coloured body."""
    length, width, height = rng.uniform(10.5, 12.2), 2.55, rng.uniform(3.0, 3.3)
    color = _pick(rng, PAINTS)
    look = (1.0, float(braking), float(rng.integers(1 << 12)))
    parts = [
        shape(Kind.BOX, (0, 0, 0.85), (length / 2, width / 2, 0.55), color, material=Material.PAINT, look=look),
        shape(
            Kind.PRISM,
            (0, 0, 1.95),
            (length / 2, width / 2, 0.55),
            color,
            form=(0.1, 0.02, 0.03),
            material=Material.CABIN,
            look=(6.0,),
        ),
        shape(
            Kind.PRISM,
            (0, 0, (2.5 + height) / 2),
            (length / 2 - 0.05, width / 2 - 0.03, (height - 2.5) / 2),
            color,
            form=(0.2, 0.2, 0.2),
        ),
        shape(Kind.BOX, (0, 0, 0.32), (length / 2 - 0.3, width / 2 - 0.06, 0.12), DARK),
        *_wheels(length, width, 0.48, (length / 2 - 2.6, -length / 2 + 3.0)),
    ]
    return _model("vehicle.bus.rigid", parts)


def trailer(rng: np.random.Generator) -> Model:
    """Make a box trailer without a tractor: two axles at the rear, a drawbar and legs in front."""
    length, width, height = rng.uniform(7.5, 11.0), rng.uniform(2.3, 2.5), rng.uniform(3.2, 3.8)
    look = (2.0, 0.0, float(rng.integers(1 << 12)))
    body = ((length - 1.2) / 2, width / 2, (height - 1.1) / 2)
    parts = [
        shape(Kind.BOX, (-0.6, 0, (1.1 + height) / 2), body, _pick(rng, PAINTS), material=Material.PAINT, look=look),
        shape(Kind.BOX, (-0.6, 0, 0.95), (length / 2 - 0.8, width / 2 - 0.3, 0.12), DARK),
        shape(Kind.BOX, (length / 2 - 0.6, 0, 0.85), (0.6, 0.1, 0.08), STEEL),
        *[shape(Kind.BOX, (length / 2 - 1.8, side * 0.7, 0.45), (0.08, 0.08, 0.45), STEEL) for side in (-1, 1)],
        *_wheels(length, width, 0.48, (-length / 2 + 1.5, -length / 2 + 2.7)),
    ]
    return _model("vehicle.trailer", parts)


def excavator(rng: np.random.Generator) -> Model:
    """Make a yellow excavator: tracks, a cab with the engine behind it, and an arm with its bucket on the ground."""
    width, reach = rng.uniform(2.2, 2.5), rng.uniform(2.2, 2.8)
    yellow = tuple(rng.uniform(0.8, 1.1) * np.array((0.62, 0.38, 0.03)))
    parts = [
        *[shape(Kind.BOX, (0, side * (width / 2 - 0.25), 0.4), (1.5, 0.25, 0.4), DARK) for side in (-1, 1)],
        shape(Kind.BOX, (-0.5, 0, 1.35), (1.3, width / 2 - 0.1, 0.45), yellow, material=Material.PAINT),
        shape(
            Kind.PRISM,
            (0.4, 0.45, 2.2),
            (0.7, 0.5, 0.6),
            yellow,
            form=(0.25, 0.05, 0.05),
            material=Material.CABIN,
            look=(1.0,),
        ),
        shape(Kind.BOX, (0.8 + reach / 2, -0.35, 2.7), (reach / 2, 0.16, 0.22), yellow),
        shape(Kind.BOX, (0.8 + reach, -0.35, 1.75), (0.16, 0.14, 1.05), yellow),
        shape(Kind.PRISM, (0.8 + reach, -0.35, 0.4), (0.4, 0.5, 0.4), STEEL, form=(0.15, 0.3, 0.05)),
    ]
    rear, front = 1.8, 0.8 + reach + 0.4
    return _model("vehicle.construction", [placed(join(parts), (rear - front) / 2, 0.0, 0.0)])


def pedestrian(rng: np.random.Generator, walking: bool = True) -> Model:
    """Make an adult, in mid-stride if walking."""
    height = rng.uniform(1.55, 1.88)
    k = height / 1.75
    top, trousers = _pick(rng, CLOTHES), _pick(rng, CLOTHES[[0, 2, 3, 6]])
    skin = tuple(np.array((0.52, 0.33, 0.22)) * rng.uniform(0.45, 1.1))
    stride = rng.uniform(0.10, 0.2) if walking else 0.03
    parts = [
        shape(Kind.ELLIPSOID, (0, 0, 1.62 * k), (0.10 * k, 0.085 * k, 0.13 * k), skin),
        shape(Kind.ELLIPSOID, (-0.015, 0, 1.665 * k), (0.105 * k, 0.09 * k, 0.105 * k), (0.03, 0.02, 0.015)),
        shape(Kind.PRISM, (0, 0, 1.16 * k), (0.13 * k, 0.22 * k, 0.31 * k), top, form=(0.03, 0.03, 0.05)),
    ]
    for side in (-1, 1):
        parts += [
            shape(
                Kind.CONE,
                (side * stride * 0.6, side * 0.09 * k, 0.62 * k),
                (0.10 * k, 0.10 * k, 0.25 * k),
                trousers,
                form=(0.115 * k,),
            ),
            shape(
                Kind.CONE,
                (side * stride, side * 0.09 * k, 0.20 * k),
                (0.075 * k, 0.075 * k, 0.20 * k),
                trousers,
                form=(0.10 * k,),
            ),
            shape(Kind.BOX, (side * stride + 0.06, side * 0.09 * k, 0.04), (0.13, 0.05, 0.04), DARK),
            shape(
                Kind.CONE,
                (-side * stride * 0.7, side * 0.26 * k, 1.15 * k),
                (0.045 * k, 0.045 * k, 0.30 * k),
                top,
                form=(0.06 * k,),
            ),
            shape(
                Kind.ELLIPSOID, (-side * stride * 0.7, side * 0.26 * k, 0.82 * k), (0.05 * k, 0.04 * k, 0.07 * k), skin
            ),
        ]
    return _model("human.pedestrian.adult", parts)


def bicycle(rng: np.random.Generator, rider: bool = True) -> Model:
    """Make a bicycle, with or without a rider."""
    color = _pick(rng, PAINTS)
    parts = [shape(Kind.RING, (x, 0, 0.34), (0.34, 0.02, 0.34), TYRE, form=(0.295,)) for x in (-0.52, 0.52)] + [
        shape(Kind.BOX, (0.05, 0, 0.78), (0.42, 0.025, 0.03), color),
        shape(Kind.BOX, (-0.25, 0, 0.58), (0.03, 0.025, 0.27), color),
        shape(Kind.BOX, (0.45, 0, 0.68), (0.03, 0.025, 0.33), color),
        shape(Kind.BOX, (0.12, 0, 0.45), (0.35, 0.02, 0.025), color),
        shape(Kind.BOX, (0.45, 0, 1.02), (0.03, 0.27, 0.02), DARK),
        shape(Kind.BOX, (-0.27, 0, 0.90), (0.12, 0.07, 0.03), DARK),
    ]
    if rider:
        top, trousers = _pick(rng, CLOTHES), _pick(rng, CLOTHES[[0, 2, 6]])
        skin = tuple(np.array((0.52, 0.33, 0.22)) * rng.uniform(0.45, 1.1))
        parts += [
            shape(Kind.PRISM, (-0.05, 0, 1.22), (0.22, 0.19, 0.30), top, form=(-0.06, 0.28, 0.03)),
            shape(Kind.ELLIPSOID, (0.16, 0, 1.66), (0.11, 0.09, 0.13), skin),
            shape(Kind.ELLIPSOID, (0.14, 0, 1.72), (0.14, 0.11, 0.09), _pick(rng, CLOTHES)),
        ]
        parts += [
            shape(Kind.PRISM, (0.02, side * 0.12, 0.62), (0.09, 0.06, 0.34), trousers, form=(-0.12, 0.12, 0.0))
            for side in (-1, 1)
        ]
    return _model("vehicle.bicycle", parts)


def motorcycle(rng: np.random.Generator, rider: bool = True) -> Model:
    """Make a motorcycle, with or without a rider."""
    color = _pick(rng, PAINTS)
    parts = [
        shape(Kind.WHEEL, (x, 0, 0.31), (0.31, 0.07, 0.31), TYRE, material=Material.WHEEL) for x in (-0.68, 0.7)
    ] + [
        shape(Kind.PRISM, (0.1, 0, 0.72), (0.42, 0.15, 0.16), color, form=(0.15, 0.2, 0.04)),
        shape(Kind.BOX, (0.05, 0, 0.45), (0.32, 0.13, 0.16), DARK),
        shape(Kind.BOX, (-0.5, 0, 0.78), (0.38, 0.13, 0.06), DARK),
        shape(Kind.BOX, (0.62, 0, 0.80), (0.06, 0.08, 0.26), STEEL),
        shape(Kind.BOX, (0.52, 0, 1.08), (0.04, 0.36, 0.03), DARK),
    ]
    if rider:
        top = _pick(rng, CLOTHES)
        parts += [
            shape(Kind.PRISM, (-0.22, 0, 1.12), (0.2, 0.2, 0.32), top, form=(-0.05, 0.2, 0.03)),
            shape(Kind.ELLIPSOID, (0.0, 0, 1.56), (0.15, 0.13, 0.16), _pick(rng, PAINTS)),
            *(shape(Kind.BOX, (0.02, side * 0.2, 0.68), (0.26, 0.07, 0.1), DARK) for side in (-1, 1)),
        ]
    return _model("vehicle.motorcycle", parts)


def traffic_cone(rng: np.random.Generator) -> Model:
    """Make an orange traffic cone with white bands."""
    height = rng.uniform(0.65, 0.8)
    orange = (0.75, 0.13, 0.02)
    parts = [
        shape(Kind.BOX, (0, 0, 0.025), (0.2, 0.2, 0.025), (0.05, 0.05, 0.05)),
        shape(
            Kind.CONE,
            (0, 0, height / 2 + 0.02),
            (0.15, 0.15, height / 2 - 0.02),
            orange,
            form=(0.025,),
            material=Material.STRIPES,
            look=(0.27, 0.4),
        ),
    ]
    return _model("movable_object.trafficcone", parts)


def barrier(rng: np.random.Generator) -> Model:
    """Make a red or white plastic barrier; its long side is across x, as nuScenes annotates barriers."""
    color = (0.60, 0.07, 0.04) if rng.random() < 0.5 else (0.72, 0.71, 0.68)
    parts = [
        shape(Kind.PRISM, (0, 0, 0.48), (0.26, 0.95, 0.48), color, form=(0.16, 0.16, 0.02)),
        shape(Kind.BOX, (0, 0, 0.62), (0.2, 0.55, 0.1), (0.75, 0.75, 0.72)),
    ]
    return _model("movable_object.barrier", parts)
