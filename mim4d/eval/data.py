"""Samples of a split with their labels, cached in memory."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip
from ..data import DataConfig, NuScenesClips
from ..roots import synthetic_root
from .config import PROBE, EvalConfig
from .labels import Annotations
from .task import Reader

CACHE_BYTES = 8 << 30
"""Size of each cache: the decoded images of a split, and the maps of a frozen backbone. What does not fit is read or
computed again at every use."""


class Samples:
    """The key frames of a split: clips of one frame, and the ground truth that tasks read for them."""

    def __init__(self, clips: NuScenesClips, annotations: Annotations) -> None:
        """Wrap the clips of a split, one frame each, and the annotations of the root."""
        self._clips = clips
        frames, index = self._clips.frames, self._clips.index
        last = self._clips.clips[:, -1]
        reference = frames.lidar[last] if clips.has_lidar else frames.cameras[last, 0]
        self.scenes: tuple[int, ...] = tuple(frames.scenes[last].tolist())
        """Scene number of each sample."""
        self.tokens: tuple[str, ...] = tuple(annotations.tokens[row] for row in index.records["sample"][reference])
        """Token of each sample."""
        self._annotations = annotations
        self._images: dict[int, Clip] = {}
        self._truths: dict[tuple[str, Any], dict[int, Any]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.tokens)

    def clip(self, number: int) -> Clip:
        """Return the images and cameras of a sample; LiDAR too if the task is the probe."""
        clip = self._images.get(number)
        if clip is None:
            clip = self._clips[number]
            if len(self._images) * clip.images.numel() < CACHE_BYTES:
                self._images[number] = clip
        return clip

    def check(self, numbers: Sequence[int]) -> None:
        """Check that the files of samples exist.

        Raises:
            BadDataError: If a file does not exist.
        """
        self._clips.check_files(numbers)

    def truth(self, task: Reader, key: Any, number: int) -> Any:
        """Return the ground truth of a sample, read by ``task`` once per ``key`` (its settings)."""
        cached = self._truths.setdefault((task.name, key), {})
        if number not in cached:
            with self._lock:  # the devkit's tables are not thread-safe
                cached[number] = task.read(self._annotations, self.tokens[number])
        return cached[number]

    def fraction(self, fraction: float, seed: int) -> list[int]:
        """Choose a fraction of the samples, at least one, and return their numbers.

        One random sample of each scene is chosen before a second of any, so that few samples are as varied as possible.
        With the same seed, a smaller fraction is the beginning of a larger one.
        """
        rng = np.random.default_rng((seed, 1))
        by_scene = [rng.permutation(np.flatnonzero(np.array(self.scenes) == s)) for s in sorted(set(self.scenes))]
        scenes = rng.permutation(len(by_scene))
        longest = max(len(samples) for samples in by_scene)
        order = [int(by_scene[s][k]) for k in range(longest) for s in scenes if k < len(by_scene[s])]
        return order[: max(1, round(fraction * len(order)))]


class EvalData:
    """Data that runs on the same root and image size share, with caches of what was read or computed."""

    def __init__(self, config: EvalConfig) -> None:
        """Open both splits of a complete config; a missing synthetic world is made first.

        Raises:
            UserError: If the root, the version, a split or the annotations do not exist.
        """
        self._identity = _identity(config)
        root = Path(config.dataroot).expanduser()
        settings = DataConfig(
            dataroot=str(root),
            version=config.version,
            frames=1,
            cameras=config.cameras,
            points=config.task == PROBE,
            lidar_name=config.lidar,
            image_size=config.image_size,
        )
        if config.data == "synthetic":  # last: making a world takes minutes, and the settings are checked first
            root = synthetic_root(config.dataroot, config.version, config.world)
            settings = dataclasses.replace(settings, dataroot=str(root))
        clips = [NuScenesClips(dataclasses.replace(settings, split=s)) for s in (config.split, config.val_split)]
        self.annotations = Annotations(root, config.version, clips[0].reference)
        self.train, self.val = (Samples(c, self.annotations) for c in clips)
        self._maps_key: Any = None
        self._maps: dict[tuple[str, int], list[Tensor]] = {}

    def check(self, config: EvalConfig) -> None:
        """Check that a complete config uses this data.

        Raises:
            ValueError: If it uses other data.
        """
        if _identity(config) != self._identity:
            raise ValueError(f"this data was opened for {self._identity}, not for {_identity(config)}")

    def maps(self, key: Any, encode: Callable[[Tensor], list[Tensor]]) -> "FeatureCache":
        """Return the cache of a frozen backbone's maps; a new ``key`` (the backbone's settings) clears it."""
        if self._maps_key != key:
            self._maps_key, self._maps = key, {}
        return FeatureCache(self._maps, encode)


def _identity(config: EvalConfig) -> tuple[Any, ...]:
    """Return the settings that determine the clips and labels of a config."""
    root = config.data, config.dataroot, config.version, config.split, config.val_split, config.world
    return *root, config.cameras, config.lidar, config.image_size, config.task == PROBE


class FeatureCache:
    """Maps of a frozen backbone, cached as float16 in host memory so that GPU memory stays free for the model."""

    def __init__(self, cached: dict[tuple[str, int], list[Tensor]], encode: Callable[[Tensor], list[Tensor]]) -> None:
        self._cached, self._encode = cached, encode

    def __call__(self, split: str, numbers: Sequence[int], clip: Clip) -> list[Tensor]:
        """Return the maps of samples, computed where they are not cached.

        Args:
            split: ``train`` or ``val``.
            numbers: Numbers of B samples.
            clip: Their B clips.

        Returns:
            Maps [B*V, C_i, h_i, w_i] float32.
        """
        rows = []
        for place, number in enumerate(numbers):
            maps = self._cached.get((split, number))
            if maps is None:
                maps = [m.clamp(-6e4, 6e4).half().cpu() for m in self._encode(clip.images[place].flatten(0, 1))]
                if len(self._cached) * sum(2 * m.numel() for m in maps) < CACHE_BYTES:
                    self._cached[split, number] = maps
            rows.append(maps)
        with torch.autocast("cpu", enabled=False):  # which cannot join float16
            joined = [torch.cat(level) for level in zip(*rows, strict=True)]
        return [level.to(clip.device, non_blocking=True).float() for level in joined]
