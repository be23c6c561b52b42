"""``python -m benchmarks.gpu``: the whole command at toy size, and its parts where they can be wrong."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from benchmarks.gpu import publish
from benchmarks.gpu.__main__ import Options, main
from benchmarks.gpu.batches import search
from benchmarks.gpu.cases import Case
from benchmarks.gpu.compare import compare
from benchmarks.gpu.plan import Part, parts
from benchmarks.gpu.report import page
from benchmarks.gpu.run import measure
from benchmarks.gpu.stages import replaced
from benchmarks.gpu.worker import Worker
from mim4d.errors import UserError

ROOT = Path(__file__).parents[2]


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--toy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str, bytes]:
    """A toy run that was killed after its first part and started again: its folder, its output, the first part."""
    out = tmp_path_factory.mktemp("gpu")
    first = out / "parts/waits.json"
    killed = start(out)
    while not first.exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = first.read_bytes()
    again = start(out)
    told, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    return out, told, before


def test_a_killed_run_goes_on_with_the_part_that_is_missing(finished):
    out, told, before = finished
    assert "waits: already stored" in told
    assert (out / "parts/waits.json").read_bytes() == before
    assert len(re.findall(r"done in [\d.]+ s$", told, re.MULTILINE)) == len(parts("cpu", out, toy=True)) - 1


def test_results_hold_every_part(finished):
    out, _, _ = finished
    results = json.loads((out / "results.json").read_text())
    assert list(results["parts"]) == [part.name for part in parts("cpu", out / "world", toy=True)]
    assert {part["status"] for part in results["parts"].values()} == {"done"}

    found = {name: part["result"] for name, part in results["parts"].items()}
    assert [row["waits"] for row in found["waits"]["rows"]] == [0, 0]
    compared = [row for name in found if name.startswith("compare-") for row in found[name]["rows"]]
    assert {row["precision"] for row in compared} == {"fp32", "bf16"}
    assert {row["kind"] for row in compared} == {"values", "gradients"}
    assert {"neck", "lift", "warp", "temporal", "render", "losses"} < {row["stage"] for row in compared}
    assert all(row["passed"] for row in compared)
    for preset in ("gpu24", "paper", "demo"):
        assert found[f"steps-{preset}"]["clips_per_s"] > 0
    assert [row["stage"] for row in found["stages-gpu24"]["rows"]][:2] == ["encoder", "neck"]
    assert found["batch-gpu24"]["batch"] == 1
    assert found["loading-gpu24"]["wait_ms"] >= 0


def test_the_page_shows_what_was_measured(finished):
    out, _, _ = finished
    text = (out / "toy-cpu.md").read_text()
    assert "**no figure here says anything about a GPU.**" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Whole steps",
        "Largest batch",
        "Stages",
        "Wait for data",
        "Agreement with the CPU",
        "Host waits in a step",
    ]
    for row in (
        r"\| gpu24 \| `mim4d_convnext_atto` \| bf16 \| 1 \| eager \| [\d.]+ \|",
        r"\| lift \| fp32 \| values \|",
    ):
        assert re.search(row, text), row
    assert str(out) not in text


def test_the_page_says_what_was_not_measured(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    results["parts"]["loading-gpu24"] = {"status": "not run", "reason": "the time was over"}
    results["parts"]["steps-demo"]["result"] = {
        **{
            name: results["parts"]["steps-demo"]["result"][name] for name in ("preset", "encoder", "precision", "batch")
        },
        "compiled": True,
        "error": "BackendCompilerFailed: no | compiler",
    }
    text = page(results)
    assert "| loading-gpu24 | not run: the time was over |" in text
    assert "not compiled: BackendCompilerFailed: no / compiler" in text


def test_no_time_left_runs_nothing(tmp_path):
    results = measure(tmp_path, toy=True, budget=0)
    assert {part["status"] for part in results["parts"].values()} == {"not run"}
    assert "Nothing has been measured yet." in (tmp_path / "toy-cpu.md").read_text()


def test_figures_of_another_card_are_not_mixed_in(tmp_path):
    (tmp_path / "machine.json").write_text('{"card": "NVIDIA X", "torch": "2.4.0"}')
    with pytest.raises(UserError, match="holds figures of card NVIDIA X, not CPU: choose another"):
        measure(tmp_path, toy=True, budget=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(UserError, match="no CUDA device found"):
        measure(tmp_path, toy=False)


# --- parts -----------------------------------------------------------------------------------------------------------


def toy(preset: str = "gpu24"):
    return dataclasses.replace(Case(preset=preset, toy=True).config(), precision="fp32")


def test_other_rounding_passes():
    def in_float64(model):
        forward = model.neck.forward

        def run(maps, visible):
            weights = {name: parameter.double() for name, parameter in model.neck.named_parameters()}
            with replaced(model.neck, "forward", forward):
                return functional_call(model.neck, weights, ([x.double() for x in maps], visible)).float()

        model.neck.forward = run

    rows = compare(toy(), ("neck",), "cpu", on_device=in_float64)
    assert all(row["passed"] for row in rows)
    assert all(row["rms"] > 0 for row in rows if row["precision"] == "fp32")


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_wrong_device_does_not_pass(error):
    def spoil(model):
        with torch.no_grad():
            model.neck.laterals[-1].weight.mul_(1 + error)  # what TensorFloat-32 would do, and worse

    rows = compare(toy(), ("neck", "warp"), "cpu", on_device=spoil)
    verdicts = {(row["stage"], row["kind"]): row["passed"] for row in rows if row["precision"] == "fp32"}
    assert not verdicts["neck", "values"]
    assert verdicts["warp", "values"]


def test_the_largest_batch_is_found():
    for largest in range(18):
        asked = []
        assert search(lambda batch: asked.append(batch) or batch <= largest, 16) == min(largest, 16)  # noqa: B023
        assert len(asked) <= 10
        assert max(asked) <= 16


def test_a_part_that_hangs_or_fails_costs_only_itself():
    worker = Worker("cpu")
    try:
        assert worker.run(Part("hangs", 0, partial(time.sleep, 600)), 0.5)["status"] == "timeout"
        assert worker.run(Part("works", 0, partial(dict, answer=42)), 60) == {
            "status": "done",
            "result": {"answer": 42},
        }
        failed = worker.run(Part("fails", 0, partial(int, "x")), 60)
        assert failed["status"] == "failed"
        assert failed["reason"].startswith("ValueError: invalid literal")
    finally:
        worker.close()


# --- documentation ---------------------------------------------------------------------------------------------------


def test_the_documentation_shows_the_figures_kept():
    text = (ROOT / "docs/scale.md").read_text()
    assert publish.renewed(text, publish.published(ROOT / "docs")) == text


def test_figures_of_a_card_reach_the_documentation(finished, tmp_path):
    results = json.loads((finished[0] / "results.json").read_text())
    (tmp_path / "scale.md").write_text(f"# Scale\n\n{publish.BEGIN}\nold\n{publish.END}\n\nmore\n")
    with pytest.raises(UserError, match="do not belong in the documentation"):
        publish.publish(results, tmp_path)
    with pytest.raises(UserError, match="do not belong in the documentation"):
        main(Options(out=tmp_path / "out", toy=True, docs=True))
    assert not (tmp_path / "out").exists()
    results |= {"toy": False}
    results["machine"] |= {"card": "NVIDIA Z100 80GB"}
    publish.publish(results, tmp_path)
    text = (tmp_path / "scale.md").read_text()
    assert "old" not in text
    assert "Measured on one NVIDIA Z100 80GB ([all figures](gpu/nvidia-z100-80gb.md))" in text
    assert text.endswith("\n\nmore\n")
    assert (tmp_path / "gpu/nvidia-z100-80gb.md").read_text() == page(results)
    assert publish.published(tmp_path) == [results]
