"""Depth that a linear function reads off a backbone's maps, fitted by LiDAR of other moments of the same folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backbones.pyramid import pyramid_of
from ..data.index import open_index
from ..data.nuscenes import DataConfig, NuScenesClips
from ..errors import UserError
from ..eval.probe import DEPTHS, STRIDE, hold_back, nearest_depth, resampled
from ..eval.ridge import Gram, fit

MOMENTS = 8
"""Key frames that the linear function is fitted on."""


class Depth(NamedTuple):
    """Depth along the optical axis of N images, in the cells of a map."""

    read: Tensor
    """[N, h, w] metres, read off the backbone's maps."""
    measured: Tensor
    """[N, h, w] metres, of the nearest LiDAR point; inf without one."""


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of an image, pixels."""
    with Image.open(file) as image:
        return image.size


@torch.inference_mode()
def depth_by_probe(
    model: Any, normalise: Callable[[Tensor], Tensor], root: Path, files: Sequence[Path], images: Tensor
) -> Depth:
    """Fit ridge regression of log depth on the maps of key frames, and read the depth of other images.

    Args:
        model: A backbone from :func:`mim4d.backbones.named.open_backbone`.
        normalise: Maps images from 0 to 1 to the backbone's input.
        root: A folder in nuScenes format. Of several versions, the first one by name is used.
        files: The images to read depth from, key frames of ``root``; their moments are not fitted on.
        images: [N, 3, H, W] from 0 to 1, the same.

    Raises:
        UserError: If there are no tables, no LiDAR, or fewer than two other key frames.
    """
    versions = sorted(table.parent.name for table in root.glob("*/sample.json"))
    if not versions:
        raise UserError(f"{root} has no tables")
    height, width = images.shape[-2:]
    sizes = [size_of(file) for file in files]
    clips = NuScenesClips(
        DataConfig(
            dataroot=str(root),
            version=versions[0],
            split=",".join(open_index(root, versions[0]).scenes),
            frames=1,
            cameras=tuple(dict.fromkeys(file.parent.name for file in files)),
            image_size=(min(width * tall // wide for wide, tall in sizes), width),  # whole images, resized below
        )
    )
    if not clips.has_lidar:
        raise UserError(f"{root} has no LiDAR")
    rows = clips.frames.cameras[clips.clips[:, -1]]  # [clips, V]
    names = clips.index.records["file"][rows].astype(str)
    places = [np.argwhere(names == file.relative_to(root).as_posix()) for file in files]
    if not all(len(found) for found in places):
        raise UserError(f"the images are no key frames of {root / versions[0]}")
    shown = [(int(found[0, 0]), int(found[0, 1])) for found in places]  # clip and camera of each image
    others = sorted(set(range(len(clips))) - {number for number, _ in shown})
    if len(others) < 2:
        raise UserError(f"{root / versions[0]} has fewer than two other key frames")
    chosen = [others[place] for place in np.unique(np.linspace(0, len(others) - 1, MOMENTS).round().astype(int))]

    pyramid = pyramid_of(model)
    stride = next((stride for stride in pyramid.strides if stride >= STRIDE), pyramid.strides[-1])
    size = height // stride, width // stride

    def features(batch: Tensor) -> Tensor:
        """Maps of images [V, 3, H, W] from 0 to 1, side by side: [V, h, w, C]."""
        maps = model(normalise(batch))
        return torch.cat([resampled(maps[index].float(), size) for index in pyramid.indices], dim=1).movedim(1, -1)

    grams = [Gram(sum(pyramid.channels), 1) for _ in range(2)]
    held = hold_back([int(clips.frames.scenes[clips.clips[number, -1]]) for number in chosen])
    for number, back in zip(chosen, held, strict=True):
        clip = clips[number]
        depth = nearest_depth(clip.points[0, -1, : int(clip.num_points[0, -1])], clip, size).flatten()  # [V*h*w]
        seen = (depth >= DEPTHS[0]) & (depth <= DEPTHS[1])
        whole = F.interpolate(clip.images[0, -1].float() / 255, (height, width), mode="bilinear", antialias=True)
        x = features(whole).flatten(0, 2)  # [V*h*w, C]
        grams[back].add(x[seen], depth[seen, None].log())
    linear, _ = fit(grams[0], grams[1], slice(None))
    log_depth = features(images).double() @ linear.weight + linear.bias  # [N, h, w, 1]

    measured = []
    for number, camera in shown:
        clip = clips[number]
        points = clip.points[0, -1, : int(clip.num_points[0, -1])]
        measured.append(nearest_depth(points, clip, size)[camera].unflatten(0, size))
    return Depth(log_depth[..., 0].exp().clamp(*DEPTHS), torch.stack(measured))
