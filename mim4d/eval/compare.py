"""``mim4d-eval compare``: score several backbones with the same data, labels and seeds.

A cell is one run of :func:`mim4d.eval.run.evaluate`: one backbone, one fraction of the labels, one seed. Finished cells
are not computed again. A cell's folder is named after its backbone and a checksum of the weights, so a run that has
trained on since then is scored anew.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

from ..errors import UserError, printable
from ..flags import name_flags
from ..hub.folder import FAMILY
from ..io.files import write_bytes
from ..settings import flatten, plain
from ..version import __version__
from .config import IMAGENET, PROBE, SCRATCH, Comparison, EvalConfig, complete
from .data import EvalData
from .headline import listed
from .model import PRETRAINED, RANDOM, make_encoder, pixel_statistics
from .paired import Score, percent, scores_of, table
from .panels import save_panels
from .run import evaluate, read_figures
from .task import Figures

FREE = ("backbone", "init", "out", "workers")
"""Settings that a finished cell may have otherwise: the folder's checksum stands for the first two."""


@dataclass(frozen=True)
class Row:
    """One backbone with its weights."""

    name: str
    """In the table."""
    backbone: str
    init: str
    architecture: str = ""
    """timm's name."""
    checksum: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of its cells."""
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.name).strip('-.')}-{self.checksum[:8]}"


def compare(comparison: Comparison) -> tuple[str, Path]:
    """Score all cells that are not finished yet, and write ``table.md`` and ``plot.png`` into the folder.

    Returns:
        The table in Markdown, and the file of the plot.

    Raises:
        UserError: If a backbone, the data or a finished cell cannot be used; nothing has been scored then.
    """
    scores, task = score_cells(comparison), comparison.settings.task
    out = Path(comparison.settings.out).expanduser()
    text = table(scores, task)
    write_bytes(out / "table.md", f"{text}\n".encode())
    save_panels(scores, task, out / "plot.png")
    return text, out / "plot.png"


def score_cells(comparison: Comparison) -> list[Score]:
    """Score all cells that are not finished yet.

    Raises:
        UserError: As :func:`compare`.
    """
    settings = complete(comparison.settings)
    out = Path(settings.out).expanduser()
    cells = [
        (row, _cell_settings(settings, row, labels, seed, out))
        for row in _open_rows(comparison)
        for labels in sorted(comparison.labels)  # too few labels are an error at the first cell
        for seed in range(settings.seed, settings.seed + seeds_of(comparison, labels))
    ]
    done: dict[str, Figures] = {}
    for _, config in cells:
        if figures := _finished(config):
            done[config.out] = figures
    if done:
        _log(f"{len(done)} of {len(cells)} cells are finished already")
    data = EvalData(settings) if len(done) < len(cells) else None
    for row, config in cells:
        if config.out not in done:
            what = f"{row.name}, {percent(config.labels)} of the labels, seed {config.seed}"
            _log(f"[{len(done) + 1}/{len(cells)}] {what}")
            # A probe would print its table of all maps for every cell; a head that trains for hours needs its bar.
            done[config.out] = evaluate(config, data, quiet=config.task == PROBE)
            _log(f"  {listed(done[config.out])} ({done[config.out]['seconds']:.0f} s)")
    return scores_of([(row.name, done[config.out]) for row, config in cells])


def seeds_of(comparison: Comparison, labels: float) -> int:
    """How many seeds a fraction of the labels is scored with: one for a probe with all labels.

    Its only random part is the choice of labelled samples.
    """
    return 1 if comparison.settings.task == PROBE and labels == 1 else comparison.seeds


def _log(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def read_row(text: str) -> Row:
    """Read a backbone as it was typed: a value of ``--backbone``, or ``NAME=WEIGHTS``.

    Raises:
        UserError: If it is a file of weights without the name of its architecture.

    >>> read_row("resnet18"), read_row("resnet18=random").init
    (Row(name='resnet18', backbone='resnet18', init='pretrained', architecture='', checksum=''), 'random')
    """
    if Path(text).expanduser().is_file():
        raise UserError(f"{text} is a file: name its architecture too, such as resnet50={text}")
    name, equals, init = text.partition("=")
    if not equals or Path(text).expanduser().is_dir():
        return Row(text, text, PRETRAINED)
    if not name or not init:
        raise UserError(f"{text}: expected NAME=WEIGHTS, such as resnet50=weights.pth")
    is_file = Path(init).expanduser().is_file()
    return Row(f"{name}={Path(init).name}" if is_file else text, name, init)


def _open_rows(comparison: Comparison) -> list[Row]:
    """Build every backbone once, so that a missing one is an error before anything is scored."""
    rows: list[Row] = []
    for text in comparison.backbones:
        row = _opened(read_row(text), comparison.settings)
        if same := _same_weights(row, rows):
            raise UserError(f"{row.name} and {same.name} have the same weights: name one of them")
        rows.append(row)
    for row in list(_extra_rows(comparison.extra, rows)):
        row = _opened(row, comparison.settings)
        if same := _same_weights(row, rows):
            _log(f"{row.name}: these are the weights of {same.name}")
        else:
            rows.append(row)
    names = [row.name for row in rows]
    return [
        dataclasses.replace(row, name=f"{row.name} ({row.checksum[:8]})") if names.count(row.name) > 1 else row
        for row in rows
    ]


def _opened(row: Row, settings: EvalConfig) -> Row:
    """The row with its architecture and checksum."""
    try:
        encoder, _ = make_encoder(row.backbone, row.init, image_size=settings.image_size)
    except UserError as error:  # it names flags that nobody typed
        raise UserError(re.sub(r"^--(backbone|init) ", "", str(error))) from error
    about: dict[str, str] = encoder.pretrained_cfg  # type: ignore[assignment]  # timm sets it from outside
    return dataclasses.replace(row, architecture=about["architecture"], checksum=_checksum(encoder, row.init))


def _checksum(encoder: nn.Module, init: str) -> str:
    """Of the names, shapes and values of all weights, and of the images' mean and deviation; without random values."""
    digest = hashlib.sha256(str([x.tolist() for x in pixel_statistics(encoder)]).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {init == RANDOM}".encode())
        if init != RANDOM:
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _same_weights(row: Row, rows: Sequence[Row]) -> Row | None:
    return next((other for other in rows if other.checksum == row.checksum), None)


def _extra_rows(extra: Sequence[str], rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of ``--with``: for each architecture, with the arguments of the first backbone that has it."""
    by_architecture: dict[str, Row] = {}
    for row in rows:
        by_architecture.setdefault(row.architecture.removeprefix(FAMILY), row)
    for kind in dict.fromkeys(extra):
        for architecture, row in by_architecture.items():
            name = kind if len(by_architecture) == 1 else f"{kind} {architecture}"
            yield Row(name, row.backbone, RANDOM if kind == SCRATCH else imagenet_weights(architecture))


def imagenet_weights(architecture: str) -> str:
    """timm's name of the ImageNet weights of an architecture; its default ones if those are from ImageNet.

    Raises:
        UserError: If timm has none.

    >>> imagenet_weights("resnet18")
    'resnet18.a1_in1k'
    """
    names = [name for name in timm.list_pretrained(f"{architecture}.*") if name.partition(".")[2].endswith("in1k")]
    if not names:
        raise UserError(f"--with {IMAGENET}: timm has no ImageNet weights of {architecture}")
    default = timm.get_pretrained_cfg(architecture)
    preferred = f"{architecture}.{default.tag}" if default else ""
    return preferred if preferred in names else names[0]


def _cell_settings(settings: EvalConfig, row: Row, labels: float, seed: int, out: Path) -> EvalConfig:
    folder = out / row.folder / f"labels-{labels:g}-seed-{seed}"
    return dataclasses.replace(
        settings, backbone=row.backbone, init=row.init, labels=labels, seed=seed, out=str(folder)
    )


def _finished(config: EvalConfig) -> Figures | None:
    """The figures of a finished cell; None if it has none.

    Raises:
        UserError: If they cannot be read, or were made with other settings or another version.
    """
    folder = Path(config.out)
    try:
        figures = read_figures(folder)
        if figures is None:
            return None
        found = {**flatten(figures["settings"]), "mim4d": figures["mim4d"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {folder / 'metrics.json'}: remove it, and run the command again") from error
    wanted = {**flatten(json.loads(json.dumps(plain(dataclasses.asdict(config))))), "mim4d": __version__}
    for name in wanted.keys() | found.keys():
        if name not in FREE and found.get(name) != wanted.get(name):
            what = "mim4d" if name == "mim4d" else name_flags(f"`{name}`", EvalConfig)
            raise UserError(
                f"{folder} was made with {what} {found.get(name)}, not {wanted.get(name)}: set another `out`"
            )
    return figures
