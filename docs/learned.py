"""Draw the depth that a run has learned, above the LiDAR that it has not seen.

python docs/learned.py RUN docs/evidence/learned.jpg
"""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from einops import rearrange
from PIL import Image
from torch import Tensor

from mim4d.clip import Clip
from mim4d.data.pictures import lidar_on_images
from mim4d.errors import UserError
from mim4d.io.files import make_folder
from mim4d.method.model import MIM4D
from mim4d.pretrain.datasets import open_data
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.trainer import trained_model

FAR = 40.0
"""Depth of the last colour, metres."""
GAP = 4
"""Pixels between pictures."""


def main(run: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], clip: int = 0) -> None:
    """Save a picture of three cameras: images, depth from nothing but these, and LiDAR.

    Args:
        run: Folder of a pretraining.
        out: JPEG file.
        clip: Number of the held-out clip to show, counted from 0.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    model = trained_model(folder, method=lambda method: MIM4D(replace(method, mask_ratio=0.0)))
    assert isinstance(model, MIM4D)
    _, held_out = open_data(config, Accelerator(cpu=True))
    if held_out is None:
        raise UserError(f"{run} has no held-out scenes: name them by --val-split")
    make_folder(out.parent)
    pictures = F.pad(rows(model.eval(), held_out[clip]), (0, 0, 0, GAP, 0, GAP), value=255)
    sheet = rearrange(pictures, "row view h w c -> (row h) (view w) c")[:-GAP, :-GAP]
    Image.fromarray(sheet.numpy()).save(out, quality=88, optimize=True)


@torch.no_grad()
def rows(model: MIM4D, clip: Clip) -> Tensor:
    """Return images, depth and LiDAR of the first three cameras in the current frame: [3, 3, H, W, 3]."""
    lidar = torch.from_numpy(np.array(lidar_on_images(clip, columns=clip.num_cameras, far=FAR)))
    lidar = lidar.unflatten(1, (clip.num_cameras, -1)).movedim(1, 0)  # [V, H, W, 3]
    log_depth = model.lift.log_depth(model.lift.depth(model.images(clip), clip))[0, -1]  # [V, h, w]
    depth = F.interpolate(log_depth[None], size=clip.image_size, mode="bilinear")[0].exp()  # [V, H, W]
    learned = torch.from_numpy(matplotlib.colormaps["turbo_r"](depth.numpy() / FAR, bytes=True)[..., :3].copy())
    return torch.stack([clip.images[0, -1].movedim(1, -1), learned, lidar])[:, :3]


if __name__ == "__main__":
    tyro.cli(main)
