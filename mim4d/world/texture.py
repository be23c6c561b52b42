"""Procedural texture, all of it from seeds: seamless noise with mip levels, and a hash for one value per tile."""

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array

_SIZE = 512


class Noise:
    """Cloudy noise, mean 0 and standard deviation about 1, that repeats seamlessly.

    Far away a pixel covers many texels; a coarser level is looked up there, so nothing flickers or aliases.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 77])
        field = np.zeros((_SIZE, _SIZE), np.float32)
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
        """Look the noise up.

        Args:
            u: Coordinate in metres, any shape.
            v: The other coordinate.
            span: After how many metres the noise repeats; its finest grain is span / 512.
            footprint: What a pixel covers there, metres.

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
    """Periodic bilinear enlargement of a square field."""
    out = coarse
    for axis in (0, 1):
        following = np.roll(out, -1, axis)
        shares = (np.arange(factor, dtype=np.float32) / factor).reshape((-1, 1) if axis == 0 else (1, -1))
        if axis == 0:
            out = (out[:, None] * (1 - shares) + following[:, None] * shares).reshape(-1, out.shape[1])
        else:
            out = (out[..., None] * (1 - shares[0]) + following[..., None] * shares[0]).reshape(out.shape[0], -1)
    return out


def hashed(i: ArrayLike, j: ArrayLike, seed: ArrayLike = 0) -> Array:
    """A number in [0, 1) for each cell (i, j), as if drawn at random; float32 of the broadcast shape."""
    with np.errstate(over="ignore"):  # the products wrap round, as they should
        h = np.asarray(i).astype(np.uint32) * np.uint32(0x9E3779B1)
        h = h ^ (np.asarray(j).astype(np.uint32) * np.uint32(0x85EBCA77) + np.asarray(seed).astype(np.uint32))
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
        h = h ^ (h >> np.uint32(15))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def covered(distance: Array, footprint: Array | float) -> Array:
    """Share of a pixel that lies where ``distance`` < 0, for an edge seen at ``footprint`` metres a pixel."""
    return np.clip(0.5 - distance / footprint, 0, 1)


def band(x: Array, low: Array | float, high: Array | float, footprint: Array | float) -> Array:
    """Share of a pixel about ``x`` that lies in [low, high]."""
    return np.clip((np.minimum(x + footprint * 0.5, high) - np.maximum(x - footprint * 0.5, low)) / footprint, 0, 1)
