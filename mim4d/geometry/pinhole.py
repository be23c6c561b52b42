"""The pinhole camera: projection, its inverse, and what resizing and cropping do to the intrinsics.

Pixels are continuous and the centre of the top-left one is (0.5, 0.5), so scaling an image scales its intrinsics and
needs no half-pixel correction.
"""

import torch
from torch import Tensor

from .precision import exact


@exact
def project(intrinsics: Tensor, points_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Project points in the camera frame to the image.

    Args:
        intrinsics: [..., 3, 3], pixels.
        points_camera: [..., N, 3], metres; leading dimensions broadcast.

    Returns:
        pixels [..., N, 2] and depth along the optical axis [..., N] in metres. Points at or behind the camera plane
        have depth <= 0 and meaningless (finite) pixels: test the depth.
    """
    image = points_camera @ intrinsics.mT
    depth = image[..., 2]
    safe = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
    return image[..., :2] / safe[..., None], depth


def unproject(intrinsics: Tensor, pixels: Tensor, depth: Tensor) -> Tensor:
    """Points in the camera frame [..., N, 3] that project to ``pixels`` [..., N, 2] at ``depth`` [..., N] metres."""
    fx, fy = intrinsics[..., None, 0, 0], intrinsics[..., None, 1, 1]
    cx, cy = intrinsics[..., None, 0, 2], intrinsics[..., None, 1, 2]
    skew = intrinsics[..., None, 0, 1]
    y = (pixels[..., 1] - cy) / fy
    x = (pixels[..., 0] - cx - skew * y) / fx
    return torch.stack(torch.broadcast_tensors(x * depth, y * depth, depth), dim=-1)


def resize_intrinsics(intrinsics: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """Intrinsics [..., 3, 3] of the image scaled by ``scale_x``, ``scale_y`` (new size / old size)."""
    return intrinsics * intrinsics.new_tensor([scale_x, scale_y, 1.0])[:, None]


def crop_intrinsics(intrinsics: Tensor, left: float, top: float) -> Tensor:
    """Intrinsics [..., 3, 3] of the image after ``left`` columns and ``top`` rows of pixels were cut off."""
    shift = torch.zeros_like(intrinsics)
    shift[..., 0, 2] = left
    shift[..., 1, 2] = top
    return intrinsics - shift
