"""Vectorised maps: labels, matching, loss and scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.eval.augmentation import BEVAugmentation
from mim4d.eval.decoder import VectorDecoder
from mim4d.eval.hdmap import (
    NAMES,
    ORDERS,
    POINTS,
    THRESHOLDS,
    ChamferAP,
    HDMap,
    MapScores,
    chamfer,
    resample,
    typical,
)
from tests.reference import average_precision as reference


def as_tuples(line: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(point) for point in line.tolist()]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_average_precision_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    average, predicted, true = ChamferAP(1), [], []
    for _ in range(2):
        lines = [rng.uniform(-10, 10, (rng.integers(2, 5), 2)) for _ in range(rng.integers(0, 3))]
        near = [line + rng.normal(0, rng.choice([0.2, 0.6, 1.5]), 2) for line in lines for _ in range(2)]
        near += [rng.uniform(-10, 10, (3, 2))]
        scores = rng.permutation(len(near)) / 10 + rng.uniform(0, 0.01)
        average.add([(0, line) for line in near], scores, [(0, line) for line in lines])
        predicted.append([(s, as_tuples(line)) for s, line in zip(scores.tolist(), near, strict=True)])
        true.append([as_tuples(line) for line in lines])
    got = average.result()[0]
    if not any(true):
        assert np.isnan(got).all()
        return
    wanted = [reference.chamfer_average_precision(predicted, true, threshold) for threshold in THRESHOLDS]
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_distances_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    lines = [rng.uniform(-10, 10, (n, 2)) for n in (2, 3, 7)]
    wanted = [[reference.chamfer(as_tuples(a), as_tuples(b)) for b in lines] for a in lines]
    np.testing.assert_allclose(chamfer(lines, lines), wanted, atol=1e-6)
    straight = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert chamfer([straight], [straight + np.array([0.0, 0.7])])[0, 0] == pytest.approx(0.7)


def test_points_of_a_line_are_as_far_from_each_other():
    line = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(resample(line, 8)[:, 0], [0, 1, 2, 3, 3, 3, 3, 3], atol=1e-12)
    np.testing.assert_allclose(resample(line, 8)[:, 1], [0, 0, 0, 0, 1, 2, 3, 4], atol=1e-12)


@pytest.fixture(scope="module")
def kept(annotations) -> list:
    return [HDMap().read(annotations, token) for token in annotations.tokens]


def test_labels_are_lines_within_reach(kept):
    task, found = HDMap(), []
    for lines in kept:
        cut = task.lines(lines, BEVAugmentation.none())
        found += [label for label, _ in cut]
        assert task.target(lines, BEVAugmentation.none()).points.shape == (len(cut), ORDERS, POINTS, 2)
        for _, line in cut:
            assert np.abs(line[:, 0]).max() <= 30 + 1e-9
            assert np.abs(line[:, 1]).max() <= 15 + 1e-9
            gaps = np.linalg.norm(np.diff(line, axis=0), axis=1)
            assert gaps.max() > 0
    assert {NAMES[label] for label in found} >= {"divider", "boundary"}


def test_the_truth_scores_one(kept):
    average, task = ChamferAP(len(NAMES)), HDMap()
    for lines in kept:
        truth = task.lines(lines, BEVAugmentation.none())
        average.add(truth, np.ones(len(truth)), truth)
    table = average.result()
    assert np.nanmin(table) == 1.0


def test_a_turned_map_is_the_map_turned(kept):
    """Wherever a turned line goes, an unturned one went: distances of its points to the kept lines are nothing."""
    import shapely

    task = HDMap()
    for seed in range(3):
        turn = BEVAugmentation.draw(seed)
        everything = shapely.MultiLineString([turn.points(line) for _, line in kept[0]])
        lines = task.lines(kept[0], turn)
        assert lines
        for _, line in lines:
            assert shapely.distance(everything, shapely.points(line)).max() < 0.05  # chords of 2 m pieces of curves


def test_closed_lines_may_begin_anywhere():
    task = HDMap()
    ring = np.array([[0, 0], [4, 0], [4, 2], [0, 2], [0, 0]], dtype=float)
    open_line = np.array([[-5, 3], [5, 6]], dtype=float)
    target = task.target([(2, ring), (0, open_line)], BEVAugmentation.none())
    assert target.points.shape == (2, ORDERS, POINTS, 2)
    assert len({tuple(order.flatten().tolist()) for order in target.points[0]}) == ORDERS
    assert len({tuple(order.flatten().tolist()) for order in target.points[1]}) == 2
    shares = np.array([30, 15]) / [60, 30]
    assert all(np.isclose(order.numpy(), shares).all(1).any() for order in target.points[0])


def said(target, lines: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a decoder says that knows a sample, in other orders of lines and of points."""
    logits = torch.full((1, lines, len(NAMES)), -12.0)
    points = torch.full((1, lines, POINTS, 2), 0.01)
    for place, (label, orders) in enumerate(zip(target.labels.flip(0), target.points.flip(0), strict=True)):
        logits[0, place, label] = 12.0
        points[0, place] = orders[-1]
    return [(logits, points)]


