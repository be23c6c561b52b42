"""The solids the world is made of, kept as rows of one record array so that rays meet thousands of them cheaply.

A shape stands upright: it has a centre, half sizes and one yaw. Bigger things (a car, a tree) are several shapes.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array


class Kind(IntEnum):
    """What a shape's numbers mean; x is forward and z up in its own frame."""

    BOX = 0
    """Half sizes along x, y, z."""
    PRISM = 1
    """A box whose top is drawn in by ``form`` = (front, rear, sides) metres: cabins, bonnets, gabled roofs."""
    ELLIPSOID = 2
    """Half axes along x, y, z; ``form`` = (0, density): above 0 it has gaps as foliage has, the smaller the more."""
    CONE = 3
    """An upright cylinder of radius ``half[0]`` below and ``form`` = (radius above, density of foliage)."""
    WHEEL = 4
    """A cylinder about the y axis: radius ``half[0]``, half width ``half[1]``."""
    RING = 5
    """A flat ring in the x-z plane: radius ``half[0]``, ``form`` = (inner radius,)."""


class Material(IntEnum):
    """What a shape's surface looks like; ``look`` holds the material's own parameters."""

    PLAIN = 0
    """One colour with faint stains."""
    FACADE = 1
    """Rows of windows. ``look`` = (storey height, bay width, style, seed); metres, style as in ``facade.py``."""
    ROOF = 2
    """Tiles or gravel."""
    PAINT = 3
    """A vehicle's body. ``look`` = (lights: 1 has them, 0 not; 1 if it is braking; seed)."""
    CABIN = 4
    """Windows all round between pillars. ``look`` = (number of windows a side,)."""
    WHEEL = 5
    """Tyre and hub."""
    LEAVES = 6
    """Foliage."""
    BARK = 7
    STRIPES = 8
    """Bands across z of ``color`` and white. ``look`` = (period in metres, share of white)."""
    SIGN = 9
    """A board with a coloured rim. ``look`` = (seed,)."""
    GLOW = 10
    """Shines by itself: ``look`` = (strength,)."""


SHAPE = np.dtype(
    [
        ("kind", "i1"),
        ("material", "i1"),
        ("owner", "i4"),
        ("center", "f8", 3),
        ("yaw", "f8"),
        ("half", "f8", 3),
        ("form", "f8", 3),
        ("color", "f4", 3),
        ("look", "f4", 4),
    ]
)
"""One shape: centre, half sizes and form in metres, yaw in radians, colour as linear reflectance in 0..1.

``owner`` is the number of the annotated thing it belongs to, -1 for scenery.
"""

Shapes: TypeAlias = Array
Triple: TypeAlias = ArrayLike


def shape(
    kind: Kind,
    center: Triple,
    half: Triple,
    color: Triple,
    *,
    yaw: float = 0.0,
    form: Sequence[float] = (),
    material: Material = Material.PLAIN,
    look: Sequence[float] = (),
) -> Shapes:
    """One shape, as an array of length 1; see :class:`Kind` for the meaning of ``half`` and ``form`` (metres)."""
    row = np.zeros(1, SHAPE)
    row["kind"], row["material"], row["owner"] = kind, material, -1
    row["center"], row["yaw"], row["half"], row["color"] = center, yaw, half, color
    row["form"][0, : len(form)] = form
    row["look"][0, : len(look)] = look
    return row


def join(parts: Sequence[Shapes]) -> Shapes:
    """All shapes of several arrays; of none, an empty array."""
    return np.concatenate(parts) if parts else np.zeros(0, SHAPE)


def placed(shapes: Shapes, x: float, y: float, yaw: float, owner: int = -1) -> Shapes:
    """Shapes of a thing's own frame set down at (x, y) metres with ``yaw`` radians; ``owner`` marks them as its."""
    moved = shapes.copy()
    cos, sin = np.cos(yaw), np.sin(yaw)
    cx, cy = shapes["center"][:, 0], shapes["center"][:, 1]
    moved["center"][:, 0] = x + cos * cx - sin * cy
    moved["center"][:, 1] = y + sin * cx + cos * cy
    moved["yaw"] += yaw
    moved["owner"] = owner
    return moved


def bounds(shapes: Shapes) -> Array:
    """Half sizes [N, 3] of the upright box, turned as the shape is, that holds each shape."""
    half = shapes["half"].copy()
    cone = shapes["kind"] == Kind.CONE
    radius = np.maximum(half[cone, 0], shapes["form"][cone, 0])
    half[cone, 0] = half[cone, 1] = radius
    round_y = np.isin(shapes["kind"], (Kind.WHEEL, Kind.RING))
    half[round_y, 2] = half[round_y, 0]
    return half


CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
EDGES = np.array([[a, b] for a in range(8) for b in range(a + 1, 8) if np.abs(CORNERS[a] - CORNERS[b]).sum() == 2])


def corners(shapes: Shapes) -> Array:
    """The eight corners [N, 8, 3] of each shape's box, metres."""
    offset = bounds(shapes)[:, None] * CORNERS
    cos, sin = np.cos(shapes["yaw"])[:, None], np.sin(shapes["yaw"])[:, None]
    x, y = offset[..., 0].copy(), offset[..., 1].copy()
    offset[..., 0], offset[..., 1] = cos * x - sin * y, sin * x + cos * y
    return shapes["center"][:, None] + offset
