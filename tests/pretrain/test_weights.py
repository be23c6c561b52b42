"""Where an encoder starts from."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import mim4d  # noqa: F401  # registers the encoders
from mim4d.errors import UserError
from mim4d.pretrain.export import export_encoder
from mim4d.pretrain.trainer import first_model
from mim4d.pretrain.weights import Weights, license_of, load_encoder, read_weights
from tests.pretrain.runs import tiny


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model("convnext_atto", num_classes=7)


def atto() -> torch.nn.Module:
    return timm.create_model("mim4d_convnext_atto", num_classes=0)


def original_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """timm's names to those of the original ConvNeXt release."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("stem.", "downsample_layers.0."),
            (".conv_dw", ".dwconv"),
            (".mlp.fc", ".pwconv"),
            (".blocks.", "."),
            ("head.norm", "norm"),
            ("head.fc", "head"),
        ):
            name = name.replace(ours, theirs)
        if ".downsample." in name:
            stage, rest = name.removeprefix("stages.").split(".downsample.")
            name = f"downsample_layers.{stage}.{rest}"
        renamed[name] = tensor.squeeze() if "pwconv" in name else tensor
    return renamed


def write(kind: str, model: torch.nn.Module, folder: Path) -> Path:
    if kind == "safetensors":
        save_file(model.state_dict(), folder / "w.safetensors")
        return folder / "w.safetensors"
    if kind == "original":
        torch.save({"model": original_names(model)}, folder / "w.pth")
        return folder / "w.pth"
    if kind == "pth":
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "w.pth")
        return folder / "w.pth"
    encoder = atto()
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.fc")})
    export_encoder(encoder, folder / "encoder", image_size=(64, 64), license="cc-by-4.0", provenance={})
    return folder / "encoder"


@pytest.mark.parametrize("kind", ["safetensors", "pth", "original", "folder"])
def test_weights_come_from_files_and_folders(kind, classifier, tmp_path):
    source = str(write(kind, classifier, tmp_path))
    encoder = atto()
    told = load_encoder(encoder, read_weights(source), source)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[name]), name
    assert told.startswith("126 of 126 tensors from")
    assert ("left out: head.fc.bias, head.fc.weight" in told) == (kind != "folder")
    assert license_of(source) == ("cc-by-4.0" if kind == "folder" else None)


def test_a_runs_encoder_starts_from_them(classifier, root, tmp_path):
    source = str(write("safetensors", classifier, tmp_path))
    model, told = first_model(tiny(root, tmp_path / "run", "--init", source), read_init=True)
    assert torch.equal(model.encoder.stem[0].weight, classifier.stem[0].weight)
    assert source in told


def test_weights_for_other_normalisation_are_pointed_out(classifier):
    about = {"mean": (0.5, 0.5, 0.5), "std": (0.229, 0.224, 0.225)}
    told = load_encoder(atto(), Weights(tensors=classifier.state_dict(), about=about), "clip")
    assert "made for images of mean (0.5, 0.5, 0.5), here it is (0.485, 0.456, 0.406)" in told
    assert "std" not in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_femto", r"stem.0.weight is \[48, 3, 4, 4\] in place of \[40, 3, 4, 4\] \(and 125 more\)"),
        ("convnextv2_atto", r"stages.0.blocks.0.gamma is missing"),
        ("resnet18", "not the weights of a ConvNeXt"),
    ],
)
def test_another_architecture_is_refused(name, message):
    before = atto()
    after = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_encoder(before, Weights(tensors=timm.create_model(name).state_dict()), name)
    assert all(torch.equal(v, after[k]) for k, v in before.state_dict().items())


def test_a_deeper_encoder_of_the_same_widths_is_refused():
    with torch.device("meta"):
        deeper = timm.create_model("convnext_small").state_dict()
        tiny_encoder = timm.create_model("mim4d_convnext_tiny", num_classes=0)
    with pytest.raises(UserError, match=r"stages\.2.blocks.9.gamma is unknown"):
        load_encoder(tiny_encoder, Weights(tensors=deeper), "convnext_small")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path("/tmp/mim4d-was-here").touch, ())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("convnext_base.dinov3", "near are convnext_base.dinov3_lvd1689m"),
        ("resnet50.a1_in1k", "timm has no such ConvNeXt weights"),
        ("./nothing.pth", "no such file or folder"),
        ("nothing.safetensors", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_named(source, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_weights(source)
    assert source in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pickles_that_hold_more_than_tensors_are_refused(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: cannot read these weights"):
        read_weights(str(tmp_path / "evil.pth"))
    assert not Path("/tmp/mim4d-was-here").exists()


def test_timms_names_carry_their_licence():
    assert license_of("convnext_base.dinov3_lvd1689m") == "dinov3-license"
    assert license_of("scratch") is None
