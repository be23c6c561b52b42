"""Samples with labels: decoded images cached in memory, labels read once per task, fractions of a split."""

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

MEMORY = 8 << 30
"""Bytes that are kept of either split's decoded images, and of a frozen backbone's maps; what is beyond is read, or
made, anew."""


class Samples:
    """The key frames of a split, as clips of one frame, with what tasks keep of their truth."""

    def __init__(self, clips: NuScenesClips, annotations: Annotations) -> None:
        """Take the split's clips, of one frame each."""
        self._clips = clips
        frames, index = self._clips.frames, self._clips.index
        last = self._clips.clips[:, -1]
        reference = frames.lidar[last] if clips.has_lidar else frames.cameras[last, 0]
        self.scenes: tuple[int, ...] = tuple(frames.scenes[last].tolist())
        """Which scene each sample is of."""
        self.tokens: tuple[str, ...] = tuple(annotations.tokens[row] for row in index.records["sample"][reference])
        """Of the samples."""
        self._annotations = annotations
        self._images: dict[int, Clip] = {}
        self._truths: dict[tuple[str, Any], dict[int, Any]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.tokens)

    def clip(self, number: int) -> Clip:
        """A sample's images and cameras; LiDAR for probes alone."""
        clip = self._images.get(number)
        if clip is None:
            clip = self._clips[number]
            if len(self._images) * clip.images.numel() < MEMORY:
                self._images[number] = clip
        return clip

    def check(self, numbers: Sequence[int]) -> None:
        """Check that the files of samples exist.

        Raises:
            BadDataError: If one is not.
        """
        self._clips.check_files(numbers)

    def truth(self, task: Reader, key: Any, number: int) -> Any:
        """What ``task`` keeps of a sample; ``key`` tells its settings apart."""
        known = self._truths.setdefault((task.name, key), {})
        if number not in known:
            with self._lock:  # the devkit's tables are no place for two threads
                known[number] = task.read(self._annotations, self.tokens[number])
        return known[number]

    def share(self, share: float, seed: int) -> list[int]:
        """Numbers of a share of the samples, at least one; a smaller share is the beginning of a larger one.

        Scenes take turns in an order that the seed decides, each giving one of its samples at random: few labels are
        as varied as they can be.
        """
        rng = np.random.default_rng((seed, 1))
        by_scene = [rng.permutation(np.flatnonzero(np.array(self.scenes) == s)) for s in sorted(set(self.scenes))]
        scenes = rng.permutation(len(by_scene))
        longest = max(len(samples) for samples in by_scene)
        order = [int(by_scene[s][k]) for k in range(longest) for s in scenes if k < len(by_scene[s])]
        return order[: max(1, round(share * len(order)))]


class EvalData:
    """All that runs on one root with one image size can share; what they had to read or compute stays for the next."""

    def __init__(self, config: EvalConfig) -> None:
        """Open both splits of a complete config; a missing world is made first.

        Raises:
            UserError: If the root, version, a split or the annotations are not there.
        """
        self._of = _identity(config)
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
        if config.data == "synthetic":  # after a look at the settings: drawing takes minutes
            root = synthetic_root(config.dataroot, config.version, config.world)
            settings = dataclasses.replace(settings, dataroot=str(root))
        clips = [NuScenesClips(dataclasses.replace(settings, split=s)) for s in (config.split, config.val_split)]
        self.annotations = Annotations(root, config.version, clips[0].reference)
        self.train, self.val = (Samples(c, self.annotations) for c in clips)
        self._maps: tuple[Any, dict[tuple[str, int], list[Tensor]]] = (None, {})

    def check(self, config: EvalConfig) -> None:
        """Check that a complete config uses this data.

        Raises:
            ValueError: If it does not.
        """
        if _identity(config) != self._of:
            raise ValueError(f"this data was opened for {self._of}, not for {_identity(config)}")

    def maps(self, key: Any, encode: Callable[[Tensor], list[Tensor]]) -> "FeatureCache":
        """Return the cache of a frozen backbone's maps; it holds those of one ``key`` at a time."""
        if self._maps[0] != key:
            self._maps = (key, {})
        return FeatureCache(self, self._maps[1], encode)


def _identity(config: EvalConfig) -> tuple[Any, ...]:
    """What the clips and labels of a config follow from."""
    root = config.data, config.dataroot, config.version, config.split, config.val_split, config.world
    return *root, config.cameras, config.lidar, config.image_size, config.task == PROBE


class FeatureCache:
    """Maps of a frozen backbone, cached as float16 in host memory so that GPU memory stays free for the model."""

    def __init__(
        self, data: EvalData, known: dict[tuple[str, int], list[Tensor]], encode: Callable[[Tensor], list[Tensor]]
    ) -> None:
        self._data, self._known, self._encode = data, known, encode

    def __call__(self, split: str, numbers: Sequence[int], clip: Clip) -> list[Tensor]:
        """Maps [B*V, C_i, h_i, w_i] float32 of the samples of ``split`` ("train" or "val") that ``clip`` holds."""
        rows = []
        for place, number in enumerate(numbers):
            maps = self._known.get((split, number))
            if maps is None:
                maps = [m.clamp(-6e4, 6e4).half().cpu() for m in self._encode(clip.images[place].flatten(0, 1))]
                if len(self._known) * sum(2 * m.numel() for m in maps) < MEMORY:
                    self._known[split, number] = maps
            rows.append(maps)
        return [torch.cat(level).to(clip.device, non_blocking=True).float() for level in zip(*rows, strict=True)]
