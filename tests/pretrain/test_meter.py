"""What steps measured, averaged over clips, batches and processes."""

import math

import pytest
import torch
from accelerate import Accelerator

from mim4d.errors import UserError
from mim4d.pretrain.meter import Meter, averages, join, totals

NAN = math.nan


def values(loss: float, depth: list[float], rgb: list[float]) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "depth": torch.tensor(depth), "rgb": torch.tensor(rgb)}


@pytest.fixture
def meter(fresh_accelerate) -> Meter:
    return Meter(Accelerator(cpu=True))


def test_clips_without_a_value_do_not_count_however_clips_are_dealt_out():
    """Of five clips three have depth: on one process, on two with two and three clips, on one in two batches."""
    parts = [values(1.0, [2.0, NAN], [0.1, 0.2]), values(3.0, [NAN, 4.0, 9.0], [0.3, 0.4, 0.5])]
    expected = {"loss": pytest.approx(2.2), "depth": pytest.approx(5.0), "rgb": pytest.approx(0.3)}
    one, other = (totals(part, len(part["rgb"])) for part in parts)
    assert averages({name: (one[name] + other[name]).tolist() for name in one}) == expected
    joined = join(parts)
    assert joined["depth"].tolist() == pytest.approx([2.0, NAN, NAN, 4.0, 9.0], nan_ok=True)
    del expected["loss"]  # whose batches are of one size
    found = averages({name: total.tolist() for name, total in totals(joined, 5).items()})
    assert {name: found[name] for name in expected} == expected


def test_a_value_that_no_clip_has_is_not_there(meter):
    step = {"grad_norm": torch.tensor(1.0)}
    meter.add(1, values(1.0, [NAN], [0.1]) | step, ("a",), 0)
    assert meter.read("").keys() == {"step", "loss", "rgb", "grad_norm", "clips_per_s", "seconds", "skipped"}
    meter.add(2, values(1.0, [NAN], [0.1]) | step, ("a",), 0)
    meter.add(3, values(1.0, [5.0], [0.1]) | step, ("a",), 0)
    assert meter.read("")["depth"] == 5


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_loss_or_gradient_that_is_not_finite_still_ends_the_run(name, meter):
    good = values(1.0, [NAN], [0.1]) | {"grad_norm": torch.tensor(1.0)}
    meter.add(1, good, ("a",), 0)
    meter.add(2, good | {name: torch.tensor(NAN)}, ("b",), 0)
    meter.add(3, good, ("c",), 0)
    with pytest.raises(UserError, match=rf"{name} is nan at step 2 \(clips b\); do this"):
        meter.read("do this")
