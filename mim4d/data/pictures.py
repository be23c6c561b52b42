"""A picture that shows at a glance whether time, poses and calibration are right: LiDAR drawn into the images."""

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from ..clip import Clip
from ..geometry import invert, project, transform

NEAREST = 0.5
"""Points nearer than this along the optical axis are left out, metres."""


def lidar_on_images(clip: Clip, *, row: int = 0, frame: int = -1, columns: int = 3, far: float = 60.0) -> Image.Image:
    """Draw one frame's LiDAR into its images, red where near and blue where far.

    Args:
        clip: Any batch.
        row: Which of the batch's clips.
        frame: Which frame.
        columns: How many images stand side by side.
        far: Depth in metres of the last colour.

    Returns:
        The cameras as a grid, each at the clip's image size.
    """
    height, width = clip.image_size
    columns = min(columns, clip.num_cameras)
    lines = -(-clip.num_cameras // columns)
    sheet = np.zeros((lines * height, columns * width, 3), dtype=np.uint8)
    points = clip.points[row, frame, : int(clip.num_points[row, frame])]
    for camera in range(clip.num_cameras):
        image = clip.images[row, frame, camera].permute(1, 2, 0).numpy().copy()
        in_camera = transform(invert(clip.ego_from_camera[row, frame, camera]), points)
        pixels, depth = project(clip.intrinsics[row, frame, camera], in_camera)
        _draw(image, pixels[depth > NEAREST], depth[depth > NEAREST], far)
        top, left = camera // columns * height, camera % columns * width
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def _draw(image: NDArray[np.uint8], pixels: torch.Tensor, depth: torch.Tensor, far: float) -> None:
    """Put a dot of 3 x 3 pixels at each point, the near ones over the far ones."""
    height, width = image.shape[:2]
    order = depth.argsort(descending=True)
    colours = colormaps["turbo_r"]((depth[order] / far).numpy(), bytes=True)[:, :3]
    columns_rows = pixels[order].floor().long().numpy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            u, v = columns_rows[:, 0] + dx, columns_rows[:, 1] + dy
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            image[v[inside], u[inside]] = colours[inside]
