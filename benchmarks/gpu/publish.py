"""Publish a card's figures in the documentation: docs/gpu, and the tables of docs/scale.md."""

import json
from pathlib import Path

from mim4d.errors import UserError
from mim4d.io.files import make_folder, write_file

from .report import BATCH_HEAD, STEP_HEAD, Results, batch_rows, file_name, page, slug, step_rows, table

BEGIN, END = "<!-- begin: python -m benchmarks.gpu --docs -->", "<!-- end -->"
UNMEASURED = """No GPU has been measured yet: measure your card before you plan a run.
"""


def check(docs: Path, *, toy: bool) -> None:
    """Check that figures can be published.

    Raises:
        UserError: If they are a toy run's, or ``docs`` is not the documentation's folder.
    """
    if toy:
        raise UserError("--docs: figures of a --toy run do not belong in the documentation; remove one of the flags")
    if not (docs / "scale.md").is_file():
        raise UserError(f"--docs: {docs / 'scale.md'} does not exist; run the command in the repository's root")


def publish(results: Results, docs: Path) -> None:
    """Write a card's page and figures to ``docs/gpu``, and update the tables of ``docs/scale.md``.

    Raises:
        UserError: As :func:`check` does.
    """
    scale = docs / "scale.md"
    check(docs, toy=results["toy"])
    make_folder(docs / "gpu")
    _write(docs / "gpu" / f"{slug(results)}.json", json.dumps(results, indent=1) + "\n")
    _write(docs / "gpu" / file_name(results), page(results))
    _write(scale, renewed(scale.read_text(encoding="utf-8"), published(docs)))


def published(docs: Path) -> list[Results]:
    """Return the published figures of all cards, sorted by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((docs / "gpu").glob("*.json"))]


def renewed(text: str, cards: list[Results]) -> str:
    """Return the page with its block of tables replaced.

    Raises:
        UserError: If the page has no block.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"--docs: docs/scale.md lacks the lines {BEGIN} and {END}")
    return f"{before}{begin}\n{scale_tables(cards)}{end}{after}"


def scale_tables(cards: list[Results]) -> str:
    """Return the tables of docs/scale.md, one section per card."""
    if not cards:
        return UNMEASURED
    parts = []
    for results in cards:
        card = results["machine"]["card"]
        parts.append(f"Measured on one {card} ([all figures](gpu/{file_name(results)})):\n")
        parts.append(table(STEP_HEAD, step_rows(results)) + "\n")
        parts.append(table(BATCH_HEAD, batch_rows(results)) + "\n")
    return "\n".join(parts)


def _write(path: Path, text: str) -> None:
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
