"""Weights & Biases and MLflow, by accelerate's trackers: one run there per run folder, resumed with it."""

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker

from ..errors import UserError
from ..io.files import write_file

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""The one kind of log that the run folder holds itself."""
PACKAGES = {TENSORBOARD: "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The module that each value of ``log_with`` needs; the extra of the package has its name."""
RETRY = 600.0
"""Seconds without another try after a tracker has failed: each try may wait for a server for minutes."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of ``log_with`` are installed.

    Raises:
        UserError: Naming the first that is not.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"`log_with` {name} needs the package {PACKAGES[name]}: pip install 'mim4d[{name}]'")


class Tracker:
    """The run of one tracker, which gets every logged step once, in order.

    A server that fails does not stop the training: steps are kept and sent later, at the latest when the run ends or is
    resumed. Neither W&B nor MLflow can take a step back, so a step that a killed run sent keeps the values it had then.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start a run, or resume that of the run folder.

        Args:
            name: ``wandb`` or ``mlflow``.
            folder: The run folder; ``NAME.json`` in it holds the id of the tracker's run and the last step sent.
            settings: Settings of the run by their dotted names, stored with a new run.

        Raises:
            UserError: If the tracker does not start: no login, no server, or no such run there any more.
        """
        self.name = name
        self._file = folder / f"{name}.json"
        known = _read(self._file)
        self.step = int(known.get("step", 0))
        self._waiting: list[tuple[int, dict[str, float]]] = []
        self._next_try = 0.0
        try:
            self._tracker = _start(name, folder, known.get("id"))
            if not known:
                self._tracker.store_init_configuration(dict(settings))
        except Exception as error:  # of the package or its server, whatever it is
            raise UserError(f"`log_with` {name}: {_first_line(error)}") from error
        run = self._tracker.tracker
        self._id = run.id if name == "wandb" else run.info.run_id
        self._save()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step, unless an earlier life of the run did; keep them if that fails."""
        if step > self.step:
            self._waiting.append((step, dict(values)))
            self._send()

    def picture(self, step: int, path: Path) -> None:
        """Send a picture: to W&B as ``held_out``, to MLflow as an artifact in ``pictures``."""

        def send() -> None:
            if self.name == "wandb":
                self._tracker.log_images({"held_out": [str(path)]}, step=step)
            else:
                import mlflow  # accelerate's tracker has no artifacts before its version 1.7

                mlflow.log_artifact(str(path), "pictures")

        if step >= self.step and not self._waiting:
            self._try(send)

    def close(self, *, failed: bool) -> None:
        """End the run there; one that failed or was stopped is marked so until it is resumed."""
        self._next_try = 0.0
        self._send()
        if not failed:
            self._try(self._tracker.finish)
        elif self.name == "wandb":
            self._try(lambda: self._tracker.tracker.finish(exit_code=1))
        else:
            import mlflow

            self._try(lambda: mlflow.end_run("FAILED"))

    def _send(self) -> None:
        while self._waiting:
            step, values = self._waiting[0]
            if not self._try(lambda step=step, values=values: self._tracker.log(values, step=step)):  # type: ignore[misc]
                return
            del self._waiting[0]
            self.step = step
            self._save()

    def _try(self, action: Callable[[], Any]) -> bool:
        """Call ``action`` unless one failed shortly before; return whether it succeeded."""
        if time.monotonic() < self._next_try:
            return False
        try:
            action()
        except Exception as error:  # a run of days must not end because a server does
            self._next_try = time.monotonic() + RETRY
            kept = f"; {len(self._waiting)} logged steps wait, to be sent later or by --resume" if self._waiting else ""
            logger.warning("warning: %s: %s%s", self.name, _first_line(error), kept)
            return False
        return True

    def _save(self) -> None:
        text = json.dumps({"id": self._id, "step": self.step})
        write_file(self._file, lambda partial: partial.write_text(text + "\n"))


def _read(file: Path) -> dict[str, Any]:
    """Return the content of ``NAME.json``, or nothing if there is none.

    Raises:
        UserError: If it is damaged.
    """
    try:
        known = json.loads(file.read_bytes()) if file.is_file() else {}
        return {"id": str(known["id"]), "step": int(known["step"])} if known else {}
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{file} is damaged: remove it, and the resumed run becomes a new one there") from error


def _start(name: str, folder: Path, run: str | None) -> GeneralTracker:
    """Start accelerate's tracker; W&B writes into the run folder, MLflow where MLFLOW_TRACKING_URI says.

    Args:
        name: ``wandb`` or ``mlflow``.
        folder: The run folder.
        run: The id of the run to resume; None for a new one.
    """
    title = folder.resolve().name
    if name == "wandb":
        project, title = os.environ.get("WANDB_PROJECT", "mim4d"), os.environ.get("WANDB_NAME", title)
        place = os.environ.get("WANDB_DIR", str(folder))
        tracker: GeneralTracker = WandBTracker(project, name=title, dir=place, id=run, resume="allow")
    else:
        tracker = MLflowTracker("mim4d", run_name=title, run_id=run)
    tracker.start() if hasattr(tracker, "start") else None  # accelerate before 1.8 has started it already
    return tracker


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
