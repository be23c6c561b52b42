"""``mim4d-eval --task probe``: ridge probes of a frozen backbone on the samples of a root."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from ..backbones.pyramid import pyramid_of
from ..errors import UserError
from ..io.progress import Bar
from .config import EvalConfig
from .data import EvalData
from .model import RANDOM, pixel_statistics
from .probe import ALL, ROWS, Observation, Observer, ProbeReader, hold_back, solve_probes, table
from .task import Figures


class ProbeRun:
    """One run: a frozen backbone, and the samples that it is probed on."""

    def __init__(self, config: EvalConfig, data: EvalData, encoder: nn.Module) -> None:
        """Build the run.

        Args:
            config: Complete settings.
            data: The data that they name.
            encoder: The backbone, see :func:`mim4d.eval.model.make_encoder`.

        Raises:
            UserError: If a file is missing, or fewer than two samples are left to fit on.
        """
        self.config, self.data = config, data
        self.chosen = data.train.fraction(config.labels, config.seed)
        if len(self.chosen) < 2:
            raise UserError(
                f"labels = {config.labels} leaves {len(self.chosen)} of {len(data.train)} training samples: a probe "
                "needs two, one of them to choose the penalty"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = encoder.eval().requires_grad_(False).to(self.device)
        self._mean, self._std = (x.to(self.device) for x in pixel_statistics(encoder))
        self._pyramid = pyramid_of(encoder)
        self._observer = Observer(self._pyramid.strides, self._pyramid.channels)
        self._reader = ProbeReader(config.min_visibility)
        seed = config.seed if config.init == RANDOM else None
        key = ("probe", config.backbone, config.init, seed, config.image_size, config.precision)
        self._maps = data.maps(key, self._encode)
        data.train.check(self.chosen)
        data.val.check(range(len(data.val)))

    def run(self, out: Path, console: Console) -> Figures:
        """Solve and score the probes; nothing is written into ``out``.

        Returns:
            The figures of all maps together, and under ``features`` those of each kind of features alone.
        """
        del out
        chosen = sorted(self.chosen)  # by scene and time
        held = hold_back([self.data.train.scenes[number] for number in chosen])
        fitted = [number for number, back in zip(chosen, held, strict=True) if not back]
        back = [number for number, back in zip(chosen, held, strict=True) if back]
        held_out = range(len(self.data.val))
        total, done = len(fitted) + 2 * len(back) + len(held_out), 0
        with Bar(console, "sample", total=total) as bar:

            def counted(observations: Iterator[Observation]) -> Iterator[Observation]:
                nonlocal done
                for observation in observations:
                    yield observation
                    done += 1
                    bar.update(done, total)

            rows = solve_probes(
                self._observer.columns,
                lambda: counted(self._observe("train", fitted, ROWS)),
                lambda: counted(self._observe("train", back, ROWS)),
                counted(self._observe("val", held_out, None)),
            )
        for line in table(rows):
            console.print(line, markup=False, soft_wrap=True)
        return {**rows[ALL], "features": rows}

    @torch.no_grad()
    def _observe(self, split: str, numbers: Sequence[int], rows: int | None) -> Iterator[Observation]:
        samples = self.data.train if split == "train" else self.data.val
        for number in numbers:
            clip = samples.clip(number).to(self.device)
            truth = samples.truth(self._reader, self.config.min_visibility, number)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                maps = self._maps(split, [number], clip)
            yield self._observer(maps, clip, truth, rows, seed=number)

    def _encode(self, images: Tensor) -> list[Tensor]:
        maps = self.encoder((images.float() - self._mean) / self._std)
        return [maps[index] for index in self._pyramid.indices]
