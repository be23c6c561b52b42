"""Probes of an encoder in training, on a few samples that stay in memory."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ..backbones.masked import masked_maps
from ..data import DataConfig, NuScenesClips
from ..method.model import MaskedModel
from .data import Samples
from .labels import Annotations
from .probe import ALL, ROWS, Observation, Observer, ProbeReader, hold_back, solve_probes

SAMPLES = (24, 12)
"""Samples to fit on and to score, evenly spaced over their splits."""


class OnlineProbe:
    """Scores the maps of an encoder by ridge probes, each time on the same samples."""

    def __init__(self, data: DataConfig, split: str, val_split: str) -> None:
        """Open the samples: key frames with their annotations.

        Args:
            data: Root, version, cameras and image size; the rest is replaced.
            split: Scenes to fit on.
            val_split: Scenes to score on.

        Raises:
            UserError: If there are no such scenes, or no annotations.
        """
        data = dataclasses.replace(data, frames=1, sweeps=False, lidar=True, points=True, on_error="raise")
        clips = [NuScenesClips(dataclasses.replace(data, split=name)) for name in (split, val_split)]
        annotations = Annotations(clips[0].root, data.version, clips[0].reference)
        self._samples = [Samples(each, annotations) for each in clips]
        self._reader = ProbeReader()
        fitted, self._scored = (
            np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist()
            for samples, count in zip(self._samples, SAMPLES, strict=True)
        )
        held = hold_back([self._samples[0].scenes[number] for number in fitted])
        self._fitted = [number for number, back in zip(fitted, held, strict=True) if not back]
        self._back = [number for number, back in zip(fitted, held, strict=True) if back]

    @torch.no_grad()
    def __call__(self, model: MaskedModel) -> dict[str, float]:
        """Return ``probe_<figure>`` for each of :data:`mim4d.eval.probe.FIGURES` that there is something to score for.

        Args:
            model: Its encoder is probed on whole images; back in its own mode afterwards.
        """
        observer = Observer(model.pyramid.strides, model.pyramid.channels)
        columns = {kind: {ALL: found[ALL]} for kind, found in observer.columns.items()}
        training = model.training
        model.eval()

        def observe(which: int, number: int, rows: int | None) -> Observation:
            samples = self._samples[which]
            clip = samples.clip(number).to(model.mean.device)
            return observer(
                _maps(model, clip.images[0, -1]), clip, samples.truth(self._reader, 2, number), rows, number
            )

        figures = solve_probes(
            columns,
            lambda: (observe(0, number, ROWS) for number in self._fitted),
            lambda: (observe(0, number, ROWS) for number in self._back),
            (observe(1, number, None) for number in self._scored),
        )[ALL]
        model.train(training)
        return {f"probe_{name}": value for name, value in figures.items() if value is not None}


def _maps(model: MaskedModel, images: Tensor) -> list[Tensor]:
    """Maps [V, C_i, h_i, w_i] of images [V, 3, H, W] uint8, all patches visible."""
    rows, columns = (side // model.patch for side in images.shape[-2:])
    visible = torch.ones(len(images), rows, columns, dtype=torch.bool, device=images.device)
    return masked_maps(model.encoder, (images.float() - model.mean) / model.std, visible, indices=model.pyramid.indices)
