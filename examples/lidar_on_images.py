"""Draw the LiDAR of one clip into its images, to check a data set by eye before training.

    python examples/lidar_on_images.py                # the demo's world or a tiny one, made if needed
    python examples/lidar_on_images.py --dataroot /data/nuscenes --version v1.0-mini --split mini_train

Points must lie on the objects that they belong to: poles, kerbs, cars. If not, poses, times or calibration are wrong.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.pictures import lidar_on_images
from mim4d.errors import UserError
from mim4d.flags import report_user_errors
from mim4d.roots import default_to_synthetic


def main(
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig(  # noqa: B008  # frozen
        version="v1.0-mini", split="mini_train", frames=1
    ),
    out: Path = Path("lidar_on_images.png"),
    clip: int = 0,
) -> None:
    """Draw and save the picture.

    Args:
        data: Data to read; without --dataroot, the demo's world or a tiny one.
        out: Picture file to write.
        clip: Number of the clip in the split; its last frame is drawn.
    """
    dataset = NuScenesClips(replace(default_to_synthetic(data), lidar=True))
    if not 0 <= clip < len(dataset):
        raise UserError(f"--clip {clip} does not exist: choose 0 to {len(dataset) - 1}")
    lidar_on_images(dataset[clip]).save(out)
    print(f"{dataset.name(clip)}: {out}")


if __name__ == "__main__":
    with report_user_errors():
        tyro.cli(main)
