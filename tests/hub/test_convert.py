"""OpenMMLab checkpoints: read without running them, written so that they are read back."""

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import mim4d
from mim4d.errors import WeightsError
from mim4d.hub import convert_checkpoint
from mim4d.hub.folder import check_folder, save_encoder
from tests.hub import calls, checkpoints
from tests.reference.openmmlab_convnext import openmmlab_convnext


@pytest.fixture
def released(tmp_path):
    """A checkpoint of a whole detector with a small backbone."""
    return checkpoints.save(checkpoints.detector("atto"), tmp_path / "pretrain.pth")


def image():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_a_release_computes_the_same_in_timms_convnext_small(tmp_path):
    checkpoint = checkpoints.detector("small")
    path = checkpoints.save(checkpoint, tmp_path / "uvtrs_mim4d_vs0.075_pretrain.pth")
    model = timm.create_model("convnext_small", num_classes=0).eval()
    model.load_state_dict(convert_checkpoint(path), strict=True)
    expected, normed = openmmlab_convnext(checkpoint["state_dict"], image())
    found = model.forward_intermediates(image(), intermediates_only=True)
    for stage, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert a.abs().mean() > 0.3
        torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-4, msg=f"stage {stage}")
    torch.testing.assert_close(model.head.norm(found[-1]).double(), normed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layer_scale_counts(released):
    """The comparison above would see a forgotten block: with other layer scales the features are others."""
    state_dict = dict(checkpoints.detector("atto")["state_dict"])
    before, _ = openmmlab_convnext(state_dict, image())
    state_dict["img_backbone.stages.2.5.gamma"] = torch.zeros(160)
    after, _ = openmmlab_convnext(state_dict, image())
    assert (before[2] - after[2]).abs().max() > 1e-2


def test_what_is_dropped_is_said(released, tmp_path):
    code, out, _ = calls.run("convert", str(released), str(tmp_path / "encoder"))
    assert code == 0
    assert "126 tensors of the image backbone, a mim4d_convnext_atto; dropped:" in out
    for part in ("2 of depth_net", "1 of img_neck", "1 of pts_bbox_head", "1 of img_backbone.mtoken3"):
        assert part in out
    assert sorted(file.name for file in (tmp_path / "encoder").iterdir()) == ["config.json", "model.safetensors"]


@torch.no_grad()
def test_a_converted_folder_is_loaded_by_timm_and_by_us(released, tmp_path):
    calls.run("convert", str(released), str(tmp_path / "encoder"), "--license", "cc-by-nc-sa-4.0")
    expected, _ = openmmlab_convnext(checkpoints.detector("atto")["state_dict"], image())
    ours = mim4d.MIM4DEncoder.from_pretrained(tmp_path / "encoder")
    timms = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    for model in (ours, timms):
        for a, b in zip(expected, model.forward_intermediates(image(), intermediates_only=True), strict=True):
            torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-4)
    _, card, _ = calls.run("card", str(tmp_path / "encoder"))
    assert "converted from the checkpoint `pretrain.pth`" in card
    assert "license: cc-by-nc-sa-4.0" in card


def test_a_dry_run_writes_nothing(released, tmp_path):
    code, out, _ = calls.run("convert", str(released), str(tmp_path / "encoder"), "--dry-run")
    assert (code, "nothing was written" in out) == (0, True)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    ("names", "prefix", "block"),
    [
        ("mmpretrain", "backbone.", "backbone.stages.0.0.pointwise_conv1.weight"),
        ("release", "img_backbone.", "img_backbone.stages.0.0.pwconv1.weight"),
    ],
)
def test_there_and_back(names, prefix, block, released, tmp_path):
    calls.run("convert", str(released), str(tmp_path / "encoder"))
    code, out, _ = calls.run("convert", str(tmp_path / "encoder"), str(tmp_path / "again.pth"), "--names", names)
    assert (code, f"names begin with {prefix}" in out) == (0, True)
    written = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert written[block].shape == (160, 40)  # linear layers, as both have them
    before, after = convert_checkpoint(released), convert_checkpoint(tmp_path / "again.pth")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    if names == "release":
        original = checkpoints.detector("atto")["state_dict"]
        assert all(torch.equal(tensor, original[name]) for name, tensor in written.items())
        assert set(written) == {n for n in original if n.startswith("img_backbone.") and "mtoken" not in n}


