"""The score of the BEV flow: on boxes of known velocity."""

import math

import numpy as np
import pytest
import torch

from benchmarks.flow import flow_of, score
from mim4d.eval.labels import BOX
from tests.toy import toy_grid

GRID = toy_grid()  # cells of 2 m


def vehicle(x: float, y: float, velocity: tuple[float, float], yaw: float = 0.0, visibility: int = 4) -> np.void:
    box = np.zeros(1, BOX)[0]
    box["center"], box["size"], box["yaw"] = (x, y, 1), (6, 2.2, 2), yaw
    box["velocity"], box["vehicle"], box["visibility"] = velocity, True, visibility
    return box


def test_the_flow_of_a_vehicle_is_that_of_the_cells_in_its_box():
    """Turned by 90 degrees, it covers three cells to the left and right of each other."""
    flow = torch.zeros(2, 24, 24)
    flow[:, 11:14, 17] = torch.tensor([[2.0, 3.0, 4.0], [1.0, 1.0, 1.0]])  # cells (y, x): y = -1, 1, 3 and x = 11
    np.testing.assert_allclose(flow_of(vehicle(11, 1, (0, 0), yaw=math.pi / 2), flow, GRID), [3, 1])
    assert flow_of(vehicle(90, 1, (0, 0)), flow, GRID) is None


def test_true_flow_has_no_error_and_zero_flow_the_speed():
    boxes = np.array([vehicle(11, 1, (3, 4)), vehicle(-9, 5, (0, -2)), vehicle(-9, -9, (0, 0))])
    true = torch.zeros(2, 24, 24)
    for box in boxes:
        x, y, _ = ((box["center"] + 24) / 2).astype(int)
        true[:, y, x - 1 : x + 2] = torch.tensor(box["velocity"].astype("f4"))[:, None]
    assert score([(true, boxes)], GRID) == pytest.approx((2, 0, 3.5, 1, 0))
    assert score([(0 * true, boxes)], GRID) == pytest.approx((2, 3.5, 3.5, 1, 0))
    assert score([(true + 1, boxes)] * 2, GRID) == pytest.approx((4, math.sqrt(2), 3.5, 2, math.sqrt(2)))


def test_hidden_and_unknown_vehicles_do_not_count():
    boxes = np.array([vehicle(11, 1, (3, 4), visibility=1), vehicle(-9, 5, (math.nan, 0))])
    found = score([(torch.zeros(2, 24, 24), boxes)], GRID)
    assert found[::3] == (0, 0)
    assert math.isnan(found.error)
