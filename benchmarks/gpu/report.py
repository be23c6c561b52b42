"""Write the page of one card and the tables of docs/scale.md from ``results.json``."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

Results = dict[str, Any]
NOTHING = "\N{EN DASH}"
COMMAND = "python -m benchmarks.gpu --out DIR"


def slug(results: Results) -> str:
    """Return the card's name as a file name, such as ``nvidia-h100-80gb-hbm3``."""
    name = re.sub(r"[^a-z0-9]+", "-", results["machine"]["card"].lower()).strip("-")
    return f"toy-{name}" if results["toy"] else name


def file_name(results: Results) -> str:
    """Return the page's file name."""
    return f"{slug(results)}.md"


def page(results: Results) -> str:
    """Return the page in Markdown."""
    where = results["machine"]
    software = f"mim4d {results['mim4d']}, torch {where['torch']}, Python {where['python']}"
    if where["device"] == "cuda":
        software += f", CUDA {where['cuda']}, cuDNN {where['cudnn']}, {where['memory_gb']:.1f} GB of GPU memory"
    toy = "This was a toy run on the CPU: **no figure here says anything about a GPU.**\n\n" if results["toy"] else ""
    return "".join(
        [
            f"---\norphan: true\n---\n\n# {where['card']}\n\n{toy}{_headline(results)}\n\n",
            f"Produced by `{COMMAND}{' --toy' if results['toy'] else ''}` ({software}).\n",
            _section("Whole steps", STEPS, table(STEP_HEAD, step_rows(results))),
            _section("Largest batch", BATCHES, table(BATCH_HEAD, batch_rows(results))),
            _section("Stages", TIMES, table(STAGE_HEAD, _stage_rows(results))),
            _section("Wait for data", LOADING, table(LOADING_HEAD, _loading_rows(results))),
            _section("Agreement with the CPU", AGREEMENT, table(COMPARE_HEAD, _compare_rows(results))),
            _section("Host waits in a step", WAITS, table(WAIT_HEAD, _wait_rows(results))),
            _section("Not measured", "", table(("part", "why"), _missing_rows(results))),
        ]
    )


STEPS = """Median time of a training step: forward and backward pass, gradient clipping and AdamW, on one batch of
synthetic clips that stays on the device. Host: time to issue a step; if it is close to the step's own time, the GPU
waits for the host. Memory: peak memory of tensors in GB (10^9 bytes). fp32 is torch's default: TensorFloat-32 in
convolutions, float32 in matrix products."""
BATCHES = "The largest number of clips per batch with which two whole steps run, found by doubling and bisecting."
TIMES = """Median times with the preset's own batch. Encoder includes the sampling of the mask, losses that of the rays;
render is one of the step's two renderings. Memory: the peak in addition to weights and inputs."""
LOADING = """Steps with data from the real loader on a synthetic world, compared with steps on one batch in memory. The
wait is the difference."""
AGREEMENT = """Differences relative to the CPU's float32 result, with TensorFloat-32 off. rms: all tensors as one
vector; largest: the worst tensor, relative to its largest value. The bound is 4 times the CPU's own uncertainty: the
change of its result when weights, inputs and geometry change by 2^-24 x sqrt(4096), the rounding error of float32 in
the longest sums; for bf16, the distance of the CPU's own autocast from float32 is added."""
WAITS = """Places where the host waits until the device has finished. On a GPU: warnings of
torch.cuda.set_sync_debug_mode in a whole step with its copy of the clip, or the profiler's operators, whichever are
more. On the CPU: the profiler's operators in a forward and a backward pass."""

STEP_HEAD = ("preset", "encoder", "precision", "batch", "mode", "ms per step", "host, ms", "clips/s", "memory, GB")
BATCH_HEAD = ("preset", "encoder", "precision", "largest batch", "stopped by")
STAGE_HEAD = ("preset", "stage", "mode", "forward, ms", "forward + backward, ms", "memory, GB")
LOADING_HEAD = ("preset", "workers", "loader alone, clips/s", "step in memory, ms", "step with loader, ms", "wait, ms")
COMPARE_HEAD = ("stage", "precision", "of", "rms", "bound", "largest", "bound", "")
WAIT_HEAD = ("encoder", "waits", "operators and calls", "places")


