"""``mim4d-data``: check a folder in nuScenes format before training on it."""

import argparse
import logging
import sys
from pathlib import Path

from ..errors import UserError
from ..flags import ArgumentParser, report_user_errors, text

CHECK_EXAMPLE = "mim4d-data check /data/nuscenes --version v1.0-mini --picture check.png"


def main(argv: list[str] | None = None) -> None:
    """Run the command; exit with 0 if there are no faults, with 1 if there are, with 2 and one line for bad input."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mim4d").setLevel(logging.INFO)
    given = make_parser().parse_args(argv)
    with report_user_errors():
        sys.exit(_check(given))


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of :func:`main`."""
    parser = ArgumentParser(
        prog="mim4d-data",
        description="Check a data set in nuScenes format before training on it.",
        example=CHECK_EXAMPLE,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="read a data set as mim4d-pretrain does, and list its faults",
        description="Read a data set as mim4d-pretrain does. Prints one line per kind of fault, with a count and the "
        "first file, then what the data set contains. Exit code 0: no faults; 1: faults; 2: nothing to check.",
        example=CHECK_EXAMPLE,
    )
    check.add_argument("root", type=_path, metavar="ROOT", help="folder with samples/ and the tables of the version")
    check.add_argument("--version", type=text, help="folder of the tables, needed if there are several")
    check.add_argument("--full", action="store_true", help="read every file, not a sample of each sensor's files")
    check.add_argument("--picture", type=_path, metavar="FILE", help="write a PNG of the images with LiDAR points")
    check.add_argument(
        "--lidar-floats",
        type=int,
        default=5,
        metavar="N",
        help="floats per point in LiDAR files without a header (default: %(default)s)",
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
