"""The training run: builds data, model and optimiser, runs the steps, evaluates and saves.

The same code runs on a CPU or a GPU, in one process or several (``torchrun``, ``accelerate launch``), in float32 or
bfloat16. A step depends only on the weights, the step's number and the seed. So a resumed run equals an uninterrupted
one bit for bit, and W processes with batches of b clips compute the same steps as one with batches of W * b.
"""

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from timm.utils import ModelEmaV3
from torch import Tensor

from ..backbones.weights import initialise
from ..clip import Clip
from ..data import NuScenesClips, count_substitutes, evaluation_clips, make_evaluation_loader, make_loader
from ..data.loader import check_limits, usable_cores
from ..errors import BadDataError, UserError, WeightsError
from ..flags import installed
from ..hub.folder import CARD, save_encoder
from ..io.lock import locked_folder
from ..io.progress import duration
from ..io.tensors import read_tensors
from ..method.lift import reach, reach_line
from ..method.model import MIM4D, MaskedModel, ModelConfig
from ..optim import lr_scale, make_optimizer, set_lr
from ..settings import flatten, plain, preset_lines
from ..version import __version__
from .checkpoint import check_checkpoint, first_not_finite, load_checkpoint, load_strict, newest_whole, save_checkpoint
from .config import SCRATCH, PretrainConfig, complete, to_dict
from .datasets import open_data
from .evaluate import evaluate
from .folder import RunFolder
from .gradients import encoder_gradients
from .logs import RunLog, read_metrics
from .meter import Meter, join
from .pictures import save_animation, save_picture
from .processes import StopAgreement, StopSignal, average_statistics, end_all, on_main, own_settings
from .provenance import license_of_run, provenance
from .report import State, write_report
from .trackers import TENSORBOARD, Tracker

Method = Callable[[ModelConfig], MaskedModel]
"""Builds the model of a run from its settings."""
ANIMATED = 12
"""Largest number of frames in the animation at the end of a run."""


def train(config: PretrainConfig, *, resume: bool = False, method: Method = MIM4D) -> Path:
    """Pretrain a model and export its encoder.

    Args:
        config: The settings.
        resume: Resume the run in ``config.out`` from its newest checkpoint.
        method: Builds the model. Pass another one to compare it under the same conditions.

    Returns:
        The run folder; its ``encoder/`` is the pretrained backbone.

    Raises:
        UserError: If the settings, the data or the machine do not allow the run; checkpoints are not deleted.
        SystemExit: On SIGINT or SIGTERM, after a checkpoint was saved, with 128 + the signal's number. With code 2 on
            all processes except the main one if the main one raises UserError.
    """
    config = complete(config)
    accelerator = make_accelerator(config)
    root = Path(config.out).expanduser()
    with ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(locked_folder(root)))
        Trainer(config, resume=resume, method=method, accelerator=accelerator).run()
    return root


def make_accelerator(config: PretrainConfig) -> Accelerator:
    """Set up the processes, device and precision of a run."""
    precision, accumulate = "bf16" if config.precision == "bf16" else "no", config.optim.accumulate
    own = {
        "ACCELERATE_MIXED_PRECISION": (precision, f"--precision {config.precision}"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (str(accumulate), f"--optim.accumulate {accumulate}"),
    }
    with own_settings(own):
        return Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=accumulate,
            cpu=not torch.cuda.is_available(),
            # DDP would broadcast the main process's BatchNorm statistics: train_step averages those of all processes.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
        )


