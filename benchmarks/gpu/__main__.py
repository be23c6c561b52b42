"""The command line of the GPU measurements."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mim4d.flags import report_user_errors

from .publish import check, publish
from .run import measure


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure mim4d on one GPU in under nine minutes. Run the same command again to complete unfinished parts."""

    out: Path
    """Folder for results.json, the page <card>.md, and every finished part."""
    toy: bool = False
    """Try the command on a CPU, with everything shrunk."""
    docs: bool = False
    """Also copy the page and the figures to docs/gpu, and update the tables of docs/scale.md."""


def main(options: Options) -> None:
    """Run the measurements and write the report."""
    out = options.out.expanduser()
    if options.docs:
        check(Path("docs"), toy=options.toy)
    results = measure(out, toy=options.toy)
    if options.docs:
        publish(results, Path("docs"))


if __name__ == "__main__":
    with report_user_errors():
        main(tyro.cli(Options))
