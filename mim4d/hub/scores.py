"""Scores of a released encoder: ``scores.json``, ``scores.png`` and ``report.html`` beside its weights.

``mim4d-hub release`` writes them; the card shows them, and every push publishes them with the weights.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import WeightsError
from ..io.files import write_bytes
from .folder import EncoderConfig

SCORES, PICTURE, REPORT = "scores.json", "scores.png", "report.html"


@dataclass(frozen=True)
class Result:
    """One score of the encoder."""

    task: str
    """A task of ``mim4d-eval``."""
    data: str
    """What it was scored on."""
    name: str
    """Such as ``vehicle AP``."""
    labels: float
    """Fraction of the labels that was used."""
    mean: float
    """Over the seeds, percent."""
    half: float | None
    """Half of the 95 % interval; None for one seed."""


@dataclass(frozen=True)
class ReleaseScores:
    """All scores of an encoder."""

    sha256: str | None
    """Of the weights that were scored."""
    tables: tuple[str, ...]
    """In Markdown, one per task."""
    results: tuple[Result, ...]

    def write(self, folder: Path) -> None:
        """Write ``scores.json`` into an encoder folder."""
        write_bytes(folder / SCORES, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_scores(folder: Path, config: EncoderConfig) -> ReleaseScores | None:
    """Read the scores of an encoder folder; None if there are none, or they are of other weights.

    Raises:
        WeightsError: If the file cannot be read.
    """
    file = folder / SCORES
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        results = tuple(Result(**result) for result in values["results"])
        scores = ReleaseScores(values["sha256"], tuple(map(str, values["tables"])), results)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"cannot read {file}: remove it, or run mim4d-hub release again") from error
    return scores if scores.sha256 == config.provenance.get("sha256") else None
