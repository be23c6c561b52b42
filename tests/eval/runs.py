"""Runs of seconds: a tiny model on the tiny world."""

from pathlib import Path

from mim4d.eval.cli import parse
from mim4d.eval.config import EvalConfig

SIZES = (
    *("--preset", "demo", "--version", "v1.0-mini", "--image-size", "64", "128"),
    *("--steps", "3", "--batch-size", "2", "--workers", "0"),
    *("--model.neck.channels", "16", "--model.levels", "2", "--model.voxel-channels", "8"),
    *("--model.channels", "16", "--model.coarse", "4", "--optim.warmup-steps", "1"),
)
"""What makes a run small."""
FLAGS = ("--data", "nuscenes", *SIZES, "--backbone", "mim4d_convnext_atto", "--init", "random")


def arguments(root: Path, out: Path, *flags: str) -> list[str]:
    """A command line for a tiny run; later flags win."""
    task = () if "--task" in flags else ("--task", "bev-seg")
    return [*task, *FLAGS, "--dataroot", str(root), "--out", str(out), *flags]


def tiny(root: Path, out: Path, *flags: str) -> EvalConfig:
    """The settings of a tiny run."""
    return parse(arguments(root, out, *flags))
