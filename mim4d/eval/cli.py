"""``mim4d-eval``: parse, build, call."""

import dataclasses
import logging
import sys
from pathlib import Path

import tyro

from ..errors import UserError
from ..flags import ArgumentParser, parse_flags, report_user_errors
from .config import PRESETS, EvalConfig

FIRST = ("task", "backbone", "init", "freeze", "data", "dataroot", "preset", "labels", "steps", "out")
"""Settings that ``--help`` lists first."""


def parse(argv: list[str]) -> EvalConfig:
    """Return the settings of a command line: those of the preset, overridden by the flags.

    Raises:
        UserError: If a value is not valid.
        SystemExit: After --help; with code 2 if a flag is wrong.
    """
    first = ArgumentParser(prog="mim4d-eval", add_help=False, allow_abbrev=False)
    for name in ("preset", "data"):
        first.add_argument(f"--{name}")
    head = first.parse_known_args(argv)[0]
    name = ("demo" if head.data == "synthetic" else "gpu24") if head.preset is None else head.preset
    if name not in PRESETS:
        raise UserError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    start = dataclasses.replace(PRESETS[name], task=tyro.MISSING)  # there is no default task
    example = "mim4d-eval --task bev-seg --backbone runs/pretrain --freeze --dataroot /data/nuscenes --out runs/eval"
    return parse_flags(EvalConfig, argv, prog="mim4d-eval", default=start, first=FIRST, example=example)


def main(argv: list[str] | None = None) -> None:
    """Run the command. Errors that a user can fix are printed in one line, with exit code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mim4d").setLevel(logging.INFO)
    arguments = sys.argv[1:] if argv is None else argv
    with report_user_errors("lower `batch_size`, `image_size` or `workers`", EvalConfig):
        config = parse(arguments)
        from .headline import headline  # after --help
        from .run import evaluate

        figures = evaluate(config)
        for line in headline(figures, Path(config.out).expanduser(), arguments):
            print(line, file=sys.stderr)
