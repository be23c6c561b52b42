"""Trees, bushes and street furniture, which are not annotated. Frames as in ``models.py``."""

import numpy as np

from .models import CONCRETE, DARK, STEEL, WHITE, WOOD
from .shapes import Kind, Material, Shapes, join, shape

GAPS = (0.0, 0.9)
"""``form`` of foliage: its second value is the density, see ``Kind.ELLIPSOID``."""


def _green(rng: np.random.Generator) -> np.ndarray:
    base = np.array([(0.055, 0.12, 0.025), (0.09, 0.14, 0.03), (0.04, 0.09, 0.035), (0.13, 0.13, 0.03)])
    return base[rng.integers(4)] * rng.uniform(0.8, 1.25)


def tree(rng: np.random.Generator, height: float) -> Shapes:
    """Make a broad-leaved tree: a trunk and a crown of overlapping ellipsoids."""
    trunk = 0.35 * height
    radius = 0.02 * height + 0.05
    green = _green(rng)
    crown = 0.27 * height
    parts = [
        shape(
            Kind.CONE,
            (0, 0, 0.3 * height),
            (radius, radius, 0.3 * height),
            WOOD,
            form=(radius * 0.6,),
            material=Material.BARK,
        )
    ]
    for _ in range(7):
        angle, away = rng.uniform(0, 2 * np.pi), crown * rng.uniform(0.25, 0.75)
        size = crown * rng.uniform(0.5, 0.8)
        z = trunk + 0.65 * size + (height - trunk - 1.5 * size) * rng.random()
        center = (away * np.cos(angle), away * np.sin(angle), z)
        parts.append(
            shape(
                Kind.ELLIPSOID,
                center,
                (size, size, size * rng.uniform(0.7, 0.95)),
                green * rng.uniform(0.75, 1.2),
                form=GAPS,
                material=Material.LEAVES,
            )
        )
    return join(parts)


def conifer(rng: np.random.Generator, height: float) -> Shapes:
    """Make a fir of stacked cones."""
    green = _green(rng) * 0.75
    parts = [
        shape(Kind.CONE, (0, 0, 0.1 * height), (0.16, 0.16, 0.1 * height), WOOD, material=Material.BARK, form=(0.14,))
    ]
    for i, (low, high) in enumerate(((0.12, 0.5), (0.32, 0.75), (0.58, 1.0))):
        radius = height * (0.2 - 0.05 * i)
        parts.append(
            shape(
                Kind.CONE,
                (0, 0, (low + high) / 2 * height),
                (radius, radius, (high - low) / 2 * height),
                green,
                form=(0.03, 1.2),
                material=Material.LEAVES,
            )
        )
    return join(parts)


def palm(rng: np.random.Generator, height: float) -> Shapes:
    """Make a palm: a tall bare trunk and a flat crown."""
    green = _green(rng)
    parts = [
        shape(
            Kind.CONE,
            (0, 0, height / 2),
            (0.2, 0.2, height / 2),
            (0.22, 0.18, 0.13),
            form=(0.13,),
            material=Material.BARK,
        )
    ]
    for angle in np.arange(6) * np.pi / 3 + rng.uniform(0, 1):
        center = (1.1 * np.cos(angle), 1.1 * np.sin(angle), height - 0.15)
        parts.append(
            shape(
                Kind.ELLIPSOID,
                center,
                (1.3, 0.4, 0.35),
                green,
                yaw=float(angle),
                form=GAPS,
                material=Material.LEAVES,
            )
        )
    return join(parts)


def hedge(rng: np.random.Generator, length: float) -> Shapes:
    """Make a clipped hedge along x."""
    height = rng.uniform(0.7, 1.4)
    return shape(
        Kind.PRISM,
        (0, 0, height / 2),
        (length / 2, 0.45, height / 2),
        _green(rng),
        form=(0.08, 0.08, 0.1),
        material=Material.LEAVES,
    )


def bush(rng: np.random.Generator) -> Shapes:
    """Make a round bush."""
    size = rng.uniform(0.5, 1.0)
    return shape(
        Kind.ELLIPSOID,
        (0, 0, size * 0.7),
        (size, size, size * 0.9),
        _green(rng),
        form=GAPS,
        material=Material.LEAVES,
    )


