"""Lens distortion in OpenCV's two models, on the image plane at depth 1.

Both functions map the image point of an ideal pinhole camera to the image point of the real lens. To undistort an
image, sample the distorted image at the mapped position of each pixel; the inverse mapping is not needed.
"""

import torch
from torch import Tensor


def distort_brown(points: Tensor, coefficients: Tensor) -> Tensor:
    """Distort points by the Brown-Conrady model with OpenCV's rational and thin-prism terms.

    The formula is that of ``cv2.projectPoints``, with r² = x² + y²::

        radial = (1 + k1 r² + k2 r⁴ + k3 r⁶) / (1 + k4 r² + k5 r⁴ + k6 r⁶)
        x' = x radial + 2 p1 x y + p2 (r² + 2 x²) + s1 r² + s2 r⁴
        y' = y radial + p1 (r² + 2 y²) + 2 p2 x y + s3 r² + s4 r⁴

    Args:
        points: [..., 2], x / z and y / z of points in the camera frame.
        coefficients: [12]: k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4; 0 for those that a lens does not have.

    Returns:
        [..., 2], distorted x / z and y / z.

    >>> barrel = torch.tensor([-0.1] + [0.0] * 11)
    >>> distort_brown(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), barrel)  # x (1 - 0.1 x²)
    tensor([[0.9000, 0.0000],
            [1.2000, 0.0000]])
    """
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = coefficients.unbind()
    x, y = points.unbind(-1)
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2)
    distorted_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4)
    return torch.stack([distorted_x, distorted_y], -1)  # [..., 2]


def distort_fisheye(points: Tensor, coefficients: Tensor) -> Tensor:
    """Distort points by OpenCV's fisheye model (Kannala-Brandt).

    The formula is that of ``cv2.fisheye.projectPoints``, with r² = x² + y² and θ = atan(r)::

        θ' = θ (1 + k1 θ² + k2 θ⁴ + k3 θ⁶ + k4 θ⁸)
        (x', y') = (x, y) θ' / r

    Args:
        points: [..., 2], x / z and y / z of points in the camera frame.
        coefficients: [4 or more]: k1, k2, k3, k4; further ones are ignored. All 0 is the equidistant lens.

    Returns:
        [..., 2], distorted x / z and y / z.

    >>> distort_fisheye(torch.tensor([[1.0, 0.0]]), torch.zeros(4))  # 45 degrees off the axis: θ = π / 4
    tensor([[0.7854, 0.0000]])
    """
    k1, k2, k3, k4 = coefficients[:4].unbind()
    r = points.norm(dim=-1, keepdim=True)  # [..., 1]
    theta = r.atan()
    t2 = theta * theta
    distorted = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))  # [..., 1]
    # On the optical axis θ' / r has the limit 1, but the quotient is 0 / 0.
    return points * torch.where(r > 1e-8, distorted / r.clamp(min=1e-8), torch.ones_like(r))
