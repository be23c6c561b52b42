"""Lens distortion in OpenCV's two models, on the image plane at depth 1.

Both take a point of an ideal pinhole to the place where a real lens puts it, so an image is undistorted by looking up,
for each of its pixels, where that pixel's ray meets the distorted image. No inverse is needed.
"""

import torch
from torch import Tensor


def distort_brown(points: Tensor, coefficients: Tensor) -> Tensor:
    """Distort points by the Brown-Conrady model with OpenCV's rational and thin-prism terms (``cv2.projectPoints``).

    Args:
        points: [..., 2], x / z and y / z of points in the camera frame.
        coefficients: [12]: k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4; 0 for those that a lens does not have.

    Returns:
        [..., 2], distorted x / z and y / z.
    """
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = coefficients.unbind()
    x, y = points.unbind(-1)
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2)
    distorted_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4)
    return torch.stack([distorted_x, distorted_y], -1)


def distort_fisheye(points: Tensor, coefficients: Tensor) -> Tensor:
    """Distort points by OpenCV's fisheye model (Kannala-Brandt, ``cv2.fisheye.projectPoints``).

    Args:
        points: [..., 2], x / z and y / z of points in the camera frame.
        coefficients: [4] or more, of which k1, k2, k3, k4 come first; all 0 is the equidistant lens.

    Returns:
        [..., 2], distorted x / z and y / z.
    """
    k1, k2, k3, k4 = coefficients[:4].unbind()
    r = points.norm(dim=-1, keepdim=True)
    theta = r.atan()
    t2 = theta * theta
    distorted = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
    return points * torch.where(r > 1e-8, distorted / r.clamp(min=1e-8), torch.ones_like(r))