def lamp(rng: np.random.Generator, height: float = 8.0) -> Shapes:
    """Make a street lamp with its arm along +x."""
    arm = rng.uniform(1.4, 2.2)
    return join(
        [
            shape(Kind.CONE, (0, 0, height / 2), (0.10, 0.10, height / 2), STEEL, form=(0.055,)),
            shape(Kind.CONE, (0, 0, 0.4), (0.16, 0.16, 0.4), STEEL, form=(0.15,)),
            shape(Kind.BOX, (arm / 2, 0, height), (arm / 2, 0.04, 0.04), STEEL),
            shape(Kind.BOX, (arm, 0, height - 0.03), (0.35, 0.13, 0.06), (0.5, 0.5, 0.5)),
        ]
    )


def traffic_light(color: str) -> Shapes:
    """Make a traffic light on a pole that faces +x and is "red" or "green"."""
    glow = {"red": ((0.9, 0.05, 0.03), 0.22), "green": ((0.05, 0.8, 0.4), -0.22)}[color]
    parts = [
        shape(Kind.CONE, (0, 0, 1.75), (0.07, 0.07, 1.75), DARK, form=(0.06,)),
        shape(Kind.BOX, (0.08, 0, 3.1), (0.12, 0.17, 0.42), DARK),
    ]
    for z in (0.25, 0.0, -0.25):
        shines = abs(z - glow[1]) < 0.1
        parts.append(
            shape(
                Kind.ELLIPSOID,
                (0.2, 0, 3.1 + z),
                (0.05, 0.1, 0.1),
                glow[0] if shines else (0.02, 0.02, 0.02),
                material=Material.GLOW if shines else Material.PLAIN,
                look=(1.6,),
            )
        )
    return join(parts)


def sign(rng: np.random.Generator) -> Shapes:
    """Make a road sign that faces +x."""
    colors = np.array([(0.55, 0.03, 0.03), (0.03, 0.10, 0.45), (0.70, 0.50, 0.03), (0.03, 0.30, 0.12)])
    color = colors[rng.integers(4)]
    board = shape(
        Kind.BOX,
        (0.06, 0, 2.4),
        (0.02, rng.uniform(0.28, 0.45), rng.uniform(0.28, 0.5)),
        color,
        material=Material.SIGN,
        look=(float(rng.integers(1 << 12)),),
    )
    return join([shape(Kind.CONE, (0, 0, 1.4), (0.035, 0.035, 1.4), STEEL, form=(0.035,)), board])


def bench() -> Shapes:
    """Make a bench that faces +x."""
    return join(
        [
            shape(Kind.BOX, (0, 0, 0.44), (0.25, 0.8, 0.03), (0.25, 0.15, 0.08)),
            shape(Kind.BOX, (-0.25, 0, 0.68), (0.03, 0.8, 0.16), (0.25, 0.15, 0.08)),
            *(shape(Kind.BOX, (0, y, 0.21), (0.22, 0.04, 0.21), DARK) for y in (-0.65, 0.65)),
        ]
    )


def bollard() -> Shapes:
    """Make a short post."""
    return shape(
        Kind.CONE, (0, 0, 0.45), (0.08, 0.08, 0.45), CONCRETE, form=(0.08,), material=Material.STRIPES, look=(0.9, 0.2)
    )


def bus_shelter() -> Shapes:
    """Make a bus shelter that is open towards +x."""
    return join(
        [
            shape(Kind.BOX, (0, 0, 2.5), (0.75, 2.0, 0.06), (0.3, 0.32, 0.34)),
            shape(Kind.BOX, (-0.65, 0, 1.3), (0.03, 1.9, 1.0), (0.10, 0.13, 0.15)),
            shape(Kind.BOX, (-0.35, 0, 0.45), (0.2, 1.4, 0.04), WHITE),
            *(shape(Kind.CONE, (-0.6, y, 1.25), (0.05, 0.05, 1.25), STEEL, form=(0.05,)) for y in (-1.9, 1.9)),
        ]
    )
