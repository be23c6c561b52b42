"""Pretraining a ResNet: its BatchNorm is what ConvNeXts do not have."""

import timm
import torch
from safetensors.torch import save_file

from mim4d.backbones.weights import initialise
from mim4d.clip import Clip
from mim4d.io.tensors import read_tensors
from mim4d.method.model import MIM4D
from mim4d.pretrain.checkpoint import list_checkpoints
from mim4d.pretrain.trainer import train
from tests.encoders import shake
from tests.pretrain.runs import losses, tiny
from tests.toy import toy_clip, toy_config


def test_a_run_trains_it_and_timm_loads_it_as_its_own(root, tmp_path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--model", "mim4d_resnet18", "--steps", "2", "--precision", "bf16"))
    assert len(losses(out)) == 2
    weights = read_tensors(list_checkpoints(out / "checkpoints")[-1] / "model.safetensors")
    loaded = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True)
    assert type(loaded) is timm.models.resnet.ResNet
    assert loaded.pretrained_cfg["architecture"] == "resnet18"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"]), name
    assert loaded.bn1.num_batches_tracked == 2
    assert loaded.layer4[1].bn2.running_mean.any()


def test_a_classifier_of_imagenets_classes_is_a_first_weight(tmp_path):
    classifier = timm.create_model("resnet18")
    save_file(classifier.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = timm.create_model("mim4d_resnet18")
    told = initialise(encoder, str(tmp_path / "resnet18.safetensors"))
    assert told.endswith("0 missing, left out: fc.bias, fc.weight")
    assert all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_from_given_weights_it_keeps_their_statistics(root, tmp_path, fresh_accelerate):
    """And trains the norms' weights and biases."""
    torch.manual_seed(1)
    first = shake(timm.create_model("resnet18")).state_dict()
    save_file(first, tmp_path / "resnet18.safetensors")
    flags = ("--model", "mim4d_resnet18", "--init", str(tmp_path / "resnet18.safetensors"), "--steps", "2")
    weights = read_tensors(
        list_checkpoints(train(tiny(root, tmp_path / "run", *flags)) / "checkpoints")[-1] / "model.safetensors"
    )
    for name, tensor in first.items():
        if not name.startswith("fc."):
            held = "running" in name or name.endswith("tracked")
            assert torch.equal(weights[f"encoder.{name}"], tensor) == held, name


def test_a_batch_is_the_mean_of_its_clips():
    """Loss, gradients and running statistics: BatchNorm's statistics are those of one frame, never of the batch."""
    model = MIM4D(toy_config(encoder="mim4d_resnet18"))
    shake(model.encoder)
    first = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def step(clip):
        model.load_state_dict(first, strict=False)
        model.zero_grad()
        loss = model(clip)["loss"]
        loss.backward()
        running = {name: buffer.double() for name, buffer in model.encoder.named_buffers()}
        return loss.detach(), running, {name: p.grad.clone() for name, p in model.named_parameters()}

    clips = [toy_clip(1, seed=1), toy_clip(1, seed=2)]
    loss, running, gradients = step(Clip.collate(clips))
    losses, runnings, alone = zip(*map(step, clips), strict=True)
    torch.testing.assert_close(loss, sum(losses) / 2, rtol=1e-4, atol=0)
    for name, buffer in running.items():
        torch.testing.assert_close(buffer, sum(r[name] for r in runnings) / 2, rtol=1e-5, atol=1e-6, msg=name)
    for name, gradient in gradients.items():
        mean = sum(g[name] for g in alone) / 2
        # Where importance sampling puts its points magnifies the last digits; a leak between clips is of order 1.
        assert (gradient - mean).norm() <= 1e-2 * mean.norm() + 1e-6, name


def test_frozen_parts_keep_their_statistics():
    model = MIM4D(toy_config(encoder="mim4d_resnet18", frozen=2))
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    model.train()(toy_clip(1))["loss"].backward()
    changed = {name.split(".")[0] for name, buffer in model.encoder.named_buffers() if not buffer.equal(before[name])}
    learns = {name.split(".")[0] for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert changed == learns == {"layer2", "layer3", "layer4"}
