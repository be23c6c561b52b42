"""The encoder without any framework: asked before it is built, by timm, torchvision and torch.hub."""

from pathlib import Path

import pytest
import timm
import torch
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

from mim4d import MIM4DEncoder
from mim4d.hub.folder import save_encoder
from tests.hub import calls as hub_calls

ROOT = Path(__file__).parents[2]
WIDTHS = {
    "mim4d_convnext_small": [96, 192, 384, 768],
    "mim4d_convnextv2_base": [128, 256, 512, 1024],
    "mim4d_resnet18": [64, 128, 256, 512],
    "mim4d_resnet50": [256, 512, 1024, 2048],
}
ARCHITECTURES = ["mim4d_convnext_atto", "mim4d_resnet18"]
LAYERS = {"mim4d_convnext_atto": ("stages_2", "stages_3"), "mim4d_resnet18": ("layer3", "layer4")}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WIDTHS)
def test_channels_and_strides_are_known_before_anything_is_built(name):
    with torch.device("meta"):
        info = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)).feature_info
    assert info.channels() == WIDTHS[name]
    assert info.reduction() == [4, 8, 16, 32]


def test_a_folder_can_be_asked_too(tmp_path):
    save_encoder(timm.create_model("mim4d_convnext_femto"), tmp_path / "encoder")
    with torch.device("meta"):
        model = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", features_only=True, out_indices=(-2, -1))
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([192, 384], [16, 32])
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchvisions_layer_getter_takes_stages_by_name(name):
    fine, coarse = LAYERS[name]
    backbone = hub_calls.shaken(timm.create_model(name, features_only=True, out_indices=(-2, -1)))
    getter = IntermediateLayerGetter(backbone, {fine: "c4", coarse: "c5"})
    maps = getter(images(1, 3, 64, 96))
    for got, want in zip(maps.values(), backbone(images(1, 3, 64, 96)), strict=True):
        assert torch.equal(got, want)
    assert list(maps) == ["c4", "c5"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchvisions_feature_pyramid_stands_on_it(name):
    fine, coarse = LAYERS[name]
    backbone = timm.create_model(name, features_only=True, out_indices=(-2, -1))
    model = BackboneWithFPN(backbone, {fine: "p4", coarse: "p5"}, backbone.feature_info.channels(), 16)
    assert {k: tuple(v.shape) for k, v in model(images(1, 3, 64, 96)).items()} == {
        "p4": (1, 16, 4, 6),
        "p5": (1, 16, 2, 3),
        "pool": (1, 16, 1, 2),
    }


def test_torchvisions_feature_extractor_traces_the_whole_encoder():
    encoder = hub_calls.shaken(timm.create_model("mim4d_convnext_atto"))
    maps = create_feature_extractor(encoder, {"stages.2": "c4", "stages.3": "c5"})(images(1, 3, 64, 96))
    expected = encoder.forward_intermediates(images(1, 3, 64, 96), indices=[2, 3], intermediates_only=True)
    for got, want in zip(maps.values(), expected, strict=True):
        assert torch.equal(got, want)


def test_torch_hub_makes_architectures_and_loads_weights(tmp_path):
    save_encoder(hub_calls.shaken(timm.create_model("mim4d_convnext_atto")), tmp_path / "encoder")
    made = torch.hub.load(str(ROOT), "mim4d_resnet18", source="local")
    assert isinstance(made, MIM4DEncoder)
    loaded = torch.hub.load(str(ROOT), "encoder", str(tmp_path), source="local")
    expected = MIM4DEncoder.from_pretrained(tmp_path / "encoder")
    assert hub_calls.features(loaded) == hub_calls.features(expected)
