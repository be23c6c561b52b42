"""Procedural texture from seeds: seamless noise with mip levels, and a hash that gives one value per cell."""

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array

_SIZE = 512


class Noise:
    """Seamless noise of several octaves with mean 0 and a standard deviation of about 1.

    Where a pixel covers many texels, a coarser mip level is sampled, which avoids aliasing.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 77])
        field = np.zeros((_SIZE, _SIZE), np.float32)  # [512, 512]
        for octave in range(2, 10):
            coarse = rng.standard_normal((2**octave, 2**octave), dtype=np.float32)
            field += _enlarged(coarse, _SIZE // 2**octave) * np.float32(0.8 ** (octave - 2))
        levels = [(field - field.mean()) / field.std()]
        while levels[-1].shape[0] > 1:
            n = levels[-1].shape[0] // 2
            levels.append(levels[-1].reshape(n, 2, n, 2).mean((1, 3)))
        self._texels = np.concatenate([level.ravel() for level in levels])
        self._first = np.cumsum([0] + [level.size for level in levels[:-1]]).astype(np.int32)

    def __call__(self, u: Array, v: Array, span: float, footprint: Array | float) -> Array:
        """Sample the noise.

        Args:
            u: First coordinate, of any shape, metres.
            v: Second coordinate, of the same shape, metres.
            span: Period of the noise, metres; its finest grain is span / 512.
            footprint: Width of a pixel at these coordinates, metres.

        Returns:
            float32 of the same shape.
        """
        level = np.log2(np.maximum(np.asarray(footprint, np.float32) * np.float32(_SIZE / span), 1.0))
        level = np.minimum(level.astype(np.int32), len(self._first) - 1)
        count = np.right_shift(_SIZE, level).astype(np.int32)
        scale = count.astype(np.float32) / np.float32(span)
        column = np.floor(u * scale).astype(np.int32) & (count - 1)
        row = np.floor(v * scale).astype(np.int32) & (count - 1)
        return self._texels[self._first[level] + row * count + column]


def _enlarged(coarse: Array, factor: int) -> Array:
    """Enlarge a square field [n, n] to [factor*n, factor*n] by periodic bilinear interpolation.

    >>> _enlarged(np.array([[0.0, 4.0], [0.0, 4.0]]), 2)[0].tolist()
    [0.0, 2.0, 4.0, 2.0]
    """
    out = coarse
    for axis in (0, 1):
        following = np.roll(out, -1, axis)
        weights = (np.arange(factor, dtype=np.float32) / factor).reshape((-1, 1) if axis == 0 else (1, -1))
        if axis == 0:
            out = (out[:, None] * (1 - weights) + following[:, None] * weights).reshape(-1, out.shape[1])
        else:
            out = (out[..., None] * (1 - weights[0]) + following[..., None] * weights[0]).reshape(out.shape[0], -1)
    return out


def hashed(i: ArrayLike, j: ArrayLike, seed: ArrayLike = 0) -> Array:
    """Hash each cell (i, j) to a number in [0, 1) that looks random; float32 of the broadcast shape."""
    with np.errstate(over="ignore"):  # the products wrap around, as they should
        h = np.asarray(i).astype(np.uint32) * np.uint32(0x9E3779B1)
        h = h ^ (np.asarray(j).astype(np.uint32) * np.uint32(0x85EBCA77) + np.asarray(seed).astype(np.uint32))
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
        h = h ^ (h >> np.uint32(15))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def covered(distance: Array, footprint: Array | float) -> Array:
    """Compute the fraction of a pixel in which ``distance`` to an edge is negative, for pixels ``footprint`` wide.

    >>> covered(np.array([-1.0, 0.0, 0.25, 1.0]), footprint=1.0).tolist()
    [1.0, 0.5, 0.25, 0.0]
    """
    return np.clip(0.5 - distance / footprint, 0, 1)


def band(x: Array, low: Array | float, high: Array | float, footprint: Array | float) -> Array:
    """Compute the fraction of a pixel centred at ``x`` and ``footprint`` wide that lies in [low, high].

    >>> band(np.array([0.0, 0.5, 2.0]), 0.0, 1.0, footprint=1.0).tolist()
    [0.5, 1.0, 0.0]
    """
    return np.clip((np.minimum(x + footprint * 0.5, high) - np.maximum(x - footprint * 0.5, low)) / footprint, 0, 1)
