"""The one array type of this package, and products with it that give the same bits whatever the number of threads."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""Docstrings give shape, unit and, where it matters, dtype."""


def dot(vectors: Array, other: Array) -> Array:
    """Scalar products [...] of ``vectors`` [..., 3] with ``other`` [3], in the dtype of ``vectors``."""
    x, y, z = (vectors.dtype.type(c) for c in other)
    return vectors[..., 0] * x + vectors[..., 1] * y + vectors[..., 2] * z


def rotated(rotation: Array, vectors: Array) -> Array:
    """``vectors`` [..., 3] of frame b in frame a, for ``rotation`` [3, 3] from b to a."""
    return np.stack([dot(vectors, row) for row in rotation], axis=-1)
