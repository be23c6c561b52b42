"""Runs of a second or two: a tiny model on a root written by hand, in this process or in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from mim4d.pretrain.cli import parse
from mim4d.pretrain.config import PretrainConfig

REPOSITORY = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "model": "mim4d_convnext_atto",
    "version": "v1.0-mini",
    "frames": 2,
    "image_size": [64, 128],
    "cameras": ["CAM_FRONT", "CAM_BACK"],
    "steps": 4,
    "batch_size": 1,
    "precision": "fp32",
    "workers": 0,
    "log_every": 1,
    "save_every": 2,
    "picture_every": 0,
    "eval_every": 0,
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "method": {
        "drop_path": 0.2,
        "grid": {"voxel": [3.6, 3.6, 4.0]},
        "neck": {"stages": [3], "channels": 16},
        "lift": {"depth_channels": 16, "depth_step": 4.0, "depth_range": [2.0, 58.0], "channels": 8},
        "temporal": {"short_channels": 16, "long_channels": 8},
        "render": {"rays_per_view": 32, "uniform_samples": 16, "importance_samples": 8},
    },
}
"""Everything small; a step takes about 0.1 s."""


def arguments(root: Path, out: Path, *flags: str) -> list[str]:
    """A command line for a tiny run."""
    config = out.parent / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    return ["--config", str(config), "--dataroot", str(root), "--out", str(out), *flags]


def tiny(root: Path, out: Path, *flags: str) -> PretrainConfig:
    """The settings of a tiny run."""
    return parse(arguments(root, out, *flags))[0]


def command(*args: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """What starts mim4d-pretrain as a process of its own."""
    return [sys.executable, *launcher, "-m", "mim4d.pretrain", *args]


def environment() -> dict[str, str]:
    """One thread a process, so that runs can be compared bit for bit; and no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def run(*args: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run mim4d-pretrain to its end, by a launcher such as ``("-m", "torch.distributed.run")`` or without."""
    return subprocess.run(
        command(*args, launcher=launcher), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def metrics(out: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[dict[str, float]]:
    """The rows without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "clips_per_s")} for row in metrics(out)]


def older(path: Path) -> Path:
    """A checkpoint as it was before there were checksums."""
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state))
    return path
