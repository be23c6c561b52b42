"""The command line of the GPU measurements."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mim4d.flags import report_user_errors

from .publish import check, publish
from .run import measure


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure mim4d on one GPU in under nine minutes; run the same command again to complete what was left over."""

    out: Path
    """The folder of results.json, of the page <card>.md, and of every finished part."""
    toy: bool = False
    """Run everything on the CPU, shrunk, to try the command."""
    docs: bool = False
    """Also copy the page and the figures to docs/gpu, and write the tables of docs/scale.md from them."""


def main(options: Options) -> None:
    """Measure and report."""
    out = options.out.expanduser()
    if options.docs:
        check(Path("docs"), toy=options.toy)
    results = measure(out, toy=options.toy)
    if options.docs:
        publish(results, Path("docs"))


if __name__ == "__main__":
    with report_user_errors():
        main(tyro.cli(Options))
