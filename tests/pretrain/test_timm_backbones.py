"""Runs with backbones of timm's own, from random weights and from ImageNet's."""

import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mim4d.errors import UserError
from mim4d.pretrain.checkpoint import list_checkpoints
from mim4d.pretrain.trainer import first_model, train
from tests.imagenet import efficientnet_lite0
from tests.pretrain.runs import metrics, tiny


def test_a_run_starts_from_imagenets_weights(root, tmp_path, fresh_accelerate, capsys):
    file = efficientnet_lite0(tmp_path)
    config = tiny(root, tmp_path / "run", "--model", "tf_efficientnet_lite0", "--init", str(file), "--steps", "2")
    model, _ = first_model(config, read_init=True)
    first = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    weights = load_file(file)
    assert all(torch.equal(value, weights[name]) for name, value in first.items())

    out = train(config)
    assert f"294 of 294 tensors from {file}, 0 missing, left out: classifier.bias, classifier.weight" in (
        capsys.readouterr().err
    )
    plain = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).state_dict()
    changed = {name for name, value in plain.items() if not torch.equal(value, first[name])}
    head = {name for name in plain if name.startswith(("conv_head.", "bn2."))}
    statistics = {name for name in plain if "running_" in name or "num_batches" in name}
    assert changed == plain.keys() - head - statistics  # all else trains


def test_a_vit_resumes_bit_for_bit(root, tmp_path, fresh_accelerate):
    config = tiny(root, tmp_path / "run", "--model", "test_vit", "--steps", "4")
    newest = list_checkpoints(train(config) / "checkpoints")[-1]
    expected, losses = load_file(newest / "model.safetensors"), [row["loss"] for row in metrics(tmp_path / "run")]
    shutil.rmtree(newest)
    train(config, resume=True)
    found = load_file(newest / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert [row["loss"] for row in metrics(tmp_path / "run")] == losses


def test_weights_that_do_not_fit_name_the_flag(root, tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    config = tiny(root, tmp_path / "run", "--init", str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=r"--init .*w\.safetensors: .*is not a ConvNeXt"):
        first_model(config, read_init=True)


def test_frozen_parts_are_timms_groups(root, tmp_path):
    file = efficientnet_lite0(tmp_path)
    flags = ["--model", "tf_efficientnet_lite0", "--init", str(file), "--method.frozen", "3"]
    model, _ = first_model(tiny(root, tmp_path / "run", *flags), read_init=True)
    trained = {name[0] for name, p in model.encoder.blocks.named_parameters() if p.requires_grad}
    assert trained == {"2", "3", "4", "5", "6"}  # of the stem and seven stages the first three parts stay
    model.train()
    assert not model.encoder.bn1.training
    assert not model.encoder.blocks[1][0].bn1.training
