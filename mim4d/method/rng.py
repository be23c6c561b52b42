"""Random numbers that follow from a clip's seed alone.

A counter-based generator: number i of stream s of seed k is a hash of (k, s, i). So a clip's mask, target frame and
rays are the same whatever batch it is in, however many processes share the work, on every device, and after a resume,
with no generator state to carry. The hash is SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014, section 4.2).
"""

import math
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What the numbers are for: streams of one seed are independent."""

    MASK = 1
    TARGET = 2
    RAYS = 3
    JITTER = 4


def _wrapped(value: int) -> int:
    """An unsigned 64-bit constant as the int64 of the same bits."""
    return value - (1 << 64)


_GAMMA = _wrapped(0x9E3779B97F4A7C15)
_MIX_1 = _wrapped(0xBF58476D1CE4E5B9)
_MIX_2 = _wrapped(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash64(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 of any shape to int64 that look random."""
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seeds: Tensor, stream: Stream, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) with 24 random bits.

    Args:
        seeds: [B] int64, one a clip.
        stream: What the numbers are for.
        shape: The shape wanted for each clip.

    Returns:
        ``[B, *shape]`` float32 on the device of ``seeds``.
    """
    keys = hash64(hash64(seeds) + int(stream))
    counter = torch.arange(math.prod(shape), device=seeds.device)
    bits = _shift_right(hash64(keys[:, None] ^ hash64(counter)), 40)
    return (bits.float() * 2.0**-24).view(len(seeds), *shape)
