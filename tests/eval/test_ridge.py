"""Ridge regression from sums, against loops, and what must hold of it for any data."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mim4d.eval.ridge import (
    PENALTIES,
    Gram,
    average_precision,
    best_threshold,
    fit,
    intersection_over_union,
    r_squared,
    ridge,
    squared_error,
)
from tests.reference.average_precision import pixel_scores
from tests.reference.ridge import ridge as slow_ridge

EVERY = slice(None)


def draw(seed: int, rows: int = 40, features: int = 5, targets: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features far from standardised, and targets that follow from them but for noise."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    x = normal * torch.logspace(-3, 3, features) + torch.linspace(-50, 50, features)
    y = normal @ torch.randn(features, targets, generator=generator, dtype=torch.float64)
    return x, y + 0.5 * torch.randn(rows, targets, generator=generator, dtype=torch.float64) + 7


def gram_of(x: torch.Tensor, y: torch.Tensor) -> Gram:
    gram = Gram(x.shape[1], y.shape[1])
    gram.add(x, y)
    return gram


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("columns", [EVERY, slice(1, 4)])
def test_weights_are_those_of_loops(penalty, columns):
    x, y = draw(0)
    (found,) = ridge(gram_of(x, y), columns, [penalty])
    for k in range(y.shape[1]):
        weights, bias = slow_ridge(x[:, columns].numpy(), y[:, k].numpy(), penalty)
        np.testing.assert_allclose(found.weight[:, k].numpy(), weights, rtol=1e-6, atol=1e-9)
        assert float(found.bias[k]) == pytest.approx(bias, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 40))
def test_rows_may_come_in_pieces_and_in_any_order(seed, cut):
    x, y = draw(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    whole, pieces = gram_of(x, y), gram_of(x[order[:cut]], y[order[:cut]])
    pieces.add(x[order[cut:]], y[order[cut:]])
    joined = gram_of(x[:cut], y[:cut]) + gram_of(x[cut:], y[cut:])
    for other in (pieces, joined):
        torch.testing.assert_close(other.products, whole.products)
        torch.testing.assert_close(other.mean, whole.mean)
        assert other.rows == 40


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from(PENALTIES))
def test_no_other_weights_are_better(seed, penalty):
    x, y = draw(seed)
    (found,) = ridge(gram_of(x, y), EVERY, [penalty])
    spread = x.std(0, correction=0)[:, None]

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (y - x @ weight - bias).square().mean(0) + penalty * (weight * spread).square().sum(0)

    best = objective(*found)
    for _ in range(5):
        step = 1e-2 * torch.randn_like(found.weight) / spread
        assert (objective(found.weight + step, found.bias - x.mean(0) @ step) > best).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3), shift=st.floats(-1e4, 1e4))
@example(seed=2, factor=0.001, shift=38.0)  # sums of products about zero were off by 5e-6
def test_the_units_of_a_feature_do_not_matter(seed, factor, shift):
    x, y = draw(seed)
    changed = x.clone()
    changed[:, 2] = factor * x[:, 2] + shift
    (a,), (b,) = (ridge(gram_of(features, y), EVERY, [0.1]) for features in (x, changed))
    torch.testing.assert_close(x @ a.weight + a.bias, changed @ b.weight + b.bias, rtol=1e-6, atol=1e-6)


def test_a_constant_feature_has_no_weight():
    x, y = draw(1)
    x[:, 3] = 1e4
    (found,) = ridge(gram_of(x, y), EVERY, [1e-6])
    assert (found.weight[3] == 0).all()
    assert found.weight.isfinite().all()


def test_the_error_follows_from_the_sums():
    x, y = draw(2)
    (found,) = ridge(gram_of(x, y), slice(1, 4), [0.01])
    others, truth = draw(3)
    wanted = (truth - others[:, 1:4] @ found.weight - found.bias).square().mean(0)
    torch.testing.assert_close(squared_error(gram_of(others, truth), slice(1, 4), found), wanted)


def test_each_target_gets_the_penalty_that_suits_it():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    exact, noise = x.sum(1), torch.randn(40, generator=generator, dtype=torch.float64)
    y = torch.stack([exact, noise], dim=1)
    final, trial = fit(gram_of(x[:32], y[:32]), gram_of(x[32:], y[32:]), EVERY)
    for k in range(2):
        tried = {}
        for penalty in PENALTIES:
            weights, bias = slow_ridge(x[:32].numpy(), y[:32, k].numpy(), penalty)
            tried[penalty] = float(np.mean((y[32:, k].numpy() - x[32:].numpy() @ weights - bias) ** 2))
        best = min(tried, key=lambda penalty: tried[penalty])
        assert best == min(PENALTIES) or k == 1
        for rows, found in ((40, final), (32, trial)):
            weights, _ = slow_ridge(x[:rows].numpy(), y[:rows, k].numpy(), best)
            np.testing.assert_allclose(found.weight[:, k].numpy(), weights, atol=1e-9)


def test_no_rows_are_refused():
    empty, full = Gram(5, 2), gram_of(*draw(5))
    with pytest.raises(ValueError, match="at least one row"):
        ridge(empty, EVERY, [1.0])
    with pytest.raises(ValueError, match="on no rows"):
        fit(full, empty, EVERY)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=40).filter(
        lambda rows: any(true for _, true in rows)
    )
)
def test_precision_and_iou_are_those_of_loops(rows):
    """With ties, whose order must not matter."""
    scores, truth = torch.tensor([float(s) for s, _ in rows]), torch.tensor([t for _, t in rows])
    _, best, area = pixel_scores(scores.numpy(), truth.numpy())
    assert average_precision(scores, truth) == pytest.approx(area)
    assert intersection_over_union(scores >= best_threshold(scores, truth), truth) == pytest.approx(best)


def test_scores_of_nothing_and_of_a_perfect_prediction():
    nothing, some = torch.tensor([False, False]), torch.tensor([False, True])
    assert average_precision(torch.zeros(2), nothing) is None
    assert intersection_over_union(some, nothing) is None
    assert average_precision(torch.tensor([0.1, 0.2]), some) == 1
    assert intersection_over_union(some, some) == 1
    truth = torch.tensor([1.0, 2.0, 4.0])
    assert r_squared(truth, truth) == 1
    assert r_squared(truth.mean().expand(3), truth) == pytest.approx(0, abs=1e-6)
    assert r_squared(-truth, truth) == 0
