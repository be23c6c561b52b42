"""``mim4d-hub export``: ONNX and torch.export files that compute what torch computes, or none."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from benchmarks.backbones import randomise
from mim4d import deploy
from mim4d.backbones.named import open_backbone
from mim4d.backbones.pyramid import make_backbone
from mim4d.commands import hub as mim4d_hub
from mim4d.errors import UserError
from mim4d.hub.folder import save_encoder
from tests.encoders import noise
from tests.hub import calls
from tests.hub.conftest import _online, cache, client, environment, hub, one_thread, server

__all__ = ["_online", "cache", "client", "environment", "hub", "one_thread", "server"]

NAMES = ("mim4d_convnext_atto", "mim4d_resnet18", "test_efficientnet", "regnety_002", "vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each family, with weights and statistics that no new model has."""
    made = {}
    for name in NAMES:
        torch.manual_seed(0)
        model = make_backbone(name)
        randomise(model)
        made[name] = tmp_path_factory.mktemp(name)
        save_encoder(model, made[name] / "encoder", image_size=(64, 96), license="cc-by-nc-sa-4.0")
    return made


def run(file, images) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})


def skip_if_torch_is_too_old(name: str) -> None:
    if name != "mim4d_convnext_atto" and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot convert this model to ONNX with this onnxscript: export with a newer torch")


@pytest.mark.parametrize("name", NAMES)
def test_onnx_computes_what_torch_does_with_standard_operators(name, runs, tmp_path, capsys):
    skip_if_torch_is_too_old(name)
    file = tmp_path / "model.onnx"
    mim4d_hub(["export", str(runs[name]), str(file), "--size", "64", "96", "--dynamic-batch"])
    out = capsys.readouterr().out
    model = deploy.Maps(open_backbone(str(runs[name])))
    for batch in (1, 3):
        images = noise(batch, 3, 64, 96, seed=batch)
        with torch.no_grad():
            expected = model(images)
        for found, reference in zip(run(file, images), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), reference, rtol=0, atol=1e-4)
    graph = onnx.load(file)
    operators = {node.op_type for node in graph.graph.node}
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert not operators & {"GridSample", "Resize"}  # a ViT's position embeddings are resampled on loading
    about = {entry.key: entry.value for entry in graph.metadata_props}
    outputs = json.loads(about["mim4d.outputs"])
    strides = [16] if "vit" in name else [4, 8, 16, 32]
    assert [(each["name"], each["stride"]) for each in outputs] == [(f"stride{s}", s) for s in strides]
    assert [each["channels"] for each in outputs] == [x.shape[1] for x in expected]
    assert [each.name for each in graph.graph.output] == [each["name"] for each in outputs]
    config = timm.get_pretrained_cfg(name)
    assert json.loads(about["mim4d.mean"]) == list(config.mean)
    assert json.loads(about["mim4d.std"]) == list(config.std)
    assert about["mim4d.license"] == "cc-by-nc-sa-4.0"
    assert b"site-packages" not in file.read_bytes()  # torch notes its source files
    assert "largest difference from torch: " in out
    assert "batch 6 on this CPU: onnxruntime " in out
    assert out.splitlines()[-1].startswith(
        f"trtexec --onnx={file} --saveEngine={tmp_path / 'model.engine'} --minShapes"
    )


@pytest.mark.parametrize("name", ["mim4d_resnet18", "vit_tiny_patch16_224"])
def test_torch_export_computes_what_torch_does(name, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # not needed
    file = tmp_path / "model.pt2"
    mim4d_hub(["export", str(runs[name]), "--torch-export", str(file), "--size", "64", "96"])
    images = noise(1, 3, 64, 96)
    with torch.no_grad():
        expected = deploy.Maps(open_backbone(str(runs[name])))(images)
    for found, reference in zip(torch.export.load(file).module()(images), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-4)


def test_float16_halves_the_file(runs, tmp_path, capsys):
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    for file, flags in ((whole, []), (half, ["--fp16", "--opset", "20"])):
        mim4d_hub(["export", "mim4d_convnext_atto", str(file), "--size", "64", "96", *flags])
    assert half.stat().st_size < 0.51 * whole.stat().st_size
    assert [entry.version for entry in onnx.load(half).opset_import] == [20]
    assert run(half, noise(1, 3, 64, 96).half())[0].dtype == np.float16
    assert capsys.readouterr().out.endswith("--stronglyTyped\n")


def test_a_backbone_on_the_hub_is_exported(client, tmp_path):
    client(calls.push, "org/name")
    file = tmp_path / "model.onnx"
    code, _, err = client(calls.run, "export", "org/name", str(file), "--size", "64", "96")
    assert code == 0, err
    found = run(file, torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    for a, b in zip(calls.features(calls.small()), found, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.from_numpy(b).flatten(), rtol=0, atol=1e-4)


def test_a_file_that_computes_something_else_is_refused(runs):
    skip_if_torch_is_too_old("mim4d_resnet18")
    model = deploy.Maps(open_backbone(str(runs["mim4d_resnet18"])))
    program = deploy.trace(model, (64, 96), dynamic_batch=False, half=False)
    changed = deploy.Maps(open_backbone(str(runs["mim4d_resnet18"])))
    with torch.no_grad():
        next(changed.parameters()).mul_(1.01)
    with pytest.raises(UserError, match=r"^onnxruntime differs from torch by .*, expected at most 0\.0"):
        deploy.to_onnx(program, model, changed, opset=18, about={})
    with pytest.raises(UserError, match=r"^torch\.export differs from torch by "):
        deploy.to_torch_export(program, changed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["x.onnx", "--size", "60", "96"], "--size 60 96: both must be multiples of 32, such as 64 96"),
        (["x.onnx", "--size", "64", "0"], "--size: 0: expected a number of pixels"),
        (["x.pth", "--size", "64", "96"], "OUT.onnx: x.pth: expected a file name that ends in .onnx"),
        (["--size", "64", "96"], "nothing to write: give OUT.onnx, or --torch-export OUT.pt2"),
        (["x.onnx", "--size", "64", "96", "--opset", "15"], "--opset 15: torch can convert this model to opset 18"),
        (["no/such/x.onnx"], "the following arguments are required: --size"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        mim4d_hub(["export", "mim4d_convnext_atto", *flags])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_difference_beyond_the_tolerance_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(deploy.TOLERANCE, torch.float32, 0.0)
    with pytest.raises(SystemExit, match="2"):
        mim4d_hub(["export", "mim4d_convnext_atto", str(tmp_path / "x.onnx"), "--size", "64", "96"])
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match="2"):
        mim4d_hub(["export", "mim4d_convnext_atto", str(tmp_path / "x.onnx"), "--size", "64", "96"])
    assert capsys.readouterr().err == f"error: no module {module}: pip install 'mim4d[export]'\n"
