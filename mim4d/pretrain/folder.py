"""The run folder: its layout, and checks that no run overwrites another."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..settings import overlay, read_yaml
from .checkpoint import list_checkpoints
from .config import PretrainConfig, check_resumable, save_config


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run."""

    root: Path

    @property
    def config(self) -> Path:
        """All settings, in a form that ``--config`` reads."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.root / "checkpoints"

    @property
    def pictures(self) -> Path:
        """``step_00000100.png`` and so on."""
        return self.root / "pictures"

    @property
    def encoder(self) -> Path:
        """The exported encoder."""
        return self.root / "encoder"

    @property
    def report(self) -> Path:
        """The report: the whole run on one page."""
        return self.root / "report.html"

    @property
    def animation(self) -> Path:
        """Held-out frames rendered by the finished model."""
        return self.root / "rendered.webp"

    def timm_line(self) -> str:
        """Return the Python expression that loads the exported encoder with timm alone."""
        name = json.dumps(f"local-dir:{self.encoder}", ensure_ascii=False)
        return f"timm.create_model({name}, pretrained=True, features_only=True).eval()"

    def contents(self) -> list[str]:
        """List the names of files and folders, without hidden ones; folders end with a slash."""
        return sorted(path.name + "/" * path.is_dir() for path in self.root.glob("[!.]*"))

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint; None if there is none."""
        return next(reversed(list_checkpoints(self.checkpoints)), None)

    def read_config(self) -> PretrainConfig:
        """Read the config of the run in this folder.

        Raises:
            UserError: If there is none.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.root} has no config.yaml, so there is nothing to resume: start a run without --resume"
            )
        return overlay(PretrainConfig(), read_yaml(self.config), self.config)

    def check(self, config: PretrainConfig, *, resume: bool) -> None:
        """Check that a run may be written here.

        Raises:
            UserError: If it holds a run and ``resume`` is False; or it holds none, or one of other settings, and
                ``resume`` is True.
        """
        if resume:
            check_resumable(self.read_config(), config)
        elif self.newest() or self.encoder.exists() or (self.metrics.exists() and self.metrics.stat().st_size):
            raise UserError(f"{self.root} already holds a run: resume it with --resume, or set another --out")

    def open(self, config: PretrainConfig) -> None:
        """Make the folder, remove temporary files of a killed run, and write the config.

        Raises:
            UserError: If the folder cannot be written.
        """
        try:
            for folder in (self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
            folders = (self.root, self.checkpoints, self.pictures)
            for partial in [path for folder in folders for path in folder.glob(".*.partial")]:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.root}: {error.strerror}") from error
        save_config(config, self.config)
