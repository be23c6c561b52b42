"""Sampling along rays, against loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.method.sampling import importance, stratified, surface_weights, transmittance
from tests.reference import render as reference

many = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 1_000_000)


def uniform(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def increasing(rays: int, samples: int, seed: int) -> torch.Tensor:
    """Uneven distances, some of them nearly equal."""
    return (uniform(rays, samples, seed=seed) ** 3 + 1e-6).cumsum(1)


@many
@given(near=st.floats(0, 60), length=st.floats(1e-3, 100), count=st.integers(1, 40), seed=seeds)
def test_stratified_places_one_sample_in_each_equal_interval(near, length, count, seed):
    jitter = uniform(3, count, seed=seed)
    ends = torch.tensor([[near, near + length]] * 3, dtype=torch.float64)
    got = stratified(*ends.unbind(1), jitter)
    for ray in range(3):
        expected = reference.stratified(near, near + length, jitter[ray].tolist())
        np.testing.assert_allclose(got[ray], expected, rtol=1e-9, atol=1e-9)
    assert (got >= near - 1e-9).all()
    assert (got <= near + length + 1e-9).all()
    assert (got.diff(dim=1) >= -1e-9).all()


def test_stratified_middles():
    got = stratified(torch.tensor([1.0, 10.0]), torch.tensor([5.0, 12.0]), torch.full((2, 2), 0.5))
    torch.testing.assert_close(got, torch.tensor([[2.0, 4.0], [10.5, 11.5]]))


@many
@given(samples=st.integers(2, 30), inv_s=st.sampled_from([1.0, 64.0, 512.0]), seed=seeds)
def test_surface_weights_against_loops(samples, inv_s, seed):
    distances = increasing(3, samples, seed)
    sdf = (uniform(3, samples, seed=seed + 1) - 0.4) * 0.3
    got = surface_weights(distances, sdf, inv_s)
    for ray in range(3):
        expected = reference.coarse_weights(distances[ray].tolist(), sdf[ray].tolist(), inv_s)
        np.testing.assert_allclose(got[ray], expected, atol=1e-5)
    assert (got >= 0).all()


def test_surface_weights_peak_where_the_distance_changes_sign():
    distances = torch.linspace(0, 1, 65)[None]
    weights = surface_weights(distances, 0.6 - distances, 200.0)
    assert distances[0, weights[0].argmax()].item() == pytest.approx(0.6, abs=1 / 64)
    assert weights.sum().item() == pytest.approx(1, abs=1e-3)


def test_rays_that_leave_a_surface_have_no_weight():
    """A ray that starts outside, near a surface, and moves away from it has no weight."""
    distances = torch.linspace(0, 1, 65)[None]
    assert surface_weights(distances, 0.1 + distances, 64.0).max() < 1e-4


@many
@given(samples=st.integers(1, 30), seed=seeds)
def test_transmittance_is_the_product_of_one_minus_alpha(samples, seed):
    alpha = uniform(2, samples, seed=seed)
    got = transmittance(alpha)
    for ray in range(2):
        light = 1.0
        for i in range(samples):
            assert got[ray, i].item() == pytest.approx(light, rel=1e-4, abs=1e-6)
            light *= 1 - alpha[ray, i].item()
        assert got[ray, samples].item() == pytest.approx(light, rel=1e-4, abs=1e-6)


@many
@given(
    alphas=st.lists(st.one_of(st.sampled_from([0.0, 1e-6, 1e-5, 1.0]), st.floats(0, 1, width=32)), min_size=1),
    repeats=st.integers(1, 30),
)
def test_transmittance_lies_between_zero_and_one(alphas, repeats):
    light = transmittance(torch.tensor([alphas * repeats]))
    assert light.min() >= 0
    assert light.max() <= 1
    assert light[0, 0] == 1


def test_transmittance_of_empty_sections_is_one():
    assert (transmittance(torch.zeros(1, 96)) == 1).all()


def test_transmittance_behind_an_opaque_section_is_zero_with_finite_gradients():
    alpha = torch.tensor([[0.2, 1.0, 0.3, 1.0, 1.0, 0.5]], requires_grad=True)
    light = transmittance(alpha)
    torch.testing.assert_close(light[0, 2:], torch.zeros(5), atol=1e-6, rtol=0)
    (alpha * light[:, :-1]).sum().backward()
    assert alpha.grad.isfinite().all()


@many
@given(samples=st.integers(2, 30), count=st.integers(1, 30), seed=seeds)
def test_importance_is_the_inverse_of_the_cumulative_weights(samples, count, seed):
    distances = increasing(3, samples, seed)
    weights = uniform(3, samples - 1, seed=seed + 1) ** 8  # a few that matter, many that hardly do
    got = importance(distances, weights, count)
    for ray in range(3):
        expected = reference.importance(distances[ray].tolist(), weights[ray].tolist(), count)
        np.testing.assert_allclose(got[ray], expected, atol=1e-6)
    assert (got.diff(dim=1) >= 0).all()
    assert (got >= distances[:, :1]).all()
    assert (got <= distances[:, -1:] + 1e-9).all()


def test_samples_gather_at_a_known_surface():
    """A wall at 0.37: of 24 samples added to 72 even ones, nearly all lie within two intervals of it."""
    distances = torch.linspace(0, 1, 72)[None]
    before = {tuple(distances[0].tolist())}
    weights = surface_weights(distances, 0.37 - distances, 500.0)
    added = sorted(set(importance(distances, weights, 24)[0].tolist()) - set(*before))
    near = [d for d in added if abs(d - 0.37) < 2 / 71]
    assert len(near) >= 20
    assert np.mean(near) == pytest.approx(0.37, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_degenerate_weights_spread_evenly(value, dtype):
    distances = torch.linspace(1, 5, 9, dtype=dtype).expand(2, -1)
    got = importance(distances, torch.full((2, 8), value, dtype=dtype), 16)
    assert got.isfinite().all()
    torch.testing.assert_close(got.mean(1), torch.full((2,), 3.0, dtype=dtype), atol=1e-4, rtol=0)
    assert (got.diff(dim=1) >= 0).all()
    assert got.diff(dim=1).max() <= 0.5


def test_one_interval_with_all_the_weight_gets_all_samples():
    distances = torch.arange(6.0)[None]
    got = importance(distances, torch.tensor([[0, 0, 1.0, 0, 0]]), 10)[0]
    assert ((got > 2) & (got < 3)).sum() == 10


def test_samples_at_the_same_distance_stay_finite():
    distances = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]])
    weights = surface_weights(distances, torch.tensor([[1.0, 0.2, 0.2, 0.2, -1.0]]), 64.0)
    assert weights.isfinite().all()
    assert importance(distances, weights, 7).isfinite().all()
