"""The code in docs/integrations, run with stubs of the other codebases."""

import ast
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from mim4d import MIM4DEncoder
from mim4d.backbones.pyramid import make_backbone
from mim4d.hub.cli import main
from mim4d.hub.folder import save_encoder
from mim4d.integrations.openmmlab import mim4d_encoder

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.stem: page.read_text() for page in (DOCS / "integrations.md", *DOCS.glob("integrations/*.md"))}
WIDTHS = [40, 80, 160, 320]


def blocks(page: str, language: str = "python") -> list[str]:
    """The code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def table(page: str) -> list[list[str]]:
    """The rows of a page's tables."""
    return [re.split(r" \| ", row) for row in re.findall(r"^\| (.*) \|$", PAGES[page], re.MULTILINE)]


def run(code: str, **names) -> dict:
    exec(code, names)
    return names


class Join(nn.Module):
    """What these codebases have to put a coarse map on a fine one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, coarse, fine):
        return self.conv(torch.cat([fine, nn.functional.interpolate(coarse, size=fine.shape[-2:])], dim=1))


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch) -> str:
    """A run in runs/pretrain of the working directory; its encoder by timm's name."""
    monkeypatch.chdir(tmp_path)
    save_encoder(timm.create_model("mim4d_convnext_atto"), tmp_path / "runs/pretrain/encoder")
    return "local-dir:runs/pretrain/encoder"


def test_every_block_is_run_here():
    code = {name: re.findall(r"^```(\w+)", page, re.MULTILINE) for name, page in PAGES.items()}
    assert {name: languages for name, languages in code.items() if languages} == {
        "timm": ["python", "python"],
        "torch-hub": ["python"],
        "openmmlab": ["python", "python", "sh"],
        "detectron2": ["python"],
        "lift-splat-shoot": ["python", "python"],
        "simple-bev": ["python"],
        "cross-view-transformers": ["python", "yaml"],
        "fiery": ["python", "python"],
        "pointbev": ["python", "yaml"],
    }


def test_the_index_links_every_page():
    assert set(re.findall(r"\(integrations/([\w-]+)\.md\)", PAGES["integrations"])) == PAGES.keys() - {"integrations"}


def test_timm():
    load, channels = blocks("timm")
    assert [m.shape[1] for m in run(load)["backbone"](torch.zeros(1, 3, 64, 64))] == WIDTHS
    names = run(channels)
    assert f"{names['channels']}, {names['strides']}" in channels


@pytest.mark.parametrize("row", [row for row in table("timm") if row[0].startswith("`")])
def test_the_table_of_channels(row):
    for arch in re.findall(r"`(\w+)`", row[0]):
        with torch.device("meta"):
            info = timm.create_model(f"mim4d_{arch}", features_only=True, out_indices=(-4, -3, -2, -1)).feature_info
        assert info.channels() == [int(width) for width in row[1].split(",")]


@pytest.mark.parametrize("row", [row for row in table("bev-detectors") if row[1].startswith("`(")])
def test_the_table_of_necks(row):
    for arch in ("convnext_tiny", "convnext_small"):
        with torch.device("meta"):
            backbone = mim4d_encoder(arch, out_indices=ast.literal_eval(row[1].strip("`")))
        assert list(backbone.out_channels) == ast.literal_eval(row[2].strip("`"))


def test_torch_hub():
    (code,) = blocks("torch-hub")
    names = run(code.replace("CLONE", str(DOCS.parent)).replace("convnext_small", "convnext_atto"))
    for encoder in (names["encoder"], names["untrained"]):
        assert isinstance(encoder, MIM4DEncoder)
        assert encoder.widths() == WIDTHS


def test_openmmlab(tmp_path):
    config = pytest.importorskip("mmengine.config", reason="mmengine is not installed: see requirements.txt")
    from mmengine.registry import MODELS

    code, _ = blocks("openmmlab")
    (tmp_path / "base.py").write_text('model = dict(img_backbone=dict(type="ResNet", depth=50))')
    (tmp_path / "config.py").write_text(f'_base_ = ["base.py"]\n{code}'.replace("convnext_small", "convnext_atto"))
    backbone = MODELS.build(config.Config.fromfile(tmp_path / "config.py").model.img_backbone)
    backbone.init_weights()
    assert [m.shape[1] for m in backbone(torch.zeros(1, 3, 64, 64))] == WIDTHS[1:]