class Trainer:
    """One run whose settings and data have been checked."""

    def __init__(
        self,
        config: PretrainConfig,
        *,
        resume: bool = False,
        method: Method = MIM4D,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Build the run; see :func:`train`, which also locks the run folder, for arguments and errors."""
        self.config = config = complete(config)
        self.folder = RunFolder(Path(config.out).expanduser())
        self.folder.check(config, resume=resume)
        self.accelerator = accelerator = accelerator or make_accelerator(config)
        # The model comes before the data: opening the data may make a synthetic world, which takes minutes.
        newest = on_main(accelerator, lambda: newest_whole(self.folder.checkpoints)) if resume else None
        self.model, loaded = first_model(config, read_init=newest is None, method=method)
        clips, held_out = open_data(config, accelerator)
        self._clips = clips.digest()
        self.model.to(accelerator.device)
        decay = config.optim.ema_decay
        self.ema = ModelEmaV3(self.model, decay=decay, use_warmup=True) if decay else None
        self.optimizer = make_optimizer(self.model, config.optim)
        self.start = load_checkpoint(newest, **self._state()) if newest else 0
        if self.start > config.steps:
            raise UserError(f"{config.out} has already reached step {self.start}: raise --steps {config.steps}")
        source = (
            f"{newest}; remove it to resume from the one before" if newest else f"the weights of --init {config.init}"
        )
        self._check_weights(f"in {source}")
        with warnings.catch_warnings():  # accelerate always passes the setting by its old name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.wrapped, self.stepper = accelerator.prepare(self.model, self.optimizer)

        # The loaders divide clips among the processes themselves, so they are not passed to accelerate.
        loading: dict[str, Any] = {
            "batch_size": config.batch_size,
            "seed": config.seed,
            "workers": min(config.workers, usable_cores()),
            "pin_memory": accelerator.device.type == "cuda",
            "num_processes": accelerator.num_processes,
            "process_index": accelerator.process_index,
        }
        batches = config.steps * config.optim.accumulate
        self.loader = make_loader(clips, steps=batches, start_step=self.start * config.optim.accumulate, **loading)
        self.held_out = make_evaluation_loader(held_out, count=config.eval_clips, **loading) if held_out else None
        check_limits([self.loader, self.held_out] if self.held_out else [self.loader])
        self._probe: Callable[[MaskedModel], dict[str, float]] | None = None
        if config.probe_every:
            on_main(accelerator, lambda: self._open_probe(clips, held_out))
        self._drawn = held_out or clips
        self.shown = self._drawn[evaluation_clips(self._drawn, 1, config.seed)[0]]

        on_main(accelerator, lambda: self.folder.open(config))
        main = accelerator.is_main_process
        trackers: list[Tracker] = []
        on_main(accelerator, lambda: trackers.extend(self._open_trackers()))
        board = TENSORBOARD in config.trackers
        self.log = RunLog(
            self.folder.root, steps=config.steps, start=self.start, main=main, tensorboard=board, trackers=trackers
        )
        self.meter = Meter(accelerator, seconds=self.log.last("seconds"), skipped=self.log.last("skipped"))
        self._seconds_before = self.log.last("seconds")
        self.agreement = StopAgreement(accelerator, self.start)
        self._warned = False
        self._batches: list[Clip] = []
        self._license = license_of_run(config)  # now, because its sources may not exist at the end
        self._introduce(loaded, len(clips), len(held_out) if held_out else 0)

    def _open_probe(self, clips: NuScenesClips, held_out: NuScenesClips | None) -> None:
        """Read the samples that ``probe_every`` needs.

        Raises:
            UserError: If there are no held-out scenes or no annotations.
        """
        from ..eval.online import OnlineProbe  # needs the nuscenes-devkit; runs without probes do not

        if held_out is None:
            raise UserError(f"probe_every = {self.config.probe_every} needs held-out scenes: name them by --val-split")
        self._probe = OnlineProbe(clips.config, clips.config.split, held_out.config.split)

    def _open_trackers(self) -> list[Tracker]:
        """Start or resume the run of each tracker other than TensorBoard."""
        settings = flatten(to_dict(self.config))
        names = [name for name in self.config.trackers if name != TENSORBOARD]
        return [Tracker(name, self.folder.root, settings) for name in names]

    def run(self) -> None:
        """Run the remaining steps, then export the encoder."""
        with self.log, StopSignal() as stop:
            try:
                self._run(stop)
            except UserError as error:
                # If other processes have ended, the launcher sends SIGTERM: StopSignal must be active meanwhile.
                if self.accelerator.is_main_process:
                    with suppress(UserError, OSError):  # report the first error only
                        self._report("stopped", str(error))
                raise
        self.accelerator.end_training()

    def _run(self, stop: StopSignal) -> None:
        on_main(self.accelerator, lambda: self._report("running"))
        clips = iter(self.loader)
        for step in range(self.start + 1, self.config.steps + 1):
            self.train_step(step, clips)
            self.after_step(step, stop)
        on_main(self.accelerator, self._finish)
        self.log.end()
        for line in next_steps(self.folder, config=self.config):
            self.log.say(line, to_copy=True)

    def train_step(self, step: int, clips: Iterator[Clip]) -> None:
        """Run one optimiser step without waiting for the device.

        Args:
            step: Number of the step, from 1.
            clips: Iterator of batches; ``optim.accumulate`` of them are used.
        """
        config, accelerator = self.config, self.accelerator
        # Only stochastic depth uses torch's generator; all other randomness follows from the clips' seeds.
        torch.manual_seed(_step_seed(config.seed, step, accelerator.process_index))
        set_lr(self.optimizer, lr_scale(step, config.steps, config.optim))
        batches: list[dict[str, Tensor]] = []
        names: tuple[str, ...] = ()
        skipped = 0
        for _ in range(config.optim.accumulate):
            clip = next(clips)
            names, skipped = names + clip.names, skipped + count_substitutes(clip)
            if self._splits_gradients(step):
                self._batches.append(clip)
            with accelerator.accumulate(self.wrapped):
                values = self.wrapped(clip.to(accelerator.device, non_blocking=True))
                accelerator.backward(values["loss"])
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.optim.clip_norm)
                self.stepper.step()
                self.stepper.zero_grad()
            batches.append({name: value.detach() for name, value in values.items()})
        average_statistics(self.model, accelerator)
        if self.ema:
            self.ema.update(self.model, step=step)
        self.meter.add(step, join(batches) | {"grad_norm": grad_norm}, names, skipped)
        self.log.step(step)

    def after_step(self, step: int, stop: StopSignal) -> None:
        """Log, evaluate, draw and save if it is time, after a check that losses and weights are finite."""
        config, accelerator = self.config, self.accelerator
        logs = step == 1 or self._due(step, config.log_every)
        evaluates = self.held_out is not None and self._due(step, config.eval_every)
        draws, saves = self._due(step, config.picture_every), self._due(step, config.save_every)
        received = self.agreement.after(step, stop.received)
        probes = self._due(step, config.probe_every)
        if not (logs or evaluates or probes or draws or saves or received):
            return
        newest = self.folder.newest()
        remedy = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        row = self.meter.read(remedy)
        if evaluates or probes or draws or saves or received:
            self._check_weights(f"after step {step}: lower --optim.lr; {remedy}")
        row["lr"] = config.optim.lr * lr_scale(step, config.steps, config.optim)
        if self.held_out is not None and evaluates:
            row |= evaluate(self._best(), self.held_out, accelerator)
        if probes:
            row |= on_main(accelerator, lambda: self._probe(self._best()) if self._probe else {})
        if self._batches and (logs or evaluates):
            row |= encoder_gradients(self.model, self._batches, accelerator)
        self._batches = []
        if logs or evaluates or probes:
            self.log.row(row)
            if step == self.start + 1 and self._slow():
                seconds = row["seconds"] - self._seconds_before
                left = duration(seconds * (config.steps - step))
                self.log.say(f"step {step} took {duration(seconds)} on the CPU: {left} left at this rate")
            if row.get("rays") == 0 and not self._warned:
                self._warned = True
                self.log.say(
                    f"warning: at step {step} no LiDAR point falls on any image, so it trained nothing: check the "
                    "calibration, and that --method.grid covers what the cameras see"
                )
        if draws:
            on_main(accelerator, lambda: self._draw(step))
        if not received:
            received = max(gather_object([stop.received]))
            if received:  # after the check of the weights above
                self._check_weights(f"after step {step}: lower --optim.lr; {remedy}")
        if saves or received:
            on_main(accelerator, lambda: self._save(step))
        if received:
            message = f"stopped after step {step}; resume with --resume --out {config.out}"
            on_main(accelerator, lambda: self._report("stopped", message))
            self.log.say(message)
            raise SystemExit(128 + received)
        if evaluates or draws or saves:
            on_main(accelerator, lambda: self._report("running"))
        self.meter.restart_clock()

    def _slow(self) -> bool:
        """Return whether settings made for a GPU run on the CPU."""
        return self.accelerator.device.type == "cpu" and self.config.preset != "demo"

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.config.steps)

    def _splits_gradients(self, step: int) -> bool:
        """Return whether to log the encoder's gradient per loss term: at the first step, and where the run pauses."""
        evaluates = self.held_out is not None and self._due(step, self.config.eval_every)
        return step == 1 or evaluates or self._due(step, self.config.picture_every)

    def _best(self) -> MaskedModel:
        """Return the model to evaluate and export: the one with averaged weights if there is an average."""
        return self.ema.module if self.ema else self.model

    def _state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores, and the identity that it is checked against."""
        per_step = self.config.batch_size * self.config.optim.accumulate * self.accelerator.num_processes
        identity = flatten(plain(dataclasses.asdict(self.model.config)))
        identity |= {"clips_per_step": per_step, "clips": self._clips}
        ema = self.ema.module if self.ema else None
        return {"model": self.model, "optimizer": self.optimizer, "ema": ema, "identity": identity}

    def _check_weights(self, where: str) -> None:
        """End all processes if a weight is NaN or infinite, before it is saved, drawn, evaluated or exported.

        Args:
            where: End of the message: where the tensor was found and what to do.

        Raises:
            UserError: On the main process; it names the first such tensor.
            SystemExit: With code 2 on the others.
        """
        ema = self.ema.module if self.ema else None
        found = next(filter(None, gather_object([first_not_finite(self.model, self.optimizer, ema)])), None)
        if found:
            end_all(self.accelerator, f"{found} is not finite {where}")

    def _save(self, step: int) -> None:
        save_checkpoint(self.folder.checkpoints, step, keep=self.config.keep, **self._state())

    def _draw(self, step: int) -> None:
        path = self.folder.pictures / f"step_{step:08d}.png"
        model = self._best()
        assert isinstance(model, MIM4D)  # others are run without pictures
        with self.accelerator.autocast():
            save_picture(model, self.shown.to(self.accelerator.device), path)
        self.log.picture(step, path)

    def _animate(self) -> None:
        model, device = self._best(), self.accelerator.device
        assert isinstance(model, MIM4D)  # others are run without pictures
        clips = (self._drawn[number].to(device) for number in range(min(ANIMATED, len(self._drawn))))
        try:
            with self.accelerator.autocast():
                save_animation(model, clips, self.folder.animation)
        except BadDataError as error:  # in a clip that is only read here; the run is complete
            self.log.say(f"warning: no {self.folder.animation.name}: {error}")

    def _report(self, state: State, reason: str = "") -> None:
        write_report(self.folder, self.config, state=state, held_out=self.held_out is not None, reason=reason)

    def _finish(self) -> None:
        self._export()
        if self.config.picture_every:
            self._animate()
        self._report("finished")

    def _export(self) -> None:
        config, card = self.config, self.folder.encoder / CARD
        save_encoder(
            self._best().encoder,
            self.folder.encoder,
            image_size=config.image_size,
            license=self._license,
            provenance=provenance(
                config, read_metrics(self.folder.metrics), self._state()["identity"]["clips_per_step"]
            ),
            card=card.read_bytes() if card.is_file() else None,
        )

    def _introduce(self, loaded: str, clips: int, held_out: int) -> None:
        config, accelerator = self.config, self.accelerator
        encoder, whole = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (self.model.encoder, self.model))
        height, width = config.image_size
        batch = self._state()["identity"]["clips_per_step"]
        self.log.say(f"mim4d {__version__}: {config.model}, {encoder:.1f} M of the model's {whole:.1f} M parameters")
        self.log.say(f"weights: {loaded}" if not self.start else f"weights: checkpoint of step {self.start}")
        self.log.say(
            f"data: {clips} clips of {config.frames} frames x {len(config.cameras)} cameras at {width}x{height} "
            f"({config.data}, {config.version}, {config.split}), {held_out} held out"
        )
        self.log.say(
            f"run: steps {self.start + 1} to {config.steps} of {batch} clips, {accelerator.num_processes} x "
            f"{accelerator.device.type}, {config.precision}, in {self.folder.root}"
        )
        for line in preset_lines(config.preset, config.data, accelerator.device.type):
            self.log.say(line)
        if isinstance(self.model, MIM4D) and accelerator.is_main_process:
            self.log.say(reach_line(reach(self.model.lift, self.shown)))


def next_steps(folder: RunFolder, config: PretrainConfig) -> list[str]:
    """Return the last lines of a run's output: the path of its report, and commands to copy."""
    data = ["--data", "synthetic"] if config.data == "synthetic" else ["--data", "nuscenes"]
    data += ["--dataroot", config.dataroot] if config.dataroot else []
    if config.preset != "demo" or config.data != "synthetic":
        data += ["--version", config.version]
    score = ["--task", "bev-seg", "--backbone", str(folder.root), "--freeze", *data, "--out", f"{folder.root}-eval"]
    curves = f"curves:   {shlex.join([installed('tensorboard'), '--logdir', str(folder.root)])}"
    return [
        f"done; see {folder.report}",
        *([curves] if TENSORBOARD in config.trackers else []),
        f"score it: {shlex.join([installed('mim4d-eval'), *score])}",
        f"use it:   {folder.timm_line()}",
    ]


def first_model(config: PretrainConfig, *, read_init: bool, method: Method = MIM4D) -> tuple[MaskedModel, str]:
    """Build the initial model of a run on the CPU.

    Args:
        config: The settings.
        read_init: Whether to read ``config.init``; not needed if a checkpoint is loaded afterwards.
        method: Builds the model.

    Returns:
        The model, and one line on the source of its weights.

    Raises:
        UserError: If the settings make no model, or the weights do not fit it.
    """
    torch.manual_seed(config.seed)
    try:
        model = method(config.model_config())
    except ValueError as error:
        raise UserError(f"these settings make no model: {error}") from error
    if config.init != SCRATCH:
        model.hold_statistics()
    if config.init == SCRATCH or not read_init:
        return model, SCRATCH
    try:
        return model, initialise(model.encoder, config.init)
    except WeightsError as error:
        raise UserError(f"--init {config.init}: {error}") from error


def trained_model(folder: RunFolder, *, method: Method = MIM4D) -> MaskedModel:
    """Load a run's model from its newest checkpoint on the CPU, with averaged weights if there is an average.

    Args:
        folder: Folder of the run.
        method: Builds the model, as in the run.

    Raises:
        UserError: If there is no run or no checkpoint, or the checkpoint does not fit.
    """
    config = folder.read_config()
    newest = folder.newest()
    if newest is None:
        raise UserError(f"{folder.root} has no checkpoint")
    model, _ = first_model(config, read_init=False, method=method)
    weights = newest / ("ema.safetensors" if config.optim.ema_decay else "model.safetensors")
    check_checkpoint(newest, weights.name)
    load_strict(model, read_tensors(weights), weights)
    return model


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])
