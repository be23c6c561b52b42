"""The warp as a matrix of the weight of each source voxel in each target voxel, in float64."""

import math

import numpy as np


def metres_of(index, ranges, sizes):
    """Centre (x, y, z) of the voxel of integer index (i, j, k)."""
    return [low + (n + 0.5) * size for n, (low, _), size in zip(index, ranges, sizes, strict=True)]


def shares(point, ranges, sizes):
    """Trilinear weights of a point (x, y, z): {(i, j, k): weight}, without voxels outside the grid."""
    place = [(value - low) / size - 0.5 for value, (low, _), size in zip(point, ranges, sizes, strict=True)]
    counts = [round((high - low) / size) for (low, high), size in zip(ranges, sizes, strict=True)]
    result = {}
    for corner in np.ndindex(2, 2, 2):
        index, share = [], 1.0
        for value, count, side in zip(place, counts, corner, strict=True):
            whole = math.floor(value)
            share *= value - whole if side else 1 - (value - whole)
            index.append(whole + side if 0 <= whole + side < count else None)
        if None not in index:
            result[tuple(index)] = share
    return result


def warp_matrix(source_from_target, ranges, sizes):
    """[N, N] with N = Z*Y*X, x fastest: target volume = matrix @ source volume; its transpose takes gradients back.

    Args:
        source_from_target: [4, 4], metres.
        ranges: ((low, high), ...) along x, y, z, metres.
        sizes: Of a voxel along x, y, z, metres.
    """
    count_x, count_y, count_z = (round((high - low) / size) for (low, high), size in zip(ranges, sizes, strict=True))
    matrix = np.zeros((count_z * count_y * count_x,) * 2)
    for k, j, i in np.ndindex(count_z, count_y, count_x):
        target = metres_of((i, j, k), ranges, sizes)
        source = [
            sum(source_from_target[a, b] * target[b] for b in range(3)) + source_from_target[a, 3] for a in range(3)
        ]
        for (x, y, z), share in shares(source, ranges, sizes).items():
            matrix[(k * count_y + j) * count_x + i, (z * count_y + y) * count_x + x] += share
    return matrix
