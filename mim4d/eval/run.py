"""A run of ``mim4d-eval``: train a head (and the backbone unless frozen), score it, and write the metrics."""

import dataclasses
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..clip import Clip
from ..data.loader import ClipSampler
from ..errors import UserError
from ..io.lock import locked_folder
from ..io.progress import Bar
from ..optim import lr_scale, make_optimizer, set_lr
from ..settings import plain, preset_lines
from ..version import __version__
from .augmentation import BEVAugmentation
from .config import PROBE, EvalConfig, complete
from .data import EvalData, Samples
from .detection import Detection
from .hdmap import HDMap
from .labels import write_json
from .model import RANDOM, BEVModel, make_encoder
from .pictures import Sample, pictured, save_picture
from .probing import ProbeRun
from .segmentation import Segmentation
from .task import Figures, Task

METRICS = "metrics.json"
EXAMPLES = 256
"""Training samples from which a head may initialise its output."""


def evaluate(config: EvalConfig, data: EvalData | None = None, *, quiet: bool = False) -> Figures:
    """Train and score one model, and write ``metrics.json``, ``picture.png`` and the files of the scores.

    Args:
        config: The settings.
        data: Data of an earlier run with the same root, splits and image size, to reuse its caches; None to open it.
        quiet: Whether to print nothing.

    Returns:
        The content of ``metrics.json``: the task's metrics by name, ``settings``, ``seconds`` and numbers of samples.

    Raises:
        UserError: If the settings, the data or the folder do not allow the run.
        ValueError: If ``data`` was opened for other settings.
    """
    config = complete(config)
    with _claimed(Path(config.out).expanduser()) as out:
        return _evaluate(config, out, data, quiet)


def _evaluate(config: EvalConfig, out: Path, data: EvalData | None, quiet: bool) -> Figures:
    began = time.monotonic()
    console = Console(stderr=True, highlight=False, quiet=quiet)
    # The backbone comes first: to open the data may take minutes, for large tables or a new synthetic world.
    encoder, loaded = seeded_encoder(config)
    if data is None:
        if config.task != PROBE:
            try:
                config.model.voxels(make_task(config).grid)
            except ValueError as error:
                raise UserError(str(error)) from error
        data = EvalData(config)
    data.check(config)
    run = ProbeRun(config, data, encoder) if config.task == PROBE else Run(config, data, encoder)
    trained_on, held_out = len(run.chosen), len(data.val)
    console.print(
        f"mim4d {__version__}: {config.task} with {config.backbone} ({config.init}, "
        f"{'frozen' if config.freeze else 'trained'}), {trained_on} of {len(data.train)} training samples, "
        f"{held_out} held out",
        markup=False,
        soft_wrap=True,
    )
    for line in [*filter(None, [loaded]), *preset_lines(config.preset, config.data, run.device.type)]:
        console.print(line, markup=False, soft_wrap=True)
    whole: Figures = {
        **run.run(out, console),
        "samples": trained_on,
        "val_samples": held_out,
        "seconds": round(time.monotonic() - began, 1),
        "mim4d": __version__,
        "settings": plain(dataclasses.asdict(config)),
    }
    write_json(out / METRICS, whole, indent=1)  # last, because it marks a complete result
    return whole


@contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """Make and lock the folder of a run. An interrupted run starts again.

    Raises:
        UserError: If the folder holds a result, is in use by another process, or cannot be made.
    """
    with locked_folder(out):
        if (out / METRICS).exists():
            raise UserError(f"{out} already holds a result: set another --out")
        yield out


def make_task(config: EvalConfig) -> Task:
    """Build the task that a config names."""
    if config.task == "bev-seg":
        return Segmentation(config.min_visibility)
    return Detection() if config.task == "det3d" else HDMap()


def seeded_encoder(config: EvalConfig) -> tuple[nn.Module, str]:
    """Build the backbone of a run, with random weights that depend on the seed only.

    Returns:
        The backbone, and a line for the log as :func:`mim4d.eval.model.make_encoder` returns it.

    Raises:
        UserError: If the backbone does not exist, or its weights or maps cannot be used.
    """
    torch.manual_seed(config.seed)
    return make_encoder(config.backbone, config.init, image_size=config.image_size)