def done(results: Results, prefix: str) -> Iterable[dict[str, Any]]:
    """Yield the results of all finished parts whose names begin with ``prefix``."""
    for name, part in results["parts"].items():
        if name.startswith(prefix) and part["status"] == "done":
            yield part["result"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; empty without rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def step_rows(results: Results) -> list[list[str]]:
    """Return the rows of :data:`STEP_HEAD`."""
    rows = []
    for r in (*done(results, "steps-"), *done(results, "compiled-steps-")):
        cells = [r["preset"], f"`{r['encoder']}`", r["precision"], str(r["batch"]), _mode(r)]
        if "error" in r:
            rows.append([*cells, f"not compiled: {_plain(r['error'])}", NOTHING, NOTHING, NOTHING])
            continue
        numbers = [_number(r, "ms", 1), _number(r, "host_ms", 1), _number(r, "clips_per_s", 2)]
        rows.append([*cells, *numbers, _number(r, "peak_gb", 2)])
    return rows


def batch_rows(results: Results) -> list[list[str]]:
    """Return the rows of :data:`BATCH_HEAD`."""
    return [
        [
            r["preset"],
            f"`{r['encoder']}`",
            r["precision"],
            f"{r['batch']} or more" if r["at_least"] else str(r["batch"]),
            _plain("; ".join(r["stopped_by"])) or NOTHING,
        ]
        for r in done(results, "batch-")
    ]


def _stage_rows(results: Results) -> list[list[str]]:
    rows = []
    for part in (*done(results, "stages-"), *done(results, "compiled-stages-")):
        for r in part["rows"]:
            cells = [r["preset"], r["stage"], _mode(r)]
            if "error" in r:
                rows.append([*cells, f"not compiled: {_plain(r['error'])}", NOTHING, NOTHING])
            else:
                rows.append([*cells, _number(r, "forward_ms", 2), _number(r, "ms", 2), _number(r, "added_gb", 2)])
    return rows


def _loading_rows(results: Results) -> list[list[str]]:
    return [
        [
            r["preset"],
            str(r["workers"]),
            _number(r, "loader_clips_per_s", 2),
            _number(r, "in_memory_ms", 1),
            _number(r, "with_loader_ms", 1),
            _number(r, "wait_ms", 1),
        ]
        for r in done(results, "loading-")
    ]


def _compare_rows(results: Results) -> list[list[str]]:
    return [
        [
            r["stage"],
            r["precision"],
            r["kind"],
            *(f"{r[name]:.1e}" for name in ("rms", "rms_bound", "largest", "largest_bound")),
            "pass" if r["passed"] else "**FAIL**",
        ]
        for part in done(results, "compare-")
        for r in part["rows"]
    ]


def _wait_rows(results: Results) -> list[list[str]]:
    return [
        [
            f"`{r['encoder']}`",
            str(r["waits"]),
            ", ".join(f"{name} {times}" for name, times in r["operators"].items()) or "none",
            _plain("; ".join(r["places"])) or NOTHING,
        ]
        for part in done(results, "waits")
        for r in part["rows"]
    ]


def _missing_rows(results: Results) -> list[list[str]]:
    return [
        [name, f"{part['status']}: {_plain(part['reason'])}"]
        for name, part in results["parts"].items()
        if part["status"] != "done"
    ]


def _headline(results: Results) -> str:
    """Return the main results in one sentence."""
    facts = []
    rows = [r for part in done(results, "compare-") for r in part["rows"]]
    if rows:
        failed = [r for r in rows if not r["passed"]]
        facts.append(f"{len(rows) - len(failed)} of {len(rows)} comparisons with the CPU are within their bounds")
    for r in done(results, "steps-gpu24"):
        if r["encoder"] == "mim4d_convnext_small" or results["toy"]:
            facts.append(f"`gpu24` trains at {r['clips_per_s']:.2f} clips/s")
            if "peak_gb" in r:
                facts[-1] += f" with a peak of {r['peak_gb']:.1f} GB"
            break
    waits = [r["waits"] for part in done(results, "waits") for r in part["rows"]]
    if waits:
        facts.append(f"the host waits {max(waits)} times per step")
    text = "; ".join(facts)
    return f"{text[0].upper()}{text[1:]}." if text else "Nothing has been measured yet."


def _section(title: str, text: str, body: str) -> str:
    if not body:
        return ""
    return "\n".join(x for x in (f"\n## {title}\n", text and f"{text}\n", body) if x) + "\n"


def _mode(row: dict[str, Any]) -> str:
    breaks = row.get("graph_breaks")
    if not row["compiled"]:
        return "eager"
    return "compiled" if breaks is None else f"compiled ({breaks} graph breaks, {row['compile_s']:.0f} s)"


def _number(row: dict[str, Any], name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f}" if name in row else NOTHING


def _plain(text: str) -> str:
    """Return text without characters that would break a table cell."""
    return " ".join(text.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")").split())
