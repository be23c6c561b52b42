"""``mim4d-data``: check a folder in nuScenes format before training on it."""

import argparse
import logging
import sys
from pathlib import Path

from ..errors import UserError
from ..flags import ArgumentParser, report_user_errors, text


def main(argv: list[str] | None = None) -> None:
    """Entry point: exits with 0 if there is no fault, with 1 if there are some, with 2 and one line for bad input."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mim4d").setLevel(logging.INFO)
    given = _parser().parse_args(argv)
    with report_user_errors():
        sys.exit(_check(given))


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="mim4d-data", description="Look at a data set before training on it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="read a folder in nuScenes format as mim4d-pretrain would",
        description="Prints one line per kind of fault, with a count and the first file, then what is there. "
        "Exit code 0: no fault; 1: faults; 2: nothing to check.",
    )
    check.add_argument(
        "root", type=_path, metavar="ROOT", help="the folder that holds samples/ and the version's tables"
    )
    check.add_argument("--version", type=text, help="the folder of tables, if there are several")
    check.add_argument("--full", action="store_true", help="read every file, not a sample of each sensor's")
    check.add_argument("--picture", type=_path, metavar="FILE", help="write a PNG of LiDAR points on the images")
    check.add_argument(
        "--lidar-floats", type=int, default=5, metavar="N", help="floats per point of LiDAR files without a header (5)"
    )
    return parser


def _path(value: str) -> Path:
    return Path(text(value)).expanduser()


def _check(given: argparse.Namespace) -> int:
    from .check import check_root, save_picture  # after --help

    if not 3 <= given.lidar_floats <= 64:
        raise UserError(f"--lidar-floats {given.lidar_floats}: a point has 3 (x, y, z) to 64")
    if given.picture and not given.picture.parent.is_dir():
        raise UserError(f"--picture {given.picture}: there is no folder {given.picture.parent}")
    report, clip = check_root(given.root, given.version or "", full=given.full, lidar_floats=given.lidar_floats)
    for line in report.lines():
        print(line)
    if given.picture and clip is not None:
        save_picture(clip, given.picture)
        print(f"picture: {given.picture}; check that the points lie on the poles, kerbs and cars in the images")
    elif given.picture:
        print("no picture, because no key frame can be read completely")
    elif clip is not None:
        print("add --picture check.png to see the LiDAR points in the images")
    kinds = len(report.faults)
    print(f"{kinds} {'kind' if kinds == 1 else 'kinds'} of fault" if kinds else "no faults")
    return 1 if report.faults else 0
