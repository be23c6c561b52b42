"""Measure how fast clips load from disk, and how long the index of a full-size nuScenes takes to open.

    python benchmarks/loading.py --dataroot /data/nuscenes --version v1.0-mini --split mini_train

Loading runs in this process, so the figure is for one core; after the first round, files come from the page cache. The
large index is synthetic: 850 scenes of 20 s with six cameras at 12 Hz and a LiDAR at 20 Hz.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data import index as index_module
from mim4d.data.images import read_image
from mim4d.data.nuscenes import CAMERAS
from mim4d.data.tables import CALIBRATION, LIDAR, record_type

SCENES, SECONDS, CAMERA_HZ, LIDAR_HZ = 850, 20, 12, 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the reader of clips."""

    data: tyro.conf.OmitArgPrefixes[DataConfig]
    """Data to read."""
    rounds: int = 5
    """Number of clips to read."""


def time_clips(config: DataConfig, rounds: int) -> None:
    """Print the time per clip and per image."""
    dataset = NuScenesClips(config)
    dataset[0]
    start = time.process_time()
    for number in range(rounds):
        dataset[number % len(dataset)]
    clip = (time.process_time() - start) / rounds
    views = config.frames * len(config.cameras)
    print(f"clip of {config.frames} frames x {len(config.cameras)} cameras at {config.image_size}: {1e3 * clip:.1f} ms")
    print(f"  {1 / clip:.1f} clips/s per core; {views / 24 / clip:.1f} with the published 4 x 6 images")

    record = dataset.index.records[dataset.frames.cameras[0, 0]]
    path, size = dataset.root / record["file"].decode(), (int(record["size"][0]), int(record["size"][1]))
    start = time.process_time()
    for _ in range(20):
        read_image(path, size, config.image_size)
    print(f"image of {size[1]}x{size[0]}: {1e3 * (time.process_time() - start) / 20:.2f} ms")


def full_size_tables() -> tuple[dict, dict]:
    """Return synthetic tables of full size in the form of :func:`mim4d.data.tables.build_tables`."""
    channels = sorted([*CAMERAS, LIDAR])
    samples_per_scene = 2 * SECONDS
    times, bounds, samples, files = [], [], [], []
    rows = 0
    for channel in channels:
        rate = LIDAR_HZ if channel == LIDAR else CAMERA_HZ
        in_scene = np.arange(rate * SECONDS)
        bounds.append((rows + in_scene.size * np.arange(SCENES + 1)).tolist())
        rows += in_scene.size * SCENES
        for scene in range(SCENES):
            times.append(60_000_000 * scene + in_scene * (1_000_000 // rate))
            key = in_scene % (rate // 2) == 0
            samples.append(np.where(key, scene * samples_per_scene + in_scene // (rate // 2), -1))
        name = f"sweeps/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__1532402927647951.jpg"
        files += [name.encode()] * (in_scene.size * SCENES)
    records = np.zeros(rows, dtype=record_type(max(map(len, files))))
    records["time"], records["sample"] = np.concatenate(times), np.concatenate(samples)
    records["rotation"][:, 0] = 1
    records["size"], records["file"] = (900, 1600), files
    meta = {
        "scenes": sorted(f"scene-{number:04d}" for number in range(SCENES)),
        "channels": channels,
        "lidars": [LIDAR],
        "lens_faults": {},
        "splits": {"train": [f"scene-{number:04d}" for number in range(700)]},
        "record_bounds": bounds,
        "sample_bounds": (samples_per_scene * np.arange(SCENES + 1)).tolist(),
    }
    sample_times = 60_000_000 * np.arange(SCENES)[:, None] + 500_000 * np.arange(samples_per_scene)
    arrays = {
        "records": records,
        "calibrations": np.zeros(SCENES * len(channels), dtype=CALIBRATION),
        "samples": sample_times.ravel(),
    }
    return meta, arrays


def time_index() -> None:
    """Print how long the index takes to open on a second start with the full train split."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIM4D_CACHE"] = folder + "/cache"
        version = Path(folder, "v1.0-trainval")
        version.mkdir()
        (version / "scene.json").write_text("[]")
        index_module.build_tables = lambda root, version: full_size_tables()  # the tables are synthetic
        index = index_module.open_index(folder, version.name)
        megabytes = sum(file.stat().st_size for file in index.folder.iterdir()) / 1e6
        print(f"index of {len(index.records):,} images and sweeps: {megabytes:.0f} MB")
        for sweeps in (False, True):
            start = time.perf_counter()
            dataset = NuScenesClips(DataConfig(dataroot=folder, sweeps=sweeps))
            print(f"  opened in {time.perf_counter() - start:.2f} s: {len(dataset):,} clips, sweeps {sweeps}")


if __name__ == "__main__":
    options = tyro.cli(Options)
    torch.set_num_threads(1)
    if options.data.dataroot:
        time_clips(options.data, options.rounds)
    time_index()
