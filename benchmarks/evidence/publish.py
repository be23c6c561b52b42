"""Write the published results into README, model card and documentation.

python -m benchmarks.evidence.publish
"""

import json
import re
from pathlib import Path
from typing import Any

from .report import details, summary, table, verdict, write_text

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
PAGES = ("README.md", "MODEL_CARD.md", "docs/index.md", "docs/does-it-help.md", "docs/evidence.md")
BLOCK = re.compile(r"(<!-- begin: evidence (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WRITERS = {"verdict": verdict, "summary": summary, "table": table}


def renewed(text: str, results: dict[str, Any]) -> str:
    """Return a page with its marked blocks replaced."""
    return BLOCK.sub(lambda block: f"{block[1]}{WRITERS[block[2]](results)}\n{block[3]}", text)


def pages(results: dict[str, Any]) -> dict[Path, str]:
    """Return the content that each page should have, by its file."""
    found = {ROOT / name: renewed((ROOT / name).read_text(encoding="utf-8"), results) for name in PAGES}
    return {**found, ROOT / "docs/evidence/details.md": details(results) + "\n"}


def main() -> None:
    """Write the pages."""
    for page, text in pages(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        write_text(page, text)
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