def test_a_pth_file_goes_straight_into_another_layout(released, tmp_path):
    calls.run("convert", str(released), str(tmp_path / "mm.pth"), "--prefix", "")
    written = torch.load(tmp_path / "mm.pth", weights_only=True)["state_dict"]
    assert "stages.0.0.depthwise_conv.weight" in written
    assert "norm3.weight" in written


def test_half_precision_halves_the_folder(released, tmp_path):
    calls.run("convert", str(released), str(tmp_path / "whole"))
    calls.run("convert", str(tmp_path / "whole"), str(tmp_path / "half"), "--half")
    whole, half = (tmp_path / name / "model.safetensors" for name in ("whole", "half"))
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    encoder = mim4d.MIM4DEncoder.from_pretrained(tmp_path / "half")
    for name, tensor in load_file(whole).items():
        assert torch.equal(encoder.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize("kind", ["convolutions", "without norm3", "bare", "classifier"])
def test_variants_of_mmpretrain(kind, released, tmp_path):
    expected = convert_checkpoint(released)
    calls.run("convert", str(released), str(tmp_path / "mm.pth"), "--prefix", "" if kind == "bare" else "backbone.")
    state_dict = torch.load(tmp_path / "mm.pth", weights_only=True)["state_dict"]
    if kind == "convolutions":
        state_dict = {n: t[:, :, None, None] if "pointwise" in n and t.ndim == 2 else t for n, t in state_dict.items()}
    if kind == "without norm3":
        state_dict = {n: t for n, t in state_dict.items() if "norm3" not in n}
        expected |= {"head.norm.weight": torch.ones(320), "head.norm.bias": torch.zeros(320)}
    if kind == "classifier":
        state_dict |= {"head.fc.weight": torch.ones(5, 320), "head.fc.bias": torch.ones(5)}
    found = convert_checkpoint(checkpoints.save({"state_dict": state_dict}, tmp_path / "variant.pth"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("place", ["meta", "state_dict", "optimizer"])
def test_pickled_code_is_never_run(place, tmp_path):
    checkpoint = checkpoints.detector("atto")
    checkpoint[place] = {**checkpoint[place], "evil": Evil(tmp_path / "witness")}
    path = checkpoints.save(checkpoint, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"it holds pickled objects \(posix.mkdir\)") as refusal:
        convert_checkpoint(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "witness").exists()
    code, _, err = calls.run("convert", str(path), str(tmp_path / "encoder"))
    assert (code, err.startswith("error: cannot read"), err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "encoder").exists()


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _of_lidar(path):
    checkpoints.save({"state_dict": {"pts_backbone.conv.weight": torch.ones(3)}}, path)


def _missing(path):
    checkpoint = checkpoints.detector("atto")
    del checkpoint["state_dict"]["img_backbone.stages.1.0.norm.weight"]
    checkpoints.save(checkpoint, path)


def _other_widths(path):
    checkpoint = checkpoints.detector("atto")
    name = "img_backbone.stages.3.1.pwconv2.bias"
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:-1]
    checkpoints.save(checkpoint, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot read"),
        (_truncated, "cannot read"),
        (lambda path: checkpoints.save({"state_dict": {}}, path), "its table of tensors is empty"),
        (lambda path: checkpoints.save({"epoch": 3}, path), "it holds no table of tensors"),
        (_of_lidar, "has no ConvNeXt or ResNet: expected one under img_backbone. or backbone., or on its own"),
        (_missing, "the closest is mim4d_convnext_atto, but stages.1.blocks.0.norm.weight is missing"),
        (_other_widths, r"the closest is mim4d_convnext_atto, but .*bias has shape \[319\], expected \[320\]"),
    ],
)
def test_what_cannot_be_converted_is_named(spoil, message, released):
    spoil(released)
    with pytest.raises(WeightsError, match=message) as refusal:
        convert_checkpoint(released)
    assert str(released) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_target_with_other_things_in_it_is_left_alone(released, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("all of it")
    code, _, err = calls.run("convert", str(released), str(tmp_path / "full"))
    assert (code, "holds other files than an encoder" in err) == (2, True)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("size", "prefix"), [(18, "img_backbone."), (50, "backbone."), (18, "")])
def test_resnets_have_the_same_names_everywhere(size, prefix, tmp_path):
    """mmdet's, torchvision's and timm's are the same but for the beginning."""
    model = calls.shaken(timm.create_model(f"mim4d_resnet{size}"))
    expected = model.state_dict()
    save_encoder(model, tmp_path / "encoder")
    calls.run("convert", str(tmp_path / "encoder"), str(tmp_path / "mmdet.pth"), "--prefix", prefix)
    written = torch.load(tmp_path / "mmdet.pth", weights_only=True)["state_dict"]
    assert {name: list(tensor.shape) for name, tensor in written.items()} == {
        prefix + name: list(tensor.shape) for name, tensor in expected.items()
    }
    written |= {"neck.conv.weight": torch.ones(2)} if prefix else {"fc.weight": torch.ones(5, model.num_features)}
    detector = checkpoints.save({"state_dict": written}, tmp_path / "detector.pth")
    code, out, _ = calls.run("convert", str(detector), str(tmp_path / "again"))
    assert (code, f"a mim4d_resnet{size}; dropped: 1 of {'neck' if prefix else 'fc'}" in out) == (0, True)
    plain = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert type(plain) is timm.models.resnet.ResNet
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items())


