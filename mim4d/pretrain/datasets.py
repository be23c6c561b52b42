"""The training and held-out clips of a run. Synthetic worlds are read in the same way as real data."""

import dataclasses
import logging

from accelerate import Accelerator

from ..data import NuScenesClips
from ..errors import BadDataError, UserError
from ..roots import synthetic_root
from ..settings import NO_SPLIT
from .config import PretrainConfig, held_out_split

logger = logging.getLogger(__name__)


def open_data(config: PretrainConfig, accelerator: Accelerator) -> tuple[NuScenesClips, NuScenesClips | None]:
    """Open the training clips and the held-out clips (None if there are none); a missing world is made first.

    Raises:
        UserError: If the root, version, split, cameras or a held-out split that is set do not exist, or if there is no
            LiDAR for ``rgbd``.
    """
    # A world and an index take minutes to hours to make. One process makes them, and the others wait for its file lock,
    # not for the process group, whose collectives time out.
    config.data_config(config.split)  # refuses bad settings before minutes of rendering
    if config.data == "synthetic":
        root = synthetic_root(config.dataroot, config.version, config.world)
        config = dataclasses.replace(config, dataroot=str(root))
    clips = NuScenesClips(config.data_config(config.split))
    if config.supervision == "rgbd" and not clips.has_lidar:
        raise UserError(f"{clips.root} has no LiDAR: train with --preset camera")
    split = held_out_split(config)
    if split == NO_SPLIT:
        return clips, None
    try:
        return clips, NuScenesClips(config.data_config(split, lidar=True))  # compared with LiDAR, if there is any
    except BadDataError:  # held-out scenes exist, but a file of them is missing or broken
        raise
    except UserError as error:
        if config.val_split:
            raise
        if accelerator.is_main_process:
            logger.warning("no evaluation: %s (name held-out scenes with --val-split)", error)
        return clips, None
