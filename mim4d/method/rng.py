"""Random numbers that depend only on the seed of a clip.

The generator is counter-based: number i of stream s for seed k is a hash of (k, s, i). So the mask, target frame and
rays of a clip do not depend on its batch, on the number of processes, on the device or on where a run was resumed, and
there is no generator state to save. The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, section 4.2).
"""

import math
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """Purpose of the numbers: the streams of one seed are independent."""

    MASK = 1
    TARGET = 2
    RAYS = 3
    JITTER = 4
    OTHER = 5
    MIRROR = 6
    LIGHT = 7


def _as_int64(value: int) -> int:
    """Convert an unsigned 64-bit constant of 2**63 or more to the int64 that has the same bits."""
    return value - (1 << 64)


_GAMMA = _as_int64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _as_int64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _as_int64(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift logically: torch's shift of int64 fills in the sign bit, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash64(x: Tensor) -> Tensor:
    """Hash int64 numbers: the output that SplitMix64 gives next in state x.

    With wrapping arithmetic of 64 bits and logical shifts::

        z = x + 0x9E3779B97F4A7C15
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        hash64(x) = z ^ (z >> 31)

    Args:
        x: int64 of any shape.

    Returns:
        int64 of the same shape, every bit of which depends on every bit of x.

    >>> hash64(torch.tensor([1234567]))  # the first output of published SplitMix64 generators for this seed
    tensor([6457827717110365317])
    """
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def uniform(seeds: Tensor, stream: Stream, shape: tuple[int, ...]) -> Tensor:
    """Draw uniform numbers in [0, 1) with 24 random bits, as many as the fraction of a float32 holds.

    Number i of a clip is hash64(hash64(hash64(seed) + stream) ^ hash64(i)) / 2**64, truncated to 24 bits.

    Args:
        seeds: [B] int64, one per clip.
        stream: Purpose of the numbers.
        shape: Shape of the numbers of each clip.

    Returns:
        ``[B, *shape]`` float32, on the device of ``seeds``.

    The numbers of a clip do not depend on its batch:

    >>> in_batch = uniform(torch.tensor([5, 9]), Stream.MASK, (3,))[1]
    >>> torch.equal(in_batch, uniform(torch.tensor([9]), Stream.MASK, (3,))[0])
    True
    """
    keys = hash64(hash64(seeds) + int(stream))  # [B]
    counter = torch.arange(math.prod(shape), device=seeds.device)
    bits = _shift_right(hash64(keys[:, None] ^ hash64(counter)), 40)  # [B, prod(shape)], 24 bits each
    return (bits.float() * 2.0**-24).view(len(seeds), *shape)