def test_lines_are_scored_against_the_map_itself():
    """Not against its POINTS points: what those leave out of a winding line counts."""
    task = HDMap()
    across = np.linspace(-14, 14, 141)
    winding = np.stack([20 + 4 * np.where(np.arange(141) % 2, 1.0, -1.0), across], axis=-1)
    kept = [(0, winding)]
    target = task.target(kept, BEVAugmentation.none())
    lines, _ = task.predictions(said(target), 0)
    assert chamfer([lines[0][1]], [winding])[0, 0] > 0.5
    scores = MapScores(task)
    scores.add(said(target), [kept], ["token"])
    assert scores.result(Path())["map_AP_divider_0.5"] == 0


def test_the_loss_is_nothing_for_the_truth_in_any_order():
    task = HDMap()
    kept = [(2, np.array([[0, 0], [4, 0], [4, 2], [0, 2], [0, 0.0]])), (0, np.array([[-5, 3], [5, 6.0]]))]
    target = task.target(kept, BEVAugmentation.none())
    assert task.loss(said(target), [target]) < 1e-3
    line = task.target(kept[1:], BEVAugmentation.none())
    off = [(logits, points + 0.05) for logits, points in said(line)]
    assert task.loss(off, [line]) == pytest.approx(5 * 0.05 * 2 * POINTS, rel=0.01)
    nothing = task.target([], BEVAugmentation.none())
    assert task.loss([(torch.full((1, 4, 3), -12.0), torch.rand(1, 4, POINTS, 2))], [nothing]) < 1e-3
    scores = MapScores(task)
    scores.add(said(target), [kept], ["token"])
    figures = scores.result(None)
    assert figures["map_AP"] == pytest.approx(1.0)
    assert figures["map_AP_boundary"] is None


def test_typical_lines_are_the_middles_of_bundles():
    rng = np.random.default_rng(0)
    bundles = rng.random((4, POINTS, 2))
    lines = (bundles[rng.permutation(np.arange(40) % 4)] + rng.uniform(-0.01, 0.01, (40, 1, 2))).clip(0, 1)
    apart = np.abs(typical(lines, 4)[:, None] - bundles).max((2, 3))  # [found, bundle]
    assert sorted(apart.argmin(1)) == [0, 1, 2, 3]
    assert apart.min(1).max() < 0.01


@pytest.mark.parametrize("there", [0, 1, 5])
def test_few_lines_are_taken_again_none_twice_the_same(there: int):
    lines = np.random.default_rng(0).random((there, POINTS, 2))
    found = typical(lines, 7)
    assert sorted(found[:there].tolist()) == sorted(lines.tolist())
    assert len(np.unique(found, axis=0)) == 7
    assert np.abs(found[there:] - 0.5).max() < 0.8  # on the grid or not far off it, also where there is none


def test_the_head_starts_from_the_lines_of_its_examples_whichever_way_they_run():
    lines = [np.array([[-20.0, y], [20.0, y]]) for y in (-6.0, 0.0, 6.0)]
    examples = [[(0, line[:: 1 if sample % 2 else -1]) for line in lines] for sample in range(20)]
    torch.manual_seed(0)
    head = HDMap().head(16, 1, iter(examples))
    start = head.start.sigmoid().detach() * torch.tensor([60.0, 30.0]) - torch.tensor([30.0, 15.0])
    for line in lines:
        near = [torch.from_numpy(resample(line, POINTS)).float().sub(found).abs().max() for found in start]
        assert min(near) < 0.1
    assert (start[:, -1, 0] > start[:, 0, 0]).all()  # or means of both ways would be nowhere


def test_the_decoder_moves_points_and_all_of_it_learns():
    torch.manual_seed(0)
    decoder = VectorDecoder(16, 3, torch.rand(5, 1, 2) + torch.linspace(-0.1, 0.1, POINTS)[:, None])
    task, target = HDMap(), HDMap().target([(0, np.array([[-5, 3], [5, 6.0]]))], BEVAugmentation.none())
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    features = torch.randn(1, 16, 9, 11)
    first = None
    for _ in range(60):
        loss = task.loss(decoder(features), [target])
        optimizer.zero_grad()
        loss.backward()
        first = first or loss.item()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    for logits, points in decoder(features):
        assert logits.shape == (1, 5, 3)
        assert points.shape == (1, 5, POINTS, 2)
        assert ((points > 0) & (points < 1)).all()
