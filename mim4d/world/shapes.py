"""Shapes: the solids of the world, stored as rows of one record array so that ray casting is fast.

A shape is upright: it has a centre, half sizes and a yaw. An object, such as a car or a tree, has several shapes.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array


class Kind(IntEnum):
    """Kind of a shape, which decides the meaning of its numbers; in its own frame x is forward and z up."""

    BOX = 0
    """Half sizes along x, y, z."""
    PRISM = 1
    """A box whose top is set back by ``form`` = (front, rear, sides) metres: cabins, bonnets, gabled roofs."""
    ELLIPSOID = 2
    """Half axes along x, y, z. ``form`` = (0, density): a density above 0 makes gaps as in foliage, more if smaller."""
    CONE = 3
    """An upright cone of radius ``half[0]`` at the bottom. ``form`` = (radius at the top, density of foliage)."""
    WHEEL = 4
    """A cylinder about the y axis of radius ``half[0]`` and half width ``half[1]``."""
    RING = 5
    """A flat ring in the x-z plane of radius ``half[0]``. ``form`` = (inner radius,)."""


class Material(IntEnum):
    """Material of a shape; ``look`` holds the parameters of the material."""

    PLAIN = 0
    """One colour with faint stains."""
    FACADE = 1
    """Rows of windows. ``look`` = (storey height, bay width, style, seed); metres, style as in ``facade.py``."""
    ROOF = 2
    """Tiles or gravel."""
    PAINT = 3
    """The body of a vehicle. ``look`` = (1 for a body with lights or 2 for a cargo box, 1 if it brakes, seed)."""
    CABIN = 4
    """Windows on all sides between pillars. ``look`` = (windows per side,)."""
    WHEEL = 5
    """Tyre and hub."""
    LEAVES = 6
    """Foliage."""
    BARK = 7
    """Bark of a tree."""
    STRIPES = 8
    """Horizontal bands of ``color`` and white. ``look`` = (period in metres, fraction of white)."""
    SIGN = 9
    """A board with a coloured rim. ``look`` = (seed,)."""
    GLOW = 10
    """Emits light. ``look`` = (strength,)."""


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
"""A shape: centre, half sizes and form in metres, yaw in radians, colour as linear reflectance in 0..1.

``owner`` is the number of the actor that it belongs to; -1 for scenery.
"""

Shapes: TypeAlias = Array
"""[shapes] of the type :data:`SHAPE`."""
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
    """Make one shape, as an array of length 1; for ``half`` and ``form`` (metres) see :class:`Kind`."""
    row = np.zeros(1, SHAPE)
    row["kind"], row["material"], row["owner"] = kind, material, -1
    row["center"], row["yaw"], row["half"], row["color"] = center, yaw, half, color
    row["form"][0, : len(form)] = form
    row["look"][0, : len(look)] = look
    return row


def join(parts: Sequence[Shapes]) -> Shapes:
    """Concatenate arrays of shapes; without any, return an empty array."""
    return np.concatenate(parts) if parts else np.zeros(0, SHAPE)


def placed(shapes: Shapes, x: float, y: float, yaw: float, owner: int = -1) -> Shapes:
    """Move shapes from the frame of an object to (x, y) metres in the world with ``yaw`` radians, and set their owner.

    >>> box = shape(Kind.BOX, (1, 0, 0.5), (1, 1, 0.5), (0, 0, 0))
    >>> placed(box, x=10, y=20, yaw=np.pi / 2)["center"].round(6).tolist()
    [[10.0, 21.0, 0.5]]
    """
    moved = shapes.copy()
    cos, sin = np.cos(yaw), np.sin(yaw)
    cx, cy = shapes["center"][:, 0], shapes["center"][:, 1]
    moved["center"][:, 0] = x + cos * cx - sin * cy
    moved["center"][:, 1] = y + sin * cx + cos * cy
    moved["yaw"] += yaw
    moved["owner"] = owner
    return moved


def bounds(shapes: Shapes) -> Array:
    """Compute the half sizes [shapes, 3] of the bounding box of each shape, in the frame of the shape."""
    half = shapes["half"].copy()  # [shapes, 3]
    cone = shapes["kind"] == Kind.CONE
    radius = np.maximum(half[cone, 0], shapes["form"][cone, 0])
    half[cone, 0] = half[cone, 1] = radius
    round_y = np.isin(shapes["kind"], (Kind.WHEEL, Kind.RING))
    half[round_y, 2] = half[round_y, 0]
    return half


class Columns:
    """Fields of shapes as contiguous float32 arrays, from which those of many points are gathered fast."""

    def __init__(self, shapes: Shapes) -> None:
        """Copy the fields of [shapes]."""
        self.count = len(shapes)
        self._fields = {name: np.ascontiguousarray(shapes[name]) for name in ("kind", "material")}
        for name in ("center", "half", "form", "color", "look"):
            self._fields[name] = np.ascontiguousarray(shapes[name].T, np.float32)
        self._fields["cos"] = np.cos(shapes["yaw"]).astype(np.float32)
        self._fields["sin"] = np.sin(shapes["yaw"]).astype(np.float32)

    def at(self, field: str, numbers: Array) -> Array:
        """Gather a field [..., P] of the shapes with ``numbers`` [P]; ``cos`` and ``sin`` are those of the yaw."""
        return self._fields[field][..., numbers]


CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
"""[8, 3] corners of the cube -1 .. 1."""
EDGES = np.array([[a, b] for a in range(8) for b in range(a + 1, 8) if np.abs(CORNERS[a] - CORNERS[b]).sum() == 2])
"""[12, 2] numbers of the two corners of each edge."""


def corners(shapes: Shapes) -> Array:
    """Compute the corners [shapes, 8, 3] of the bounding box of each shape in the world."""
    offset = bounds(shapes)[:, None] * CORNERS  # [shapes, 8, 3]
    cos, sin = np.cos(shapes["yaw"])[:, None], np.sin(shapes["yaw"])[:, None]
    x, y = offset[..., 0].copy(), offset[..., 1].copy()
    offset[..., 0], offset[..., 1] = cos * x - sin * y, sin * x + cos * y
    return shapes["center"][:, None] + offset
