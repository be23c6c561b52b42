"""The pinhole camera: projection, its inverse, and the intrinsics of resized and cropped images.

Pixel coordinates are continuous and the centre of the top-left pixel is (0.5, 0.5), so scaling an image scales its
intrinsics without a half-pixel correction.
"""

import torch
from torch import Tensor

from .constant import constant
from .precision import exact


@exact
def project(intrinsics: Tensor, points_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Project points in the camera frame to the image: u = fx x / z + cx, v = fy y / z + cy.

    Args:
        intrinsics: [..., 3, 3], pixels.
        points_camera: [..., P, 3], metres; leading dimensions broadcast.

    Returns:
        Pixels [..., P, 2], and depth along the optical axis [..., P] in metres. Points at or behind the camera plane
        have depth <= 0 and meaningless (but finite) pixels: check the depth.

    >>> intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    >>> project(intrinsics, torch.tensor([[1.0, 2.0, 4.0]]))
    (tensor([[75., 90.]]), tensor([4.]))
    """
    image = points_camera @ intrinsics.mT  # [..., P, 3], (u, v, 1) times the depth
    depth = image[..., 2]
    nonzero_depth = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
    return image[..., :2] / nonzero_depth[..., None], depth


def unproject(intrinsics: Tensor, pixels: Tensor, depth: Tensor) -> Tensor:
    """Return the points in the camera frame that project to given pixels at given depths.

    Args:
        intrinsics: [..., 3, 3], pixels.
        pixels: [..., P, 2].
        depth: [..., P], along the optical axis, metres.

    Returns:
        [..., P, 3], metres; leading dimensions broadcast.

    >>> intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    >>> unproject(intrinsics, torch.tensor([[75.0, 90.0]]), torch.tensor([4.0]))
    tensor([[1., 2., 4.]])
    """
    fx, fy = intrinsics[..., None, 0, 0], intrinsics[..., None, 1, 1]  # [..., 1]
    cx, cy = intrinsics[..., None, 0, 2], intrinsics[..., None, 1, 2]  # [..., 1]
    skew = intrinsics[..., None, 0, 1]  # [..., 1]
    y = (pixels[..., 1] - cy) / fy  # [..., P]
    x = (pixels[..., 0] - cx - skew * y) / fx  # [..., P]
    return torch.stack(torch.broadcast_tensors(x * depth, y * depth, depth), dim=-1)  # [..., P, 3]


def resize_intrinsics(intrinsics: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """Return the intrinsics of the image after scaling.

    Args:
        intrinsics: [..., 3, 3], pixels of the original image.
        scale_x: New width / old width.
        scale_y: New height / old height.

    Returns:
        [..., 3, 3], pixels of the scaled image.

    >>> intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    >>> resize_intrinsics(intrinsics, 0.5, 0.25)
    tensor([[50.,  0., 25.],
            [ 0., 25., 10.],
            [ 0.,  0.,  1.]])
    """
    return intrinsics * constant([scale_x, scale_y, 1.0], intrinsics)[:, None]


def crop_intrinsics(intrinsics: Tensor, left: float, top: float) -> Tensor:
    """Return the intrinsics of the image after cropping; they do not depend on what is cut on the right and below.

    Args:
        intrinsics: [..., 3, 3], pixels of the original image.
        left: Columns cut off on the left, pixels.
        top: Rows cut off at the top, pixels.

    Returns:
        [..., 3, 3], pixels of the cropped image.

    >>> intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    >>> crop_intrinsics(intrinsics, left=10, top=30)
    tensor([[100.,   0.,  40.],
            [  0., 100.,  10.],
            [  0.,   0.,   1.]])
    """
    shift = torch.zeros_like(intrinsics)
    shift[..., 0, 2] = left
    shift[..., 1, 2] = top
    return intrinsics - shift
