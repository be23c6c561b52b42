"""Encoders of any timm architecture: exported, they load in plain timm and here, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from benchmarks.backbones import randomise
from mim4d import MIM4DEncoder
from mim4d.backbones.named import open_backbone
from mim4d.backbones.pyramid import make_backbone
from mim4d.eval.model import make_encoder
from mim4d.hub.folder import save_encoder

NAMES = (
    "test_efficientnet",
    "regnety_002",
    "ese_vovnet19b_dw",
    "convnext_atto",
    "test_vit",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
)
PLAIN = """
import json, sys
sys.modules["mim4d"] = None  # importing it is an error
import timm, torch
from safetensors.torch import save_file
torch.set_num_threads(1)
found = {}
for name, folder in json.loads(sys.argv[1]).items():
    images = torch.linspace(-1, 1, 2 * 3 * 112 * 224).view(2, 3, 112, 224)
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        found[name] = model.forward_features(images).contiguous()
        maps = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()(images)
    found |= {f"{name}.{i}": x.contiguous() for i, x in enumerate(maps)}
save_file(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder folder of each, with weights that no new model has."""
    made = {}
    for name in NAMES:
        torch.manual_seed(0)
        model = make_backbone(name)
        randomise(model)
        made[name] = tmp_path_factory.mktemp(name) / "encoder"
        save_encoder(model, made[name], image_size=(112, 224), license="apache-2.0")
    return made


def test_plain_timm_gives_the_same_features_bit_for_bit(folders, tmp_path):
    places = json.dumps({name: str(folder) for name, folder in folders.items()})
    subprocess.run(
        [sys.executable, "-c", PLAIN, places, str(tmp_path / "found")], check=True, timeout=300, cwd=tmp_path
    )
    found = load_file(tmp_path / "found")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.linspace(-1, 1, 2 * 3 * 112 * 224).view(2, 3, 112, 224)
    for name, folder in folders.items():
        model = make_backbone(name).eval()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        with torch.no_grad():
            assert torch.equal(model.forward_features(images), found[name]), name
            every = model.forward_intermediates(images, intermediates_only=True)
        maps = [x for key, x in found.items() if key.startswith(f"{name}.")]
        assert maps
        assert all(any(torch.equal(x, y) for y in every) for x in maps), name
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_comes_back_as_it_was(name, folders):
    model = MIM4DEncoder.from_pretrained(folders[name])
    expected = load_file(folders[name] / "model.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    maps = MIM4DEncoder.from_pretrained(folders[name], features_only=True)(torch.zeros(1, 3, 112, 224))
    assert len(maps) > 1 or "vit" in name
    assert timm.is_model(json.loads((folders[name] / "config.json").read_text())["architecture"])


def test_layers_that_the_maps_do_not_need_are_no_reason_to_warn(folders, caplog):
    folder = folders["test_efficientnet"]
    MIM4DEncoder.from_pretrained(folder, features_only=True)
    open_backbone(str(folder))
    for backbone, init in ((str(folder), "pretrained"), ("test_efficientnet", str(folder))):
        make_encoder(backbone, init)
    assert not caplog.records
