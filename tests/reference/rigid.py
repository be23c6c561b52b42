"""Rigid transforms in float64, number by number."""

import math

import numpy as np


def matrix_from_quaternion(w, x, y, z):
    """Rotate the three axes by q v q*, the definition."""
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    q = np.array([w, x, y, z], dtype=np.float64) / norm
    conjugate = q * [1, -1, -1, -1]
    columns = [multiply(multiply(q, np.array([0, *axis])), conjugate)[1:] for axis in np.eye(3)]
    return np.stack(columns, axis=1)


def multiply(p, q):
    """The Hamilton product of two quaternions (w, x, y, z)."""
    (a, b, c, d), (e, f, g, h) = p, q
    return np.array(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ]
    )


def pose(quaternion, translation):
    """a_from_b [4, 4]."""
    result = np.eye(4)
    result[:3, :3] = matrix_from_quaternion(*quaternion)
    result[:3, 3] = translation
    return result


def transform(a_from_b, points):
    """Points [N, 3] from b to a."""
    result = []
    for point in points:
        moved = [sum(a_from_b[i, j] * point[j] for j in range(3)) + a_from_b[i, 3] for i in range(3)]
        result.append(moved)
    return np.array(result).reshape(-1, 3)
