"""The voxel grid, by loops."""

import numpy as np


def centers(ranges, sizes):
    """Voxel centres [Z, Y, X, 3] as (x, y, z), metres; ranges ((low, high), ...) and sizes along x, y, z."""
    counts = [round((high - low) / size) for (low, high), size in zip(ranges, sizes, strict=True)]
    result = np.zeros((counts[2], counts[1], counts[0], 3))
    for k in range(counts[2]):
        for j in range(counts[1]):
            for i in range(counts[0]):
                for axis, index in enumerate((i, j, k)):
                    result[k, j, i, axis] = ranges[axis][0] + (index + 0.5) * sizes[axis]
    return result
