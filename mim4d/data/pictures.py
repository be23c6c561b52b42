"""A picture to check times, poses and calibration: LiDAR points drawn into the images."""

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from ..clip import Clip
from ..geometry import invert, project, transform

NEAREST = 0.5
"""Smallest depth of a point that is drawn, metres."""


def lidar_on_images(clip: Clip, *, row: int = 0, frame: int = -1, columns: int = 3, far: float = 60.0) -> Image.Image:
    """Draw the LiDAR points of one frame into its images: near points are red, far ones are blue.

    Args:
        clip: A batch of clips.
        row: Number of the clip in the batch.
        frame: Number of the frame in the clip.
        columns: Number of images side by side.
        far: Depth of the last colour, metres.

    Returns:
        The images of all cameras in a grid, each of the clip's image size.
    """
    height, width = clip.image_size
    columns = min(columns, clip.num_cameras)
    lines = -(-clip.num_cameras // columns)
    sheet = np.zeros((lines * height, columns * width, 3), dtype=np.uint8)
    points = clip.points[row, frame, : int(clip.num_points[row, frame])]  # [P, 3]
    for camera in range(clip.num_cameras):
        image = clip.images[row, frame, camera].permute(1, 2, 0).numpy().copy()  # [H, W, 3]
        in_camera = transform(invert(clip.ego_from_camera[row, frame, camera]), points)  # [P, 3]
        pixels, depth = project(clip.intrinsics[row, frame, camera], in_camera)  # [P, 2], [P]
        _draw(image, pixels[depth > NEAREST], depth[depth > NEAREST], far)
        top, left = camera // columns * height, camera % columns * width
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def _draw(image: NDArray[np.uint8], pixels: torch.Tensor, depth: torch.Tensor, far: float) -> None:
    """Draw a dot of 3 x 3 pixels per point into an image [H, W, 3], far points first."""
    height, width = image.shape[:2]
    order = depth.argsort(descending=True)
    colours = colormaps["turbo_r"]((depth[order] / far).numpy(), bytes=True)[:, :3]  # [P, 3]
    columns_rows = pixels[order].floor().long().numpy()  # [P, 2]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            u, v = columns_rows[:, 0] + dx, columns_rows[:, 1] + dy
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            image[v[inside], u[inside]] = colours[inside]
