"""What tests let the Hub's client do, in a process whose Hub is the test's; see conftest.py."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from safetensors.torch import load_file

from mim4d import MIM4DEncoder, release
from mim4d.commands import hub
from mim4d.hub.folder import save_encoder
from mim4d.hub.push import Publisher
from mim4d.hub.team import TeamHub
from tests.encoders import shake

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24))
"""A narrow encoder: a hundred kilobytes."""


def small(seed: int = 0, **changes) -> MIM4DEncoder:
    """A narrow encoder with weights of its own at every parameter, layer scale too."""
    return shaken(timm.create_model("mim4d_convnext_atto", **{**SMALL, **changes}), seed)


def shaken(model, seed: int = 0):
    """In evaluation mode, with random values for all that a checkpoint holds."""
    return shake(model, seed).eval()


def features(encoder) -> list[list[float]]:
    """The four stages' maps of one image, as numbers."""
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = (
            encoder(image)
            if type(encoder).__name__.startswith("Feature")
            else encoder.forward_intermediates(image, intermediates_only=True)
        )
    return [m.flatten().tolist() for m in maps]


def digest(features: list[list[float]]) -> str:
    """Features to compare bit for bit."""
    return hashlib.sha256(json.dumps(features).encode()).hexdigest()


def publish_table(organisation: str, cache: str) -> str:
    """Write the table of models into the README of an organisation; what the command prints."""
    with (
        patch.dict(os.environ, MIM4D_HUB=organisation, MIM4D_CACHE=cache),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        release.publish_table(TeamHub(organisation, "a test"))
    return out.getvalue()


def push(repo: str, seed: int = 0, **how) -> str:
    """Publish a narrow encoder; the address of its commit."""
    return small(seed).push_to_hub(repo, **how)


def push_while_another_does(repo: str, folder: str) -> None:
    """Publish a narrow encoder that someone else's push overtakes between plan and commit."""
    save_encoder(small(seed=1), Path(folder) / "encoder")
    publisher = Publisher()
    plan = publisher.plan(Path(folder), repo)
    push(repo, seed=2)
    publisher.push(plan)


def load(repo: str, **how) -> list[list[float]]:
    """The features of a published encoder."""
    return features(MIM4DEncoder.from_pretrained(repo, **how))


def create(name: str, **how) -> list[list[float]]:
    """The features of a named model with its weights."""
    return features(timm.create_model(name, pretrained=True, **how).eval())


def pretrained_cfg(name: str, **how) -> dict:
    """What a named model with its weights says of them."""
    return timm.create_model(name, pretrained=True, **how).pretrained_cfg


def run(*argv: str) -> tuple[int, str, str]:
    """``mim4d-hub``: exit code, output, errors."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            hub(list(argv))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def set_hub(place: str) -> None:
    """``export MIM4D_HUB=...`` for the calls that follow; empty: none."""
    os.environ["MIM4D_HUB"] = place


PLAIN_TIMM = """
import sys
sys.modules["mim4d"] = None  # importing it is an error
import timm, torch
from safetensors.torch import save_file
model = timm.create_model(sys.argv[1], pretrained=True, features_only=True).eval()
image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
save_file({str(i): x.detach().contiguous() for i, x in enumerate(model(image))}, sys.argv[2])
"""


def plain_timm(name: str, folder: str) -> list[list[float]]:
    """The features that timm gives in a process without this package."""
    file = Path(folder) / "features.safetensors"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", PLAIN_TIMM, name, str(file)], cwd=folder, env=one_thread, check=True, timeout=300
    )
    found = load_file(file)
    return [found[str(i)].flatten().tolist() for i in range(4)]
