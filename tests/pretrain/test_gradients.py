"""The encoder's gradient by loss term: exact, and without a trace."""

import copy

import pytest
import torch
from accelerate import Accelerator

from mim4d.method.losses import LossConfig
from mim4d.method.model import MIM4D
from mim4d.pretrain.gradients import encoder_gradients
from tests.toy import toy_clip, toy_config, toy_model

TERMS = ("direct_rgb", "direct_depth", "temporal_rgb", "temporal_depth")


def encoder_gradient(model: MIM4D, clips: list, term: str) -> torch.Tensor:
    """Of one term, averaged over batches, by ``backward``."""
    model = copy.deepcopy(model)
    for clip in clips:
        (model.terms(clip)[term] / len(clips)).backward()
    return torch.cat([p.grad.flatten() for p in model.encoder.parameters() if p.grad is not None])


@pytest.fixture
def accelerator(fresh_accelerate) -> Accelerator:
    return Accelerator(cpu=True)


def test_each_norm_is_of_the_weighted_terms_own_gradient(accelerator):
    model, clips = toy_model(frozen=2), [toy_clip(1, seed=1), toy_clip(1, seed=2)]
    got = encoder_gradients(model, clips, accelerator)
    assert set(got) == {f"grad_encoder_{term}" for term in TERMS}
    for term in TERMS:
        expected = float(encoder_gradient(model, clips, term).norm())
        assert got[f"grad_encoder_{term}"] == pytest.approx(expected, rel=1e-4)


def test_terms_that_are_off_by_default_are_measured_when_they_are_on(accelerator):
    model = toy_model(loss=LossConfig(other_rays=1.0, consistency=4.0))
    got = encoder_gradients(model, [toy_clip(1)], accelerator)
    assert {f"grad_encoder_{term}" for term in ("other_rgb", "other_depth", "consistency")} <= set(got)


def test_nothing_else_changes(accelerator):
    """Of a ResNet, whose BatchNorm keeps statistics, with stochastic depth and a gradient that is still to be used."""
    torch.manual_seed(0)
    model, clip = MIM4D(toy_config(encoder="mim4d_resnet18", drop_path=0.5)), toy_clip(1)
    model(clip)["loss"].backward()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    random, training = torch.get_rng_state(), {name: m.training for name, m in model.named_modules()}
    assert len(encoder_gradients(model, [clip], accelerator)) == 4
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: m.training for name, m in model.named_modules()} == training
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if n in gradients)


def test_what_sends_nothing_is_not_there(accelerator):
    assert encoder_gradients(toy_model(), [toy_clip(1, points=0)], accelerator) == {}
    assert encoder_gradients(toy_model(frozen=5), [toy_clip(1)], accelerator) == {}
    colour = encoder_gradients(toy_model(supervision="rgb"), [toy_clip(1, points=0)], accelerator)
    assert set(colour) == {"grad_encoder_direct_rgb", "grad_encoder_temporal_rgb"}
