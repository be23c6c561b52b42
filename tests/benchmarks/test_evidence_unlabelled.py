"""What runs are scored by without labels: motion against a slow reference, and every kind of run in one way."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evidence import unlabelled as module
from benchmarks.evidence.methods import Pixels, Timeless, Unwarped
from benchmarks.evidence.unlabelled import flow_errors, moving, unlabelled, velocities
from mim4d.eval.labels import BOX
from mim4d.geometry import VoxelGrid, transform
from mim4d.method.model import MIM4D
from mim4d.pretrain.evaluate import evaluate
from mim4d.pretrain.trainer import train
from tests.pretrain.runs import tiny
from tests.toy import toy_clip, toy_config

GRID = VoxelGrid(x=(-20, 20), y=(-12, 16), z=(-1, 3), voxel=(0.8, 0.5, 2.0))


def vehicles(count: int, seed: int = 0) -> np.ndarray:
    """Moving vehicles, some of which stick out of the grid or are smaller than a cell."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros(count, BOX)
    boxes["center"][:, :2] = rng.uniform(-20, 20, (count, 2))
    boxes["size"] = rng.uniform([0.1, 0.1, 1], [12, 3, 3], (count, 3))
    boxes["yaw"] = rng.uniform(-4, 4, count)
    boxes["velocity"] = rng.normal(0, 8, (count, 2))
    boxes["vehicle"], boxes["visibility"] = True, 4
    return boxes


def slow_errors(flow: np.ndarray, boxes: np.ndarray, grid: VoxelGrid) -> list[tuple[float, float]]:
    """Cell by cell: is its middle in the rotated box, and how far is the flow there from the velocity?"""
    errors = []
    for box in boxes:
        length, width, _ = box["size"]
        forward = (math.cos(box["yaw"]), math.sin(box["yaw"]))
        missed, speeds = [], []
        for row in range(flow.shape[1]):
            for column in range(flow.shape[2]):
                x = grid.x[0] + (column + 0.5) * grid.voxel[0] - box["center"][0]
                y = grid.y[0] + (row + 0.5) * grid.voxel[1] - box["center"][1]
                ahead, left = x * forward[0] + y * forward[1], y * forward[0] - x * forward[1]
                if abs(ahead) < length / 2 and abs(left) < width / 2:
                    vx, vy = box["velocity"]
                    missed.append(math.hypot(flow[0, row, column] - vx, flow[1, row, column] - vy))
                    speeds.append(math.hypot(vx, vy))
        if missed:
            errors.append((sum(missed) / len(missed), sum(speeds) / len(speeds)))
    return errors


def test_errors_are_those_of_every_cell_in_a_box():
    boxes = vehicles(40)
    flow = np.random.default_rng(1).normal(0, 5, (2, *GRID.shape[1:])).astype(np.float32)
    expected = slow_errors(flow, boxes, GRID)
    assert 10 < len(expected) < 40  # some have no cell
    np.testing.assert_allclose(flow_errors(flow, boxes, GRID), expected, rtol=1e-5)


def test_no_flow_misses_the_speed_and_the_truth_nothing():
    box = vehicles(1)
    box["center"], box["size"], box["velocity"] = (3, 2, 0), (4, 2, 2), (3, -4)
    ((missed, nothing),) = flow_errors(np.zeros((2, *GRID.shape[1:]), np.float32), box, GRID)
    assert missed == nothing == pytest.approx(5)
    truth = np.full((2, *GRID.shape[1:]), np.array([3, -4])[:, None, None], np.float32)
    assert flow_errors(truth, box, GRID)[0][0] == pytest.approx(0)


def test_what_moves_is_a_seen_vehicle_faster_than_half_a_metre_a_second():
    boxes = vehicles(6)
    boxes["velocity"] = [(0.4, 0.4), (0.3, 0.3), (np.nan, np.nan), (-3, 0), (0, 5), (0, -0.6)]
    boxes["visibility"][3], boxes["vehicle"][4] = 1, False
    np.testing.assert_array_equal(moving(boxes), boxes[[0, 5]])


@pytest.mark.parametrize("method", [MIM4D, Unwarped, Timeless])
def test_velocities_are_over_ground_and_in_seconds_for_every_method(method, monkeypatch):
    """A decoder that has found everything: one velocity all over the world, seen from a car that drives and turns."""
    clip, velocity = toy_clip(turn=0.2), torch.tensor([3.0, -2.0])
    clip = dataclasses.replace(clip, timestamps=clip.timestamps + torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64))
    model = method(toy_config()).eval()
    here = model.config.grid.centers(torch.zeros(()))[0]  # [Y, X, 3]
    frame = 1  # the nearest
    then = here + torch.tensor([*velocity, 0]) * clip.times[0, frame]  # where it was, in the current ego frame
    if method is Unwarped:
        then = transform(torch.linalg.inv(clip.current_from_ego[0, frame]), then)
    gap = -1.0 if method is Timeless else clip.times[0, frame]
    flow = ((then - here) / gap)[..., :2].permute(2, 0, 1)
    monkeypatch.setattr(model.temporal, "flow", lambda decoded: flow.expand(2, -1, -1, -1))
    found = velocities(model, clip)
    torch.testing.assert_close(found, velocity[:, None, None].expand_as(found), atol=1e-3, rtol=0)


@pytest.mark.parametrize("supervision", ["rgbd", "rgb"])
def test_runs_are_scored_along_lidar_with_nothing_masked(supervision, root, tmp_path, fresh_accelerate, monkeypatch):
    out = train(tiny(root, tmp_path / "run", "--steps", "2", "--supervision", supervision))
    seen = []

    def watched(model, clips, accelerator):
        seen.extend(model.visible(clip).all() and (clip.num_points > 0).all() for clip in clips)
        assert not model.training
        assert (model.renderer.sky is not None) == (supervision == "rgb")
        return evaluate(model, clips, accelerator)

    monkeypatch.setattr(module, "evaluate", watched)
    scores = unlabelled(out, MIM4D, clips=3)
    assert seen == [True] * 3
    assert set(scores) == {
        *("depth_abs_rel", "depth_delta", "temporal_rgb", "temporal_depth", "mean_rgb", "mean_depth"),
        *("zero_rgb", "zero_depth", "moving_vehicles", "flow_epe", "zero_flow_epe"),
    }
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["depth_abs_rel"] > 0
    assert scores["moving_vehicles"] >= 1
    assert scores["zero_flow_epe"] > module.MOVING
    assert unlabelled(out, MIM4D, clips=3) == scores


def test_the_average_of_the_weights_is_scored_where_there_is_one(root, tmp_path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--steps", "2", "--frames", "1", "--optim.ema-decay", "0.5"))
    (checkpoint,) = (out / "checkpoints").iterdir()
    (checkpoint / "model.safetensors").unlink()
    assert set(unlabelled(out, MIM4D, clips=1)) == {"depth_abs_rel", "depth_delta"}


def test_pixels_render_nothing(root, tmp_path: Path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--steps", "1"), method=Pixels)
    assert unlabelled(out, Pixels, clips=1) == {}