def test_what_is_converted_has_no_size_of_other_weights(released, tmp_path):
    """The package's own weights for this model were trained on 128 x 352."""
    calls.run("convert", str(released), str(tmp_path / "encoder"))
    assert check_folder(tmp_path / "encoder").pretrained_cfg["input_size"] == [3, 256, 704]


def test_old_resnets_without_counters_are_read_as_torch_reads_them(tmp_path):
    model = timm.create_model("mim4d_resnet18")
    state_dict = {f"backbone.{n}": t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    converted = convert_checkpoint(checkpoints.save({"state_dict": state_dict}, tmp_path / "old.pth"))
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in model.state_dict().items())


def test_resnets_with_more_than_timms_are_refused(tmp_path):
    """Deformable convolutions, as BEV detectors have them, are no ResNet of timm's."""
    state_dict = {f"img_backbone.{n}": t for n, t in timm.create_model("mim4d_resnet50").state_dict().items()}
    state_dict["img_backbone.layer3.0.conv2_offset.weight"] = torch.zeros(27, 256, 3, 3)
    path = checkpoints.save({"state_dict": state_dict}, tmp_path / "dcn.pth")
    with pytest.raises(
        WeightsError, match=r"the closest is mim4d_resnet50, but layer3.0.conv2_offset.weight is unknown"
    ):
        convert_checkpoint(path)


def test_a_run_in_half_precision_keeps_what_is_known_of_it(tmp_path):
    made = {"init": "scratch", "data": "synthetic", "dataset": "v1.0-mini", "split": "mini_train", "steps": 300}
    folder = tmp_path / "run" / "encoder"
    save_encoder(calls.small(), folder, image_size=(96, 256), license="apache-2.0", provenance=made)
    code, _, err = calls.run("convert", str(tmp_path / "run"), str(tmp_path / "half"), "--half")
    assert code == 0, err
    half = check_folder(tmp_path / "half")
    assert made.items() <= half.provenance.items()
    assert (half.pretrained_cfg["license"], half.pretrained_cfg["input_size"]) == ("apache-2.0", [3, 96, 256])
    assert half.model_args == check_folder(folder).model_args
    card = calls.run("card", str(tmp_path / "half"))[1]
    assert "no real images" in card
