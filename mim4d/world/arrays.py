"""The array type of this package, and products that give the same bits with any number of threads."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A numpy array; docstrings give its shape, its unit and, where it matters, its dtype."""


def dot(vectors: Array, other: Array) -> Array:
    """Compute the scalar products [...] of ``vectors`` [..., 3] with ``other`` [3], in the dtype of ``vectors``.

    >>> dot(np.array([[1, 2, 3], [0, 0, 1]]), np.array([1, 1, 2]))
    array([9, 2])
    """
    x, y, z = (vectors.dtype.type(c) for c in other)
    return vectors[..., 0] * x + vectors[..., 1] * y + vectors[..., 2] * z


def rotated(rotation: Array, vectors: Array) -> Array:
    """Rotate ``vectors`` [..., 3] of frame b to frame a by ``rotation`` [3, 3], ``a_from_b``.

    >>> rotated(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([1, 0, 5]))  # 90 degrees to the left
    array([0, 1, 5])
    """
    return np.stack([dot(vectors, row) for row in rotation], axis=-1)
