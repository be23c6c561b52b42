"""Draw the pictures of the gallery: streets of the synthetic world, their LiDAR, and hidden patches.

python docs/gallery.py docs/gallery
"""

from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from mim4d.backbones.encoder import PATCH
from mim4d.clip import Clip
from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.index import cache_folder
from mim4d.data.pictures import lidar_on_images
from mim4d.io.files import make_folder
from mim4d.method.mask import visible_patches
from mim4d.world import WorldConfig, make_world

FRONT = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
BACK = ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
HIDDEN_SHARE = 0.3
HIDDEN_GREY = 110


def main(out: tyro.conf.Positional[Path], clip: int = 0, scale: float = 0.5) -> None:
    """Draw a small world and save the pictures as JPEG files.

    Args:
        out: Folder for the pictures.
        clip: Number of the clip to show, counted from 0.
        scale: Size of the world's images relative to 1600 x 900 pixels.
    """
    world = WorldConfig(scenes=3, keyframes=3, scale=scale)
    root = make_world(cache_folder() / f"gallery-world-{scale:g}", "v1.0-mini", world)
    width = int(1600 * scale * 0.6) // PATCH * PATCH
    size = (width * 8 // 15 // PATCH * PATCH, width)
    config = DataConfig(
        dataroot=str(root), version="v1.0-mini", split="mini_train", frames=3, cameras=FRONT + BACK, image_size=size
    )
    make_folder(out)
    for name, picture in pictures(NuScenesClips(config)[clip]).items():
        picture.save(out / f"{name}.jpg", quality=85, optimize=True)
        print(out / f"{name}.jpg")


def pictures(clip: Clip) -> dict[str, Image.Image]:
    """Return the pictures of a clip with three front and three back cameras, by name."""
    lidar = torch.from_numpy(np.array(lidar_on_images(clip, columns=6))).unflatten(1, (6, -1)).movedim(1, 0)
    images, seen = clip.images[0].movedim(2, -1), hide(clip)  # [T, V, H, W, 3]
    sheets = {
        "street": [images[-1, :3], images[-1, 3:]],
        "lidar": [lidar[:3], lidar[3:]],  # [V, H, W, 3]
        "hidden": [frame[:3] for frame in seen],
    }
    return {name: sheet(rows) for name, rows in sheets.items()}


def hide(clip: Clip) -> Tensor:
    """Return the clip's images [T, V, H, W, 3] with hidden patches grey."""
    visible = visible_patches(clip.seeds, clip.num_frames, clip.num_cameras, clip.image_size, HIDDEN_SHARE)[0]
    pixels = visible.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)  # [T, V, H, W]
    return torch.where(pixels[..., None], clip.images[0].movedim(2, -1), HIDDEN_GREY)


def sheet(rows: list[Tensor], gap: int = 4) -> Image.Image:
    """Put rows of images, [V, H, W, 3] each, on one white sheet."""
    views, height, width, _ = rows[0].shape
    pixels = torch.full((len(rows) * (height + gap) - gap, views * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (height + gap), column * (width + gap)
            pixels[top : top + height, left : left + width] = image
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    tyro.cli(main)
