"""``mim4d-hub release``: score encoders, and publish them with their scores in the team's hub.

Like ``mim4d-hub``, this imports what scoring needs only when it runs.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from .errors import UserError, printable
from .flags import text
from .hub.catalog import BEGIN, collection_table, published, with_table
from .hub.cli import make_parser
from .hub.faults import hub_error
from .hub.fetch import TIMEOUT
from .hub.folder import CARD
from .hub.pull import open_encoder
from .hub.scores import PICTURE, REPORT, ReleaseScores, Result
from .hub.sources import EncoderWeights
from .hub.team import VARIABLE, TeamHub, team_hub
from .io.files import write_bytes
from .version import __version__

TASKS = ("probe", "bev-seg", "det3d", "hd-map")


def add_command(commands: Any) -> None:
    """Add ``release`` to the parser of ``mim4d-hub``."""
    parser = commands.add_parser(
        "release",
        help="score encoders, write their cards and publish them in your team's hub",
        description="Score encoders beside random weights, write scores.json and scores.png beside their weights, and "
        "publish them in your team's hub (MIM4D_HUB) with a card that shows the scores, and the run's report.html. Run "
        "the command again to resume. The table of models in the README of the folder or organisation is written too.",
        example="mim4d-hub release runs/demo --task probe --dataroot /data/nuscenes --version v1.0-trainval",
    )
    parser.add_argument("paths", type=text, nargs="+", metavar="RUN", help="runs of mim4d-pretrain, or encoder folders")
    parser.add_argument(
        "--task",
        nargs="+",
        choices=TASKS,
        default=["probe"],
        metavar="TASK",
        help=f"what to score, of {', '.join(TASKS)} (default: probe)",
    )
    parser.add_argument(
        "--dataroot",
        type=text,
        metavar="DIR",
        help="folder in nuScenes format, with labels (default: the synthetic world of the demo)",
    )
    parser.add_argument("--version", type=text, help="its tables, such as v1.0-trainval")
    parser.add_argument("--preset", type=text, help="as in mim4d-eval")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: 3)")
    parser.add_argument("--license", type=text, metavar="ID", help="licence of the weights (default: the run's)")
    parser.add_argument("--dry-run", action="store_true", help="score, but publish nothing")
    parser.set_defaults(run=_release)


def _release(given: argparse.Namespace) -> None:
    hub = team_hub()
    if hub is None:
        raise UserError(f"release needs your team's hub: set {VARIABLE} to an organisation on the Hub, or to a folder")
    opened = [(Path(path).expanduser(), open_encoder(Path(path).expanduser())) for path in given.paths]
    for path, encoder in opened:
        score(path, encoder, given)
        words = ["push", str(path), *(["--license", given.license] if given.license else [])]
        push = make_parser().parse_args([*words, *(["--dry-run"] if given.dry_run else [])])
        push.run(push)
    if given.dry_run:
        return
    if hub.folder:
        write_table(hub, hub.folder)
    else:
        publish_table(hub)


def score(path: Path, encoder: EncoderWeights, given: argparse.Namespace) -> None:
    """Score an encoder, and write scores, picture and report beside its weights.

    Args:
        path: The run, or the encoder folder; the cells of the scores are kept in its ``release/``.
        encoder: The encoder in it.
        given: Arguments of the command.

    Raises:
        UserError: See :func:`mim4d.eval.compare.score_cells`.
    """
    from .eval.cli import parse_comparison
    from .eval.compare import score_cells
    from .eval.headline import HEADLINES
    from .eval.paired import estimate, table
    from .eval.panels import save_panels

    tables, results = [], []
    flags = ["--seeds", str(given.seeds), "--with", "scratch"]
    for flag in ("dataroot", "version", "preset"):
        flags += [f"--{flag}", getattr(given, flag)] if getattr(given, flag) else []
    for task in dict.fromkeys(given.task):
        comparison = parse_comparison([str(path), "--task", task, "--out", str(path / "release" / task), *flags])
        names = {str(path): encoder.config.model}  # the path is nobody else's business
        scores = [dataclasses.replace(s, row=names.get(s.row, s.row)) for s in score_cells(comparison)]
        settings = comparison.settings
        data = "synthetic world" if settings.data == "synthetic" else settings.version or "v1.0-trainval"
        tables.append(f"Held-out samples of {data}:\n\n{table(scores, task)}")
        for each in scores:
            if each.row == encoder.config.model and each.over_seeds:
                mean, half = estimate([100 * value for value in each.over_seeds])
                results.append(Result(task, data, HEADLINES[task][each.figure], each.labels, mean, half))
        if task == given.task[0]:
            save_panels(scores, task, encoder.folder / PICTURE)
    report = path / REPORT
    if report.is_file() and path != encoder.folder:
        shutil.copyfile(report, encoder.folder / REPORT)
    sha256 = encoder.config.provenance.get("sha256")
    ReleaseScores(sha256, tuple(tables), tuple(results)).write(encoder.folder)


def write_table(hub: TeamHub, folder: Path) -> None:
    """Write the table of all models of a team's folder into its README.md; text around the table stays."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8") if file.is_file() else "# Models"
    write_bytes(file, with_table(text, collection_table(hub, published())).encode())
    print(printable(f"table of models: {file}"))


def publish_table(hub: TeamHub) -> None:
    """Write the table of all models of an organisation into its README on the Hub, where that has the table's marks.

    The README of an organisation is that of its Space ``README``. A README without marks is left as it is, and a public
    one gets no line about private models.

    Raises:
        UserError: If the Hub cannot be reached or rejects the change.
    """
    readme = f"{hub.place}/README"
    api = HfApi(library_name="mim4d", library_version=__version__)
    try:
        space, text = _read_space(api, readme)
        if BEGIN not in text:
            hint = f"paste `mim4d-hub list --markdown` into the README of {hub.place} to get one"
            print(printable(f"no table of models: {hint}"))
            return
        shown = [entry for entry in published() if space.private or not entry.private]
        renewed = with_table(text, collection_table(hub, shown))
        if renewed != text:
            change = CommitOperationAdd(CARD, renewed.encode())
            message = "Renew the table of models"
            api.create_commit(readme, [change], commit_message=message, repo_type="space", parent_commit=space.sha)
    except UserError:
        raise
    except Exception as error:  # of the client or of its HTTP library
        raise hub_error(error, f"spaces/{readme}", writing=True) from error
    print(printable(f"table of models: {constants.ENDPOINT}/{hub.place}"))


def _read_space(api: HfApi, name: str) -> tuple[Any, str]:
    """What the Hub says about a Space, and its README; empty if there is none."""
    try:
        space = api.repo_info(name, repo_type="space", timeout=TIMEOUT)
        file = hf_hub_download(name, CARD, repo_type="space", revision=space.sha)
    except (RepositoryNotFoundError, EntryNotFoundError):
        return None, ""
    return space, Path(file).read_bytes().decode()
