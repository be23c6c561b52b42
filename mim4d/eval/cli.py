"""``mim4d-eval``: parse, build, call."""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import tyro

from ..errors import UserError, printable
from ..flags import ArgumentParser, name_flags, parse_flags, report_user_errors, text
from .config import IMAGENET, PRESETS, PROBE, SCRATCH, Comparison, EvalConfig

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


def parse_comparison(argv: list[str]) -> Comparison:
    """Read the arguments after ``mim4d-eval compare``: backbones, own flags, and flags of ``mim4d-eval``.

    Raises:
        UserError: If a value makes no sense.
        SystemExit: For --help, and with code 2 if a flag is wrong.
    """
    parser = make_compare_parser()
    if not argv or (argv[0].startswith("-") and not {"-h", "--help"} & set(argv)):
        parser.error("expected the backbones first: mim4d-eval compare BACKBONE BACKBONE ... --task TASK")
    given, flags = parser.parse_known_args(argv)
    names = {flag.partition("=")[0] for flag in flags}
    if wrong := names & {"--backbone", "--init"}:
        raise UserError(f"{min(wrong)}: write BACKBONE or BACKBONE=WEIGHTS after compare, such as resnet50=weights.pth")
    if "--data" not in names:
        flags = ["--data", "nuscenes" if "--dataroot" in names else "synthetic", *flags]
    settings = parse(["--task", given.task, "--out", given.out, *flags])
    labels = given.labels or [HALF if given.task == PROBE else 1.0]
    try:
        for share in labels:
            dataclasses.replace(settings, labels=share)
    except ValueError as error:
        raise UserError(name_flags(str(error), EvalConfig)) from error
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds}: expected at least 1")
    return Comparison(
        backbones=tuple(given.backbones),
        extra=tuple(given.extra),
        labels=tuple(sorted(set(labels))),
        seeds=given.seeds,
        settings=settings,
    )


HALF = 0.5
"""Fraction of the labels of a probe if none is given: with all of them, every seed would give the same probe."""


def make_compare_parser() -> argparse.ArgumentParser:
    """Build the parser of ``mim4d-eval compare``; it leaves all other flags to :func:`parse`."""
    parser = ArgumentParser(
        prog="mim4d-eval compare",
        usage="mim4d-eval compare BACKBONE ... --task TASK [flags]",
        description="Score several backbones with the same data, labels and seeds. Prints a table of means with 95 % "
        "intervals and of differences to the first backbone, paired by seed; writes table.md and plot.png. Run the "
        "command again to resume: finished cells are not computed again. All other flags of mim4d-eval apply to every "
        "backbone (--dataroot, --version, --freeze, --steps, ...). Without --data and --dataroot, the synthetic world "
        "of the demo is used.",
        example="mim4d-eval compare resnet18 runs/demo --task probe --with scratch",
        allow_abbrev=False,
    )
    parser.add_argument(
        "backbones",
        type=text,
        nargs="+",
        metavar="BACKBONE",
        help="a timm name, a run, an encoder folder or hf-hub:ORG/NAME; or NAME=WEIGHTS for other weights of an "
        "architecture, such as resnet50=weights.pth or resnet50=random",
    )
    parser.add_argument("--task", required=True, choices=("bev-seg", "det3d", "hd-map", PROBE), help="as in mim4d-eval")
    parser.add_argument(
        "--labels",
        type=float,
        nargs="+",
        metavar="FRACTION",
        help=f"fractions of the training samples whose labels are used (default: 1; {HALF:g} for probe, whose seeds "
        "select the samples)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: 3)")
    parser.add_argument(
        "--with",
        dest="extra",
        nargs="+",
        choices=(SCRATCH, IMAGENET),
        default=(),
        help="rows to add for every architecture: random weights, and timm's ImageNet weights",
    )
    parser.add_argument(
        "--out", type=text, default="runs/compare", metavar="DIR", help="folder of the result (default: runs/compare)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command. Errors that a user can fix are printed in one line, with exit code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mim4d").setLevel(logging.INFO)
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["compare"]:
        with report_user_errors("lower `batch_size`, `image_size` or `workers`", EvalConfig):
            comparison = parse_comparison(arguments[1:])
            from .compare import compare  # after --help

            table, plot = compare(comparison)
            print(f"{table}\n\nplot: {printable(str(plot))}")
        return
    with report_user_errors("lower `batch_size`, `image_size` or `workers`", EvalConfig):
        config = parse(arguments)
        from .headline import headline  # after --help
        from .run import evaluate

        figures = evaluate(config)
        for line in headline(figures, Path(config.out).expanduser(), arguments):
            print(line, file=sys.stderr)
