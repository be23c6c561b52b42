"""The wait for data: training steps fed by the real loader against steps on one batch in memory."""

import dataclasses
import time
from itertools import islice
from pathlib import Path
from typing import Any

from mim4d.errors import UserError

from .cases import Case, make_model
from .speed import first_line, synchronize
from .stages import Step


class SkippedError(Exception):
    """Raised if this machine lacks a package that the measurement needs."""


def time_loading(case: Case, device: str, root: Path) -> dict[str, Any]:
    """Time a preset's steps with data from a synthetic world with images of nuScenes' size.

    Args:
        case: The preset.
        device: Where the steps run.
        root: Folder of the world, which is made if it does not exist.

    Returns:
        Milliseconds per step with and without the loader, their difference (the wait for data), and the throughput of
        the loader alone.

    Raises:
        SkippedError: If the nuscenes-devkit or another package of the synthetic world is not installed.
    """
    config = case.config()
    try:
        from mim4d.data import NuScenesClips, make_loader
        from mim4d.world import WorldConfig, make_world

        scale, keyframes, workers = (0.05, 3, 1) if case.toy else (1.0, 6, None)
        world = WorldConfig(scenes=1, scale=scale, keyframes=keyframes)
        make_world(root, "v1.0-mini", world, workers=workers)
        config = dataclasses.replace(
            config, dataroot=str(root), version="v1.0-mini", split="mini_train", sweeps=False, frame_gap=0.5, frames=3
        )
        clips = NuScenesClips(config.data_config("mini_train"))
    except (ImportError, UserError) as error:
        raise SkippedError(first_line(error)) from error
    warm, count = (1, 1) if case.toy else (6, 20)
    step = Step(make_model(config, device), config)
    arguments: dict[str, Any] = {"batch_size": config.batch_size, "seed": 0, "workers": config.workers}
    arguments |= {"steps": warm + count, "pin_memory": device == "cuda"}

    batches = iter(make_loader(clips, **arguments))
    for _ in islice(batches, warm):  # until the workers have started
        pass
    start = time.perf_counter()
    for _ in batches:
        pass
    alone = (time.perf_counter() - start) / count

    def steps(source: Any) -> float:
        for batch in islice(source, warm):
            step(batch.to(device, non_blocking=True))
        synchronize(device)
        start = time.perf_counter()
        for batch in source:
            step(batch.to(device, non_blocking=True))
        synchronize(device)
        return (time.perf_counter() - start) / count

    with_loader = steps(iter(make_loader(clips, **arguments)))
    clip = next(iter(make_loader(clips, **arguments | {"workers": 0, "pin_memory": False})))
    kept = clip.pin_memory() if device == "cuda" else clip
    in_memory = steps(iter([kept] * (warm + count)))
    return {
        "preset": case.preset,
        "workers": config.workers,
        "batch": config.batch_size,
        "loader_clips_per_s": config.batch_size / alone,
        "with_loader_ms": 1e3 * with_loader,
        "in_memory_ms": 1e3 * in_memory,
        "wait_ms": max(0.0, 1e3 * (with_loader - in_memory)),
    }
