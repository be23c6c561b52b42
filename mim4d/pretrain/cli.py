"""``mim4d-pretrain``: parse, build, call."""

import argparse
import dataclasses
import json
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadDataError, UserError
from ..flags import ArgumentParser, parse_flags, report_user_errors
from ..settings import overlay, read_yaml
from .config import PretrainConfig
from .folder import RunFolder
from .presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class CommandLine(PretrainConfig):
    """Pretrain an image backbone on multi-camera driving video, by MIM4D.

    Settings come from the preset, then from --config, then from the flags here; later ones win. The run folder gets
    report.html, config.yaml, metrics.jsonl, checkpoints/, pictures/, tensorboard/ and encoder/, which plain timm loads.
    """

    config: Path | None = None
    """A YAML file of settings, such as an earlier run's config.yaml."""
    resume: bool = False
    """Resume the run in --out from its newest checkpoint, with its own settings."""


FIRST = (
    *("data", "dataroot", "model", "init", "preset", "frames", "image_size", "batch_size", "steps", "out"),
    *("config", "resume"),
)
"""Settings that ``--help`` lists first."""


def parse(argv: list[str]) -> tuple[PretrainConfig, bool]:
    """Parse a command line into settings and whether to resume.

    Raises:
        UserError: If a file or a value is wrong.
        SystemExit: For --help, and with code 2 if a flag is wrong.
    """
    # The other settings start from these.
    first = ArgumentParser(prog="mim4d-pretrain", add_help=False, allow_abbrev=False)
    for name in ("preset", "data", "dataroot", "version", "config", "out"):
        first.add_argument(f"--{name}")
    first.add_argument("--resume", action="store_true")
    head = first.parse_known_args(argv)[0]
    if head.config is not None and not head.config.strip():
        raise UserError("--config is empty: give a YAML file of settings")
    config = Path(head.config) if head.config else None
    start = CommandLine(**vars(_starting_point(head)), config=config, resume=head.resume)
    example = "mim4d-pretrain --dataroot /data/nuscenes --model mim4d_convnext_small --init convnext_small.fb_in1k"
    given = parse_flags(CommandLine, argv, prog="mim4d-pretrain", default=start, first=FIRST, example=example)
    return PretrainConfig(**{f.name: getattr(given, f.name) for f in dataclasses.fields(PretrainConfig)}), given.resume


def _starting_point(head: argparse.Namespace) -> PretrainConfig:
    """Return the settings that the flags start from."""
    source = Path(head.config) if head.config else None
    values = read_yaml(source) if source else {}
    name = values.get("preset", _fitting_preset(head, values)) if head.preset is None else head.preset
    if name not in [*PRESETS]:  # a list from a file cannot be looked up in a dict
        raise UserError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    base = PRESETS[name]
    if head.resume:
        written = values.pop("out", base.out)
        out = head.out or str(written)  # the folder of the same command line without --resume
        base = dataclasses.replace(RunFolder(Path(out).expanduser()).read_config(), out=out)
        if head.preset not in (None, base.preset):
            raise UserError(f"the run in {out} was started with --preset {base.preset}, not {head.preset}")
    return overlay(base, {**values, "preset": base.preset}, source) if source else base


def _fitting_preset(head: argparse.Namespace, values: dict[str, Any]) -> str:
    """Return the preset for the data: demo for a synthetic world, camera for a root that has no LiDAR, else gpu24."""
    data, root, version = (getattr(head, name) or values.get(name) for name in ("data", "dataroot", "version"))
    if data == "synthetic":
        return "demo"
    with suppress(OSError, ValueError, LookupError, TypeError):  # the reader of the data says what is wrong with it
        folder = Path(str(root)).expanduser() / (version or "v1.0-trainval")
        sensors = json.loads((folder / "sensor.json").read_bytes())
        if not any(sensor["modality"] == "lidar" for sensor in sensors):
            return "camera"
    return "gpu24"


def main(argv: list[str] | None = None) -> None:
    """Run the command; print a UserError as one line on stderr and exit with code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mim4d").setLevel(logging.INFO)  # the first start on a root reports its progress
    remedy = "lower `batch_size`, `image_size`, `rays_per_view` or `workers`"
    with report_user_errors(remedy, PretrainConfig):
        config, resume = parse(sys.argv[1:] if argv is None else argv)
        from .trainer import train  # after --help

        try:
            train(config, resume=resume)
        except BadDataError as error:
            raise UserError(f"{error}. Fix the data, or skip such clips with --on-error skip") from error
