"""Where an encoder starts from."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import mim4d  # noqa: F401  # registers the encoders
from mim4d.backbones.weights import initialise, license_of
from mim4d.errors import UserError
from mim4d.hub.folder import save_encoder


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
    save_encoder(encoder, folder / "encoder", license="cc-by-4.0")
    return folder / "encoder"


@pytest.mark.parametrize("kind", ["safetensors", "pth", "original", "folder"])
def test_weights_come_from_files_and_folders(kind, classifier, tmp_path):
    source = str(write(kind, classifier, tmp_path))
    encoder = atto()
    told = initialise(encoder, source)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[name]), name
    assert told.startswith("126 of 126 tensors from")
    assert ("left out: head.fc.bias, head.fc.weight" in told) == (kind != "folder")
    assert license_of(source) == ("cc-by-4.0" if kind == "folder" else None)


def test_weights_for_other_normalisation_are_pointed_out(tmp_path):
    config = tmp_path / "encoder" / "config.json"
    save_encoder(atto(), config.parent)
    config.write_text(config.read_text().replace("0.485,", "0.5,").replace("0.456,", "0.5,").replace("0.406", "0.5"))
    told = initialise(atto(), str(config.parent))
    assert "made for images with mean (0.5, 0.5, 0.5), this encoder uses (0.485, 0.456, 0.406)" in told
    assert "std" not in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_femto", r"stem.0.weight has shape \[48, 3, 4, 4\], expected \[40, 3, 4, 4\] \(and 123 more\)"),
        ("convnextv2_atto", r"stages.0.blocks.0.gamma is missing"),
        ("resnet18", "is not a ConvNeXt: "),
    ],
)
def test_another_architecture_is_refused(name, message, tmp_path):
    before = atto()
    after = {k: v.clone() for k, v in before.state_dict().items()}
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message):
        initialise(before, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(v, after[k]) for k, v in before.state_dict().items())


def test_a_deeper_encoder_of_the_same_widths_is_refused(tmp_path):
    deeper = timm.create_model("convnext_atto", depths=(2, 2, 7, 2))
    save_file(deeper.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"stages\.2.blocks.6.conv_dw.bias is unknown"):
        initialise(atto(), str(tmp_path / "w.safetensors"))


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path("/tmp/mim4d-was-here").touch, ())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("convnext_base.dinov3", "similar names are convnext_base.dinov3_lvd1689m"),
        ("./nothing.pth", "no such file or folder"),
        ("nothing.safetensors", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_named(source, message):
    with pytest.raises(UserError, match=message) as refusal:
        initialise(atto(), source)
    assert source in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pickles_that_hold_more_than_tensors_are_refused(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: it holds pickled objects .*PosixPath"):
        initialise(atto(), str(tmp_path / "evil.pth"))
    assert not Path("/tmp/mim4d-was-here").exists()


@pytest.mark.parametrize("content", [torch.zeros(2), [1, 2], "text", None, {"state_dict": None}, {1: torch.zeros(1)}])
def test_checkpoints_without_a_table_of_tensors_are_one_line(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"cannot read .*other\.pth") as refusal:
        initialise(atto(), str(tmp_path / "other.pth"))
    assert "\n" not in str(refusal.value)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    (tmp_path / "other.pth").write_bytes(b"abcdefghijklmnop")
    with pytest.raises(UserError, match=r"cannot read .*other\.pth"):
        initialise(atto(), str(tmp_path / "other.pth"))


def test_timms_names_carry_their_licence():
    assert license_of("convnext_base.dinov3_lvd1689m") == "dinov3-license"
    assert license_of("scratch") is None
