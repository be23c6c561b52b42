"""Look at a data set before training on it: draw the LiDAR of one clip into its images.

    python examples/lidar_on_images.py                # the demo's world, or a tiny one, drawn first
    python examples/lidar_on_images.py --dataroot /data/nuscenes --version v1.0-mini --split mini_train

Points must lie on what they belong to: poles, kerbs, cars. If they do not, poses, times or calibration are wrong.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.pictures import lidar_on_images
from mim4d.errors import UserError
from mim4d.flags import report_user_errors
from mim4d.roots import on_drawn_world


def main(
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig(  # noqa: B008  # frozen
        version="v1.0-mini", split="mini_train", frames=1
    ),
    out: Path = Path("lidar_on_images.png"),
    clip: int = 0,
) -> None:
    """Write the picture.

    Args:
        data: What to read; without --dataroot the demo's world and its training split, or a tiny one.
        out: The picture.
        clip: Which clip of the split; its last frame is drawn.
    """
    dataset = NuScenesClips(replace(on_drawn_world(data), lidar=True))
    if not 0 <= clip < len(dataset):
        raise UserError(f"--clip {clip}: they are counted from 0 to {len(dataset) - 1}")
    lidar_on_images(dataset[clip]).save(out)
    print(f"{dataset.name(clip)}: {out}")


if __name__ == "__main__":
    with report_user_errors():
        tyro.cli(main)
