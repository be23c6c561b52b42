"""Run all parts within the time budget; store each part and update the report after it."""

import hashlib
import json
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import mim4d
from mim4d.errors import UserError
from mim4d.io.files import make_folder, write_file

from .plan import Part, parts
from .report import file_name, page
from .worker import Worker

BUDGET = 520.0
"""Seconds per call; unfinished parts are left for the next call."""
WORTHWHILE = 15.0
"""Least remaining seconds to begin another part."""
FINISHED = ("done", "skipped")
"""Outcomes that are final."""


def measure(out: Path, *, toy: bool, budget: float = BUDGET) -> dict[str, Any]:
    """Run the parts that are not yet stored in ``out``, and write ``results.json`` and the page.

    Args:
        out: Output folder; parts of an earlier call with the same code and card are kept.
        toy: Run everything shrunk on the CPU.
        budget: Seconds.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: If there is no GPU, or ``out`` holds figures of another card.
    """
    begun = time.monotonic()
    if not toy and not torch.cuda.is_available():
        raise UserError("no CUDA device found: run on a machine with a GPU, or add --toy to try the command on the CPU")
    device = "cpu" if toy else "cuda"
    console = Console(highlight=False, soft_wrap=True)
    plan = parts(device, out / "world", toy)
    worker = Worker(device)
    try:
        here = _machine(worker, device)
        stored = _open(out, here)
        for number, part in enumerate(plan, 1):
            label = f"[{number}/{len(plan)}] {part.name}"
            if _finished(stored.get(part.name)):
                console.print(f"{label}: already stored", markup=False)
                continue
            left = budget - (time.monotonic() - begun)
            if left < WORTHWHILE:
                stored.setdefault(part.name, {"status": "not run", "reason": "no time left"})
                continue
            outcome = _run(worker, part, min(part.seconds, left))
            stored[part.name] = outcome
            _write_json(out / "parts" / f"{part.name}.json", outcome)
            _report(out, stored, plan, here, toy)
            reason = f": {outcome['reason']}" if "reason" in outcome else ""
            console.print(f"{label}: {outcome['status']} in {outcome['seconds']:.1f} s{reason}", markup=False)
    finally:
        worker.close()
    results = _report(out, stored, plan, here, toy)
    left_over = [part.name for part in plan if not _finished(stored.get(part.name))]
    if left_over:
        console.print(f"not finished: {', '.join(left_over)}; run the same command again to continue", markup=False)
    console.print(f"wrote {out / 'results.json'} and {out / file_name(results)}", markup=False)
    return results


def machine(device: str) -> dict[str, Any]:
    """Describe the card and the software."""
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        found["card"] = "CPU"
    return found


def _machine(worker: Worker, device: str) -> dict[str, Any]:
    """Describe the machine by the worker, so that this process needs no CUDA context."""
    if device == "cpu":
        return machine(device)
    outcome = worker.run(Part("machine", 60, partial(machine, device)), 60)
    if outcome["status"] != "done":
        raise UserError(f"the GPU does not respond: {outcome['reason']}")
    found: dict[str, Any] = outcome["result"]
    return found


def code_digest() -> str:
    """Return a short sha256 of all Python files of the package and of this benchmark."""
    root, digest = Path(mim4d.__file__).parent, hashlib.sha256()
    for folder in (root, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _open(out: Path, here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the stored parts that were made by the current code."""
    make_folder(out / "parts")
    path = out / "machine.json"
    there = _read_json(path) or here
    for name in ("card", "torch"):
        if there.get(name) != here[name]:
            raise UserError(
                f"--out {out} holds figures of {name} {there.get(name)}, not {here[name]}: choose another folder"
            )
    _write_json(path, here)
    code = code_digest()
    found = {file.stem: _read_json(file) for file in sorted((out / "parts").glob("*.json"))}
    return {name: part for name, part in found.items() if part and part.get("code") == code}


def _run(worker: Worker, part: Part, seconds: float) -> dict[str, Any]:
    start = time.monotonic()
    outcome = worker.run(part, seconds)
    return {**outcome, "seconds": time.monotonic() - start, "code": code_digest()}


def _finished(outcome: dict[str, Any] | None) -> bool:
    return outcome is not None and outcome["status"] in FINISHED


def _report(
    out: Path, stored: dict[str, dict[str, Any]], plan: list[Part], here: dict[str, Any], toy: bool
) -> dict[str, Any]:
    missing = {"status": "not run", "reason": "not reached yet"}
    results = {
        "mim4d": mim4d.__version__,
        "code": code_digest(),
        "toy": toy,
        "machine": here,
        "parts": {part.name: stored.get(part.name, missing) for part in plan},
    }
    _write_json(out / "results.json", results)
    write_file(out / file_name(results), lambda file: file.write_text(page(results), encoding="utf-8"))
    return results


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None if it is missing or broken; the part is then run again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1) + "\n"
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))
