"""The pinhole camera in float64, point by point; pixel centres at halves."""

import numpy as np


def project(intrinsics, points):
    """Pixels [N, 2] and depths [N] of points [N, 3] in the camera frame."""
    pixels, depths = [], []
    for x, y, z in points:
        u = (intrinsics[0, 0] * x + intrinsics[0, 1] * y) / z + intrinsics[0, 2]
        v = intrinsics[1, 1] * y / z + intrinsics[1, 2]
        pixels.append((u, v))
        depths.append(z)
    return np.array(pixels), np.array(depths)


def bilinear(image, u, v):
    """Colour of an image [H, W] at a continuous pixel, between the four nearest centres."""
    x, y = u - 0.5, v - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    a, b = x - left, y - top
    return (
        (1 - a) * (1 - b) * image[top, left]
        + a * (1 - b) * image[top, left + 1]
        + (1 - a) * b * image[top + 1, left]
        + a * b * image[top + 1, left + 1]
    )
