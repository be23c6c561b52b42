"""BEV segmentation: labels, loss and scores."""

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mim4d.eval.augmentation import BEVAugmentation
from mim4d.eval.labels import footprints, rasterise
from mim4d.eval.segmentation import HIDDEN, NAMES, PixelScores, Segmentation, bev_grid
from tests.reference.average_precision import pixel_scores


def test_the_grid_is_lift_splat_shoots():
    assert Segmentation.grid.shape == (1, 200, 200)
    assert (Segmentation.grid.x, Segmentation.grid.y) == ((-50.0, 50.0), (-50.0, 50.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6))
def test_scores_are_those_of_the_definitions(seed, share):
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-80, 80, 60) + 0.5) * 0.05  # amid bins, with ties
    truth = rng.random(60) < share
    truth[0] = True
    scores = PixelScores(1)
    for part in (slice(0, 20), slice(20, 60)):
        shape = (1, 1, 1, -1)
        values, true = torch.tensor(logits[part]).view(shape), torch.tensor(truth[part]).view(shape)
        scores.add(values, true, torch.ones_like(true))
    got = scores.result()
    assert (got["iou"][0], got["iou_best"][0], got["ap"][0]) == pytest.approx(pixel_scores(logits, truth), abs=1e-9)


def test_what_does_not_count_changes_nothing():
    rng = np.random.default_rng(0)
    logits, truth = torch.tensor(rng.normal(size=(2, 3, 8, 8))), torch.tensor(rng.random((2, 3, 8, 8)) < 0.3)
    counts = torch.tensor(rng.random((2, 3, 8, 8)) < 0.5)
    scores, without = PixelScores(3), PixelScores(3)
    scores.add(logits, truth, counts)
    without.add(torch.where(counts, logits, -logits), torch.where(counts, truth, ~truth), counts)
    assert scores.result() == without.result()


def test_a_class_that_is_nowhere_has_no_score():
    scores = PixelScores(2)
    truth = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    truth[:, 0, 0] = True
    scores.add(torch.where(truth, 3.0, -3.0), truth, torch.ones_like(truth))
    assert scores.result() == {"iou": [1.0, None], "iou_best": [1.0, None], "ap": [1.0, None]}


@pytest.fixture(scope="module")
def canvases(annotations) -> dict[str, np.ndarray]:
    task = Segmentation()
    return {token: task.read(annotations, token) for token in annotations.tokens[:3]}


def test_labels_have_every_class_in_its_place(canvases, annotations):
    """The car stands on the drivable area; vehicles stand where their annotations say."""
    task, shares = Segmentation(), []
    for token, canvas in canvases.items():
        truth = task.target(canvas, BEVAugmentation.none()).truth
        assert truth.shape == (len(NAMES), 200, 200)
        assert truth[1, 100, 100]
        shares.append(truth.float().mean((1, 2)))
        for box in annotations.boxes(token):
            column, row = ((box["center"][:2] + 50) / 0.5).astype(int)
            if box["vehicle"] and box["visibility"] >= 2 and min(row, column) >= 0 and max(row, column) < 200:
                assert truth[0, row, column]
    assert (torch.stack(shares).mean(0)[:3] > 0.003).all()


def test_hardly_seen_vehicles_do_not_count(annotations):
    token = annotations.tokens[0]
    all_of_them, seen = Segmentation(1).read(annotations, token), Segmentation(2).read(annotations, token)
    hidden = (seen & HIDDEN) > 0
    assert 0 < hidden.sum() < (all_of_them & 1).sum()
    np.testing.assert_array_equal(all_of_them & 1, (seen & 1) | hidden)
    target = Segmentation(2).target(seen, BEVAugmentation.none())
    assert (~target.counts[0] & target.truth[0]).sum() == 0
    assert (~target.counts[0]).sum() > 0
    assert target.counts[1:].all()


def test_a_turned_target_is_the_target_of_turned_things(annotations):
    """The canvas turned, against boxes that were turned and then drawn."""
    task = Segmentation(1)
    token = annotations.tokens[1]
    boxes = annotations.boxes(token)
    for seed in range(4):
        turn = BEVAugmentation.draw(seed)
        got = task.target(task.read(annotations, token), turn).truth[0].numpy()
        wanted = rasterise(footprints(turn.boxes(boxes[boxes["vehicle"]])), task.grid)
        agree = {
            shift: (np.roll(got, shift, (0, 1)) & wanted).sum() / (got | wanted).sum()
            for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        }
        assert agree[0, 0] == max(agree.values())
        assert agree[0, 0] > 0.8  # borders differ by the nearest cell


def test_the_loss_falls_to_nothing_for_the_truth(canvases):
    task = Segmentation()
    targets = [task.target(canvas, BEVAugmentation.none()) for canvas in canvases.values()]
    truth = torch.stack([target.truth for target in targets])
    assert task.loss(torch.where(truth, 20.0, -20.0), targets) < 0.01
    assert task.loss(torch.where(truth, -2.0, 2.0), targets) > 1.0


def test_cells_are_filled_by_their_middles():
    grid = bev_grid(5.0, 0.5)
    shapes = [shapely.Polygon([(-1, -2), (3.3, -1.2), (2, 4)]), shapely.box(-6, 4.1, -4, 9)]
    mask = rasterise(shapes, grid)
    for row in range(20):
        for column in range(20):
            middle = shapely.Point(-4.75 + 0.5 * column, -4.75 + 0.5 * row)
            assert mask[row, column] == any(shape.contains(middle) for shape in shapes)
    assert 10 < mask.sum() < 100


def test_forward_is_up_and_left_is_left_in_a_picture(canvases):
    task, canvas = Segmentation(), next(iter(canvases.values()))
    figure = Figure()
    axis = figure.add_subplot()
    task.draw(axis, canvas, None)
    drawn = np.asarray(axis.images[0].get_array())
    truth = task.target(canvas, BEVAugmentation.none()).truth
    row, column = truth[0].nonzero()[0].tolist()  # row along y, column along x
    assert drawn[column, 199 - row] == pytest.approx(np.array(to_rgb("tab:blue")))