def test_openmmlab_with_another_timm_model(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed: see requirements.txt")
    from mmengine.registry import MODELS

    _, code = blocks("openmmlab")
    save_encoder(make_backbone("tf_efficientnet_lite0"), tmp_path / "runs/lite0/encoder")
    backbone = MODELS.build(run(code)["img_backbone"])
    backbone.init_weights()
    assert (backbone.out_channels, backbone.out_strides) == ((112, 320), (16, 32))


def test_an_old_environments_own_resnet(mmdet, tmp_path):
    from mmdet.registry import MODELS

    encoder = timm.create_model("mim4d_resnet50").eval()
    save_encoder(encoder, tmp_path / "runs/pretrain/encoder")
    (command,) = blocks("openmmlab", "sh")
    assert command == 'mim4d-hub convert runs/pretrain resnet50.pth --prefix ""\n'
    main(["convert", "runs/pretrain", "resnet50.pth", "--prefix", ""])
    theirs = MODELS.build(dict(type="ResNet", depth=50, init_cfg=dict(type="Pretrained", checkpoint="resnet50.pth")))
    theirs.init_weights()
    theirs.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(theirs(images), encoder.forward_intermediates(images, intermediates_only=True)[-4:], strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_detectron2(monkeypatch, run_folder):
    builders = {}

    class Registry:
        def register(self):
            return lambda builder: builders.setdefault(builder.__name__, builder)

    layers, modeling = types.ModuleType("detectron2.layers"), types.ModuleType("detectron2.modeling")
    layers.ShapeSpec = SimpleNamespace
    modeling.BACKBONE_REGISTRY, modeling.Backbone = Registry(), nn.Module
    for module in (types.ModuleType("detectron2"), layers, modeling):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (code,) = blocks("detectron2")
    run(code)
    backbone = builders["build_timm_backbone"](SimpleNamespace(MODEL=SimpleNamespace(WEIGHTS=run_folder)), None)
    maps = backbone(torch.zeros(1, 3, 64, 64))
    for (name, spec), width, stride in zip(backbone.output_shape().items(), WIDTHS, (4, 8, 16, 32), strict=True):
        assert (spec.channels, spec.stride) == (width, stride)
        assert maps[name].shape == (1, width, 64 // stride, 64 // stride)


def method(code: str, **names):
    """Lines that stand in a method, as a function of ``self`` and ``x``."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    return run(f"def method(self, x=None, cfg=None):\n{body}", timm=timm, **names)["method"]


def test_lift_splat_shoot():
    make, forward = (method(code, Up=Join) for code in blocks("lift-splat-shoot"))
    camera = SimpleNamespace()
    make(camera)
    assert forward(camera, torch.zeros(1, 3, 64, 96)).shape == (1, 512, 4, 6)


def test_simple_bev(run_folder):
    (code,) = blocks("simple-bev")
    encoder = run(code, nn=nn, timm=timm, UpsamplingConcat=Join)["EncoderTimm"](128, run_folder)
    assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, 128, 8, 12)


def test_cross_view_transformers(run_folder):
    (code,) = blocks("cross-view-transformers")
    extractor = run(code)["TimmExtractor"](run_folder, image_height=64, image_width=96)
    assert [tuple(m.shape) for m in extractor(torch.zeros(1, 3, 64, 96))] == extractor.output_shapes
    assert f"backbone: {run_folder}" in blocks("cross-view-transformers", "yaml")[0]


@pytest.mark.parametrize("downsample", [8, 16])
def test_fiery(run_folder, downsample):
    make, forward = blocks("fiery")
    encoder = SimpleNamespace(downsample=downsample)
    make += "self.upsampling_layer = UpsamplingConcat(upsampling_in_channels, upsampling_out_channels)\n"  # their next
    method(make, UpsamplingConcat=Join)(encoder, cfg=SimpleNamespace(NAME=run_folder))
    x = method(forward)(encoder, torch.zeros(1, 3, 64, 96))
    assert x.shape == (1, {8: 128, 16: 512}[downsample], 64 // downsample, 96 // downsample)


def test_pointbev(monkeypatch, run_folder):
    parts = ["pointbev", "models", "img_encoder", "backbones", "common"]
    for i in range(len(parts)):
        module = types.ModuleType(".".join(parts[: i + 1]))
        module.Backbone = nn.Module
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (code,) = blocks("pointbev")
    backbone = run(code)["TimmBackbone"](run_folder)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"out0": (1, 80, 8, 12), "out1": (1, 160, 4, 6)}
    assert f"name: {run_folder}" in blocks("pointbev", "yaml")[0]
