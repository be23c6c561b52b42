"""``mim4d-hub``: publish an encoder, fetch one, show its card, convert checkpoints.

Only argparse: the command comes with the base install. Commands that build on higher layers of the package are added by
:func:`mim4d.commands.hub`.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError, printable
from ..flags import ArgumentParser, report_user_errors, text
from ..io.files import sha256_of, write_file
from .card import make_card
from .catalog import HEADINGS, collection_table, published
from .folder import CARD, CONFIG, EncoderConfig
from .openmmlab import read_backbone, write_checkpoint
from .pull import contents, open_encoder, pull, rewrite
from .push import Publisher, push_to_folder
from .scores import read_scores
from .sources import EncoderWeights
from .team import VARIABLE, team_hub


def main(argv: list[str] | None = None, more: Sequence[Callable[[Any], None]] = ()) -> None:
    """Run the command; print a UserError as one line on stderr and exit with code 2.

    Args:
        argv: The arguments; None for those of the process.
        more: Functions that add further commands to the parser's subparsers.
    """
    given = make_parser(more).parse_args(argv)
    with report_user_errors():
        given.run(given)


def make_parser(more: Sequence[Callable[[Any], None]] = ()) -> argparse.ArgumentParser:
    """Build the parser of :func:`main`."""
    parser = ArgumentParser(
        prog="mim4d-hub",
        description="Publish encoders (pretrained backbones) on the Hugging Face Hub; fetch, convert and export them. "
        "To log in, run `hf auth login` or set HF_TOKEN; there is no flag for tokens, because other users can see "
        "command lines.",
        example="mim4d-hub push runs/demo --repo ORG/NAME --dry-run",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_push, _add_list, _add_pull, _add_card, _add_convert, *more):
        add(commands)
    return parser


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="publish the encoder of a run: config.json, model.safetensors and a model card",
        description="Publish the encoder of a run on the Hugging Face Hub: config.json, model.safetensors and a model "
        "card. Files that the repository already has are not uploaded again.",
        example="mim4d-hub push runs/demo --repo ORG/NAME --private --tag v1.0",
    )
    parser.add_argument("path", type=_path, metavar="RUN", help="a run of mim4d-pretrain, or a folder with an encoder")
    parser.add_argument(
        "--repo",
        type=_repo,
        metavar="ORG/NAME",
        help="repository; created if new. Default: that of the model in your team's hub, with the next tag. The team's "
        "hub is the organisation or folder in the environment variable MIM4D_HUB",
    )
    parser.add_argument(
        "--private", action="store_true", help="create a private repository; a public one that exists is refused"
    )
    parser.add_argument(
        "--revision",
        type=_revision,
        metavar="BRANCH",
        help="branch; created if new (default: the repository's default branch)",
    )
    parser.add_argument("--tag", type=_revision, help="tag for the commit, such as v1.0")
    parser.add_argument(
        "--license",
        type=text,
        metavar="ID",
        help="licence of the weights, such as cc-by-nc-sa-4.0 (default: the run's)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing; works offline")
    parser.set_defaults(run=_push)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list the encoders of your team's hub: the organisation or folder in MIM4D_HUB",
        description="List the encoders of your team's hub (MIM4D_HUB): names for timm.create_model, training data, "
        "held-out scores, licences. Afterwards timm.list_pretrained shows these names too.",
        example="mim4d-hub list",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table for the README of your organisation")
    parser.set_defaults(run=_list)


def _add_pull(commands: Any) -> None:
    parser = commands.add_parser(
        "pull",
        help="fetch and verify an encoder, which can then be used offline",
        description="Fetch an encoder from the Hugging Face Hub and verify its tensors and checksum. Afterwards it can "
        "be used offline.",
        example="mim4d-hub pull ORG/NAME@v1.0 --out encoders/NAME",
    )
    parser.add_argument(
        "repo", type=_repo_at, metavar="ORG/NAME[@REVISION]", help="repository, and its branch, tag or commit"
    )
    parser.add_argument("--revision", type=_revision, help="branch, tag or commit, in place of @REVISION")
    parser.add_argument(
        "--out", type=_path, metavar="DIR", help="folder to copy the encoder to (default: only the cache)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be fetched, and fetch nothing")
    parser.set_defaults(run=_pull)


def _add_card(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="print or write the model card of a run's encoder",
        description="Print the model card of a run's encoder, or write it into the encoder's folder.",
        example="mim4d-hub card runs/demo --repo ORG/NAME --write",
    )
    parser.add_argument("path", type=_path, metavar="RUN", help="a run of mim4d-pretrain, or a folder with an encoder")
    parser.add_argument("--repo", type=_repo, metavar="ORG/NAME", help="repository, for the lines of code in the card")
    parser.add_argument("--license", type=text, metavar="ID", help="licence of the weights (default: the run's)")
    parser.add_argument("--write", action="store_true", help="write the card into the encoder's folder, for editing")
    parser.set_defaults(run=_card)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert an OpenMMLab checkpoint to an encoder folder, or an encoder to an OpenMMLab checkpoint",
        description="Convert the image backbone of a MIM4D, UniPAD, mmdet or mmpretrain checkpoint to an encoder "
        "folder, or an encoder to a checkpoint for those codebases. Code that is pickled in a checkpoint is never run.",
        example="mim4d-hub convert unipad.pth encoders/unipad --license apache-2.0",
    )
    parser.add_argument("source", type=_path, metavar="FROM", help="a .pth file, a run, or a folder with an encoder")
    parser.add_argument("target", type=_path, metavar="TO", help="a folder, or a .pth file for OpenMMLab")
    parser.add_argument("--license", type=text, metavar="ID", help="licence of the weights, for config.json")
    parser.add_argument("--half", action="store_true", help="store float16 in the folder")
    parser.add_argument(
        "--names",
        choices=("mmpretrain", "release"),
        default="mmpretrain",
        help="names of ConvNeXt blocks in a .pth file: those of mmpretrain, or of the MIM4D and UniPAD releases",
    )
    parser.add_argument(
        "--prefix",
        type=_prefix,
        help="prefix of the names in a .pth file (default: backbone. for mmpretrain, img_backbone. for release)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what FROM contains, and write nothing")
    parser.set_defaults(run=_convert)


def _path(value: str) -> Path:
    return Path(text(value)).expanduser()


def _repo(value: str) -> str:
    try:
        validate_repo_id(text(value))
    except HFValidationError:
        pass
    else:
        if "/" in value:
            return value
    raise argparse.ArgumentTypeError(f"{value}: expected ORG/NAME, in letters, digits and - _ .")


def _revision(value: str) -> str:
    if re.search(r"[\s~^:?*\[\\]|\.\.|^[-/]|/$", text(value)):
        raise argparse.ArgumentTypeError(f"{value}: no name of a branch, tag or commit")
    return value


def _repo_at(value: str) -> tuple[str, str | None]:
    repo, at, revision = value.partition("@")
    return _repo(repo), _revision(revision) if at else None


def _prefix(value: str) -> str:
    return text(value) if value else value  # empty: names begin with nothing


def _push(given: argparse.Namespace) -> None:
    hub = None if given.repo else team_hub()
    if not given.repo and not hub:
        raise UserError(f"expected --repo ORG/NAME, or your team's hub in {VARIABLE} (an organisation or a folder)")
    if hub and hub.folder:
        if given.private or given.revision:
            raise UserError(f"--private and --revision are for the Hub, but {hub.set_by} names a folder")
        for line in push_to_folder(given.path, hub.folder, tag=given.tag, license=given.license, dry_run=given.dry_run):
            _print(line)
        if given.dry_run:
            print("nothing was changed (--dry-run)")
        return
    publisher = Publisher()
    plan = publisher.plan(
        given.path,
        hub.where(open_encoder(given.path).config.model) if hub else given.repo,
        private=given.private,
        revision=given.revision,
        tag=given.tag,
        next_tag=hub is not None and not given.tag,
        license=given.license,
        offline=given.dry_run,
    )
    for line in plan.lines():
        _print(line)
    if given.dry_run:
        print("nothing was changed (--dry-run)")
        return
    pushed = publisher.push(plan)
    _print(f"published: {pushed.url}" if pushed.committed else f"nothing to upload: {pushed.url} has it")


def _list(given: argparse.Namespace) -> None:
    entries = published()
    hub = team_hub()
    assert hub is not None, "published() needs one"
    if not entries:
        _print(f"{hub.place} holds no encoders yet: mim4d-hub push RUN publishes one")
        return
    if given.markdown:
        _print(collection_table(hub, entries))
        return
    rows = [HEADINGS, *(entry.row() for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print(text: str) -> None:
    """Print text that may come from a file or the Hub."""
    print(printable(text))


def _pull(given: argparse.Namespace) -> None:
    repo, revision = given.repo
    if revision and given.revision and revision != given.revision:
        raise UserError(f"--revision {given.revision}: {repo}@{revision} names another one; give one of them")
    revision = given.revision or revision
    if given.dry_run:
        for line in contents(repo, revision=revision):
            _print(line)
        print("nothing was fetched (--dry-run)")
        return
    pulled = pull(repo, revision=revision, out=given.out)
    checksum = f"sha256 {pulled.checksum[:12]}... as {CONFIG} says" if pulled.checksum else f"no sha256 in {CONFIG}"
    _print(f"{pulled.model}, licence {pulled.license or 'not stated'}: {pulled.folder}")
    _print(f"verified: {pulled.tensors} tensors fit the architecture, all values finite; {checksum}")


def _card(given: argparse.Namespace) -> None:
    weights = open_encoder(given.path)
    config = weights.config
    scores = read_scores(weights.folder, config)
    text = make_card(config.with_license(given.license) if given.license else config, given.repo, scores)
    if not given.write:
        _print(text.removesuffix("\n"))
        return
    file = weights.folder / CARD
    if file.exists() and file.read_bytes() != text.encode():
        raise UserError(
            f"{file} exists and differs from the new card: remove it, or leave --write out to print the new one"
        )
    write_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    _print(str(file))


def _convert(given: argparse.Namespace) -> None:
    if given.source.is_dir():
        source = open_encoder(given.source)
        _print(f"{len(source.tensors)} tensors of {source.config.model}")
    else:
        backbone = read_backbone(given.source)
        _print(backbone.report())
        about = {"converted_from": given.source.name, "converted_from_sha256": sha256_of(given.source)}
        config = EncoderConfig({"architecture": backbone.model, "pretrained_cfg": {}, "mim4d": about})
        source = EncoderWeights(tensors=backbone.tensors, source=str(given.source), config=config)
    if given.dry_run:
        print("nothing was written (--dry-run)")
    elif given.target.suffix == ".pth":
        release = given.names == "release"
        prefix = given.prefix if given.prefix is not None else ("img_backbone." if release else "backbone.")
        write_checkpoint(source.tensors, given.target, prefix=prefix, release=release)
        _print(f"written: {given.target}, names begin with {prefix or 'nothing'}")
    else:
        rewrite(source, given.target, license=given.license, half=given.half)
        _print(f"written: {given.target}")
