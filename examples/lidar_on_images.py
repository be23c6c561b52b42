"""Look at a data set before training on it: draw the LiDAR of one clip into its images.

    python examples/lidar_on_images.py --dataroot /data/nuscenes --version v1.0-mini --split mini_train --out check.png

Points must lie on what they belong to: poles, kerbs, cars. If they do not, poses, times or calibration are wrong.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.pictures import lidar_on_images


def main(data: tyro.conf.OmitArgPrefixes[DataConfig], out: Path = Path("lidar_on_images.png"), clip: int = 0) -> None:
    """Write the picture.

    Args:
        data: What to read.
        out: The picture.
        clip: Which clip of the split; its last frame is drawn.
    """
    dataset = NuScenesClips(replace(data, lidar=True))
    lidar_on_images(dataset[clip]).save(out)
    print(f"{dataset.name(clip)}: {out}")


if __name__ == "__main__":
    tyro.cli(main)
