"""Encoder folders and weight files from anywhere: one line or a working encoder, no traceback, none of their code."""

import contextlib
import io
import time
import warnings
from pathlib import Path

import pytest
import timm

from mim4d import MIM4DEncoder
from mim4d.backbones.weights import initialise, license_of
from mim4d.errors import UserError
from mim4d.eval.model import make_encoder
from mim4d.hub.folder import save_encoder
from mim4d.hub.openmmlab import read_backbone
from tests.fuzz.weights import cases
from tests.hub import calls

SLOW = 20.0
"""Seconds that one way to read one case may take on a busy machine; a few hundredths are usual."""


def read(what: str, case, encoder) -> str:
    """Let a part of the package read a case: what a user would see of a refusal; empty if it is read."""
    if what in ("card", "convert"):
        argv = ["card", str(case.folder)] if what == "card" else ["convert", str(case.folder), str(case.folder / "out")]
        code, out, err = calls.run(*argv)
        assert code in (0, 2), err
        assert "Traceback" not in err
        assert all(character.isprintable() or character == "\n" for character in out + err)
        assert "a secret" not in out
        return err
    ways = {
        "from_pretrained": lambda: MIM4DEncoder.from_pretrained(case.folder),
        "--init folder": lambda: initialise(encoder, str(case.folder)),
        "--init checkpoint": lambda: initialise(encoder, str(case.checkpoint)),
        "convert checkpoint": lambda: read_backbone(case.checkpoint),
        "--backbone": lambda: make_encoder(str(case.folder), "pretrained"),
        "licence": lambda: license_of(str(case.folder)),
    }
    try:
        ways[what]()
    except UserError as refusal:
        return str(refusal)
    return ""


WAYS = (
    "from_pretrained",
    "--init folder",
    "--init checkpoint",
    "convert checkpoint",
    "card",
    "convert",
    "--backbone",
    "licence",
)


@pytest.fixture
def good(tmp_path) -> Path:
    made = {"init": "scratch", "data": "synthetic", "dataset": "v1.0-mini", "split": "mini_train", "steps": 3}
    rows = {"first": {"step": 1, "loss": 3.0}, "last": {"step": 3, "loss": 2.0}}
    settings = {"frames": 3, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}}
    provenance = {**made, "measured": rows, "settings": settings}
    save_encoder(calls.small(), tmp_path / "good", image_size=(64, 96), license="mit", provenance=provenance)
    return tmp_path / "good"


def test_no_case_ends_in_a_traceback_or_runs_its_code(good, tmp_path, fuzz_size):
    encoder = timm.create_model("mim4d_convnext_atto", **calls.SMALL)
    faults, refused = [], 0
    for case in cases(tmp_path / "cases", good, count=fuzz_size):
        for what in WAYS:
            if "checkpoint" in what and case.of_config:
                continue  # it is a good one
            start = time.perf_counter()
            try:
                with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                    warnings.simplefilter("ignore")
                    refused += bool(refusal := read(what, case, encoder))
                assert "\n" not in refusal.strip(), refusal
            except Exception as error:
                faults.append(f"{case.name}, {what}: {type(error).__name__}: {str(error)[:300]!r}")
            if time.perf_counter() - start > SLOW:
                faults.append(f"{case.name}, {what}: {time.perf_counter() - start:.0f} s")
        if case.canary.exists():
            faults.append(f"{case.name}: its code was run")
    assert not faults, "\n".join(faults)
    assert refused > 2 * fuzz_size  # most are refused by many who read them


def test_the_good_folder_is_read_by_all(good, tmp_path):
    case = next(iter(cases(tmp_path / "cases", good, count=1)))
    (case.folder / "config.json").write_bytes((good / "config.json").read_bytes())
    (case.folder / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    encoder = timm.create_model("mim4d_convnext_atto", **calls.SMALL)
    for what in WAYS:
        if what != "convert checkpoint":  # a narrow encoder has no name to be found by
            assert not read(what, case, encoder), what