class Run:
    """One run: data, model and optimiser."""

    def __init__(self, config: EvalConfig, data: EvalData, encoder: nn.Module) -> None:
        """Build the run.

        Args:
            config: Complete settings.
            data: The data that they name.
            encoder: The backbone, see :func:`seeded_encoder`. The run trains or freezes it.

        Raises:
            UserError: If the settings make no model, a file or map is missing, or the held-out split cannot be scored.
        """
        self.config, self.data = config, data
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = make_task(config)
        self._scores = self.task.scores(data.annotations, config.val_split)
        self.chosen = data.train.fraction(config.labels, config.seed)
        torch.manual_seed(config.seed + 1)  # heads start the same, however many numbers the backbone drew
        examples = (self.truth(data.train, number) for number in self.chosen[:EXAMPLES])
        try:
            head = self.task.head(config.model.channels, config.model.coarse, examples)
            model = BEVModel(config.model, encoder, self.task.grid, head)
        except ValueError as error:
            raise UserError(f"these settings make no model: {error}") from error
        self.model = model.to(self.device)
        self.model.encoder.requires_grad_(not config.freeze)
        if not config.freeze:
            # Faster convolutions; a frozen backbone runs once per sample, where that does not matter.
            self.model.encoder.to(memory_format=torch.channels_last)
        self._train_mode()
        self.optimizer = make_optimizer(self.model, config.optim)
        decay = config.optim.ema_decay
        self.ema = ModelEmaV3(self.model, decay=decay, use_warmup=True) if decay else None
        # All runs with the same frozen backbone share its cached maps.
        seed = config.seed if config.init == RANDOM else None
        key = (config.backbone, config.init, seed, config.model.neck.stages, config.image_size, config.precision)
        self.maps = data.maps(key, self._encode) if config.freeze else None
        # Missing files are reported now, not after hours of training.
        data.train.check(self.chosen)
        data.val.check(range(len(data.val)))
        for number in range(len(data.val)):
            self.truth(data.val, number)

    @property
    def best(self) -> BEVModel:
        """The model to score: the average of its weights if there is one."""
        return self.ema.module if self.ema else self.model

    def run(self, out: Path, console: Console) -> Figures:
        """Train and score, and write ``losses.json``, ``picture.png`` and the files of the scores into ``out``."""
        losses = self.train(console)
        figures = self.score(out, console)
        write_json(out / "losses.json", losses)
        save_picture(self.task, self.samples(pictured(len(self.data.val))), out / "picture.png")
        return {**figures, "loss": losses[-1]}

    def train(self, console: Console) -> list[float]:
        """Run all steps and return their losses.

        Raises:
            UserError: If it is not finite.
        """
        with Bar(console, "step", total=self.config.steps) as bar:
            return self._train(bar)

    def _train(self, bar: Bar) -> list[float]:
        config = self.config
        losses: list[Tensor] = []
        shown = time.monotonic()
        for step, (numbers, clip, targets) in enumerate(self._batches(), 1):
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]))
            set_lr(self.optimizer, lr_scale(step, config.steps, config.optim))
            loss = self.task.loss(self._predict(self.model, "train", numbers, clip), targets)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.model, step=step)
            losses.append(loss.detach())
            if time.monotonic() - shown > 5 or step in (1, config.steps):
                shown = time.monotonic()
                if not torch.isfinite(losses[-1]):
                    raise UserError(f"the loss is {float(losses[-1])} at step {step}: lower --optim.lr")
                bar.update(step, config.steps, f"loss {float(losses[-1]):.3f}")
        return torch.stack(losses).tolist()

    def score(self, out: Path, console: Console) -> Figures:
        """Score the held-out samples."""
        model = self.best.eval()
        size, count = self.config.batch_size, len(self.data.val)
        with Bar(console, "held-out sample", total=count) as bar:
            for first in range(0, count, size):
                numbers = list(range(first, min(first + size, count)))
                output = self.predict(model, "val", numbers)
                truths = [self.truth(self.data.val, number) for number in numbers]
                self._scores.add(output, truths, [self.data.val.tokens[number] for number in numbers])
                bar.update(numbers[-1] + 1, count)
        return self._scores.result(out)

    @torch.no_grad()
    def predict(self, model: BEVModel, split: str, numbers: list[int]) -> Any:
        """Predict samples of a split without augmentation."""
        samples = self.data.train if split == "train" else self.data.val
        return self._predict(model, split, numbers, Clip.collate([samples.clip(number) for number in numbers]))

    def truth(self, samples: Samples, number: int) -> Any:
        """Return the task's ground truth of a sample."""
        return samples.truth(self.task, self.config.min_visibility, number)

    def samples(self, numbers: list[int]) -> list[Sample]:
        """Held-out samples with their truth and the best weights' output."""
        model, val = self.best.eval(), self.data.val
        return [Sample(val.clip(n), self.truth(val, n), self.predict(model, "val", [n])) for n in numbers]

    def _predict(self, model: BEVModel, split: str, numbers: list[int], clip: Clip) -> Any:
        clip = clip.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            maps = self.maps(split, numbers, clip) if self.maps else None
            return model(clip, maps)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> list[Tensor]:
        return self.model.encode(images)

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.freeze:
            self.model.encoder.eval()  # its norms keep their statistics, too

    def _batches(self) -> Iterator[tuple[list[int], Clip, list[Any]]]:
        """Yield sample numbers, augmented clips and targets of each step, read ahead by threads."""
        config = self.config
        sampler = ClipSampler(len(self.chosen), batch_size=config.batch_size, steps=config.steps, seed=config.seed)
        if not config.workers:
            yield from map(self._batch, sampler)
            return
        with ThreadPoolExecutor(config.workers) as pool:
            waiting: list[Future[Any]] = []
            for draws in sampler:
                waiting.append(pool.submit(self._batch, draws))
                if len(waiting) > config.workers:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _batch(self, draws: list[tuple[int, int]]) -> tuple[list[int], Clip, list[Any]]:
        numbers, clips, targets = [], [], []
        for place, seed in draws:
            number = self.chosen[place]
            augmentation = BEVAugmentation.draw(seed, self.config.turn) if self.config.turn else BEVAugmentation.none()
            numbers.append(number)
            clips.append(augmentation.clip(self.data.train.clip(number)))
            targets.append(self.task.target(self.truth(self.data.train, number), augmentation))
        return numbers, Clip.collate(clips), targets


def read_figures(out: Path) -> Figures | None:
    """Read the metrics of a finished run; None if there are none yet."""
    file = out / METRICS
    return json.loads(file.read_text()) if file.is_file() else None
