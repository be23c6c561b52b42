"""Targets of the probes in scenes whose answer is known, and the run of mim4d-eval --task probe."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mim4d.clip import Clip
from mim4d.eval.cli import main
from mim4d.eval.labels import BOX
from mim4d.eval.probe import (
    ALL,
    BEV,
    FIGURES,
    FINE,
    PIXELS,
    POSITION,
    Observer,
    ProbeTruth,
    Rows,
    hold_back,
    image_cells,
    solve_probes,
    table,
)
from mim4d.eval.run import evaluate
from tests.eval.runs import arguments, tiny
from tests.toy import toy_clip

SIZE = (8, 16)
"""Cells of an image of 64 x 128 pixels; four of them meet at the principal point."""


def scene(*points: tuple[float, float, float]) -> Clip:
    """One camera, 1.6 m above the ground, which looks forward with 0.8 W of focal length; and LiDAR points."""
    clip = toy_clip(1, 1, 1, (64, 128))
    given = torch.tensor(points).reshape(1, 1, -1, 3)
    return replace(clip, points=given, num_points=torch.tensor([[len(points)]]))


def box(x: float, y: float, size: tuple[float, float, float] = (4.0, 2.0, 3.2), yaw: float = 0.0) -> np.ndarray:
    """A vehicle on the ground, as high as the camera twice over."""
    found = np.zeros(1, BOX)
    found["center"], found["size"], found["yaw"], found["vehicle"] = (x, y, size[2] / 2), size, yaw, True
    return found


def truth(seen=None, hidden=None, drivable=None) -> ProbeTruth:
    none = np.zeros(0, BOX)
    nothing = np.zeros((3, *BEV.shape[1:]), bool)
    return ProbeTruth(none if seen is None else seen, none if hidden is None else hidden, drivable, nothing)


def test_a_cell_has_the_depth_of_its_nearest_point():
    # 102.4 pixels of focal length: 1 m to the left at 10 m is 10.24 pixels, the second cell left of the middle.
    clip = scene((10.0, 1.0, 1.5), (20.0, 2.0, 1.4), (10.0, -1.0, 1.5), (-10.0, 0.0, 1.5))
    depth = image_cells(clip, truth(), SIZE).depth[0]
    assert depth.isfinite().sum() == 2
    assert depth[4, 6] == pytest.approx(10)  # and not the 20 m of the point behind
    assert depth[4, 9] == pytest.approx(10)


def test_a_cell_is_a_vehicles_if_the_ray_through_its_centre_hits_the_box():
    found = image_cells(scene(), truth(box(12.0, 0.0)), SIZE).vehicle[0]  # its rear at 10 m, 2 m wide, 3.2 m high
    half = 102.4 * 1 / 10  # pixels
    columns = [column for column in range(16) if abs(8 * column + 4 - 64) < half]
    rows = [row for row in range(8) if abs(8 * row + 4 - 32) < 102.4 * 1.6 / 10]
    wanted = torch.zeros(SIZE, dtype=torch.bool)
    wanted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert torch.equal(found, wanted)
    turned = image_cells(scene(), truth(box(12.0, 0.0, yaw=math.pi / 2)), SIZE).vehicle[0]  # 4 m wide, at 11 m
    assert turned.any(0).sum() > found.any(0).sum()


@pytest.mark.parametrize(
    ("point", "is_hidden"),
    [
        ((5.0, 0.2, 1.55), True),  # half-way, in the middle of the image
        ((5.0, 0.2, 0.3), False),  # the ground before the vehicle, a cell further down
        ((9.5, 0.2, 1.55), False),  # less than a metre before the box
        ((10.5, 0.2, 1.55), False),  # in the box
    ],
)
def test_a_vehicle_behind_something_nearer_does_not_count(point, is_hidden):
    cells = image_cells(scene(point), truth(box(12.0, 0.0)), SIZE)
    assert bool(cells.vehicle[0, 4, 7]) != is_hidden
    assert cells.counts[0, 4, 7] or not cells.vehicle[0, 4, 7]


def test_cells_of_hardly_visible_vehicles_do_not_count():
    seen, hidden = box(12.0, 0.0), box(30.0, 6.0)
    cells = image_cells(scene(), truth(seen, hidden), SIZE)
    alone = image_cells(scene(), truth(hidden), SIZE).vehicle
    assert alone.any()
    assert not (cells.vehicle & alone).any()
    assert not cells.counts[alone].any()
    assert cells.counts[cells.vehicle].all()


def test_drivable_cells_see_the_road():
    road = np.zeros(FINE.shape[1:], bool)
    road[90:110] = True  # 5 m to each side
    cells = image_cells(scene(), truth(drivable=road), SIZE)
    assert not cells.drivable[0, :4].any()  # above the horizon
    assert cells.counts[0, :4].all()  # the sky is no road
    for row in range(4, 8):
        distance = 102.4 * 1.6 / (8 * row + 4 - 32)
        for column in range(16):
            left = distance * (64 - 8 * column - 4) / 102.4
            assert bool(cells.drivable[0, row, column]) == (distance < 50 and abs(left) < 5), (row, column)
    # A vehicle, and a wall that LiDAR has hit, stand on it: what is behind their feet is not seen.
    behind = image_cells(scene(), truth(box(12.0, 0.0), drivable=road), SIZE)
    assert not (behind.drivable & behind.vehicle).any()
    wall = image_cells(scene((8.0, 0.2, 0.9)), truth(drivable=road), SIZE)
    assert cells.drivable[0, 5, 7]
    assert not wall.drivable[0, 5, 7]


def test_ground_out_of_range_does_not_count():
    high = scene()
    pose = high.ego_from_camera.clone()
    pose[..., 2, 3] = 10.0  # the first row under the horizon meets the ground at 256 m
    cells = image_cells(replace(high, ego_from_camera=pose), truth(), SIZE)
    assert not cells.counts[0, 4].any()
    assert cells.counts[0, 7, 8]


def test_features_stand_where_their_columns_say():
    clip = scene((10.0, 1.0, 1.5))
    maps = [torch.full((1, 2, 16, 32), 4.0), torch.full((1, 3, 8, 16), 8.0), torch.full((1, 5, 2, 4), 32.0)]
    observer = Observer((4, 8, 32), (2, 3, 5))
    assert observer.stride == 8
    counted = truth()
    counted.bev[2] = True
    found = observer(maps, clip, counted, None, 0)
    for kind, rows in found.items():
        columns = observer.columns[kind]
        for stride in (4, 8, 32):
            values = rows.features[:, columns[f"stride {stride}"]]
            assert values.max() == stride
            assert values.shape[1] == {4: 2, 8: 3, 32: 5}[stride] * (2 if kind == "bev" else 1)
        assert rows.features.shape[1] == columns[ALL].stop
        assert rows.features[:, columns[POSITION]].abs().max() == 1
        assert 0 <= rows.features[:, columns[PIXELS]].min() <= rows.features[:, columns[PIXELS]].max() <= 1
    assert found["depth"].targets.tolist() == [[pytest.approx(math.log(10))]]
    assert len(found["image"].features) == 8 * 16
    few = observer(maps, clip, counted, 10, 0)
    assert len(few["image"].features) == len(few["bev"].features) == 10


def test_bev_cells_take_the_features_at_their_projection():
    clip = scene()
    ramp = torch.arange(16.0).expand(8, 16)[None, None]  # the column of the cell
    counted = truth()
    counted.bev[2] = True
    counted.bev[0, 50, 70] = True  # x = 20.5, y = 0.5
    observer = Observer((8,), (1,))
    found = observer([ramp], clip, counted, None, 0)["bev"]
    (place,) = found.targets[:, 0].nonzero()
    at_ground, at_two_metres = found.features[place, observer.columns["bev"]["stride 8"]][0].tolist()
    column = (64 - 102.4 * 0.5 / 20.5) / 8 - 0.5
    assert at_ground == at_two_metres == pytest.approx(column, abs=1e-4)


@pytest.mark.parametrize(
    ("scenes", "held"),
    [
        ([3, 3, 5, 5, 5, 8], [False, False, False, False, False, True]),
        ([1, 2, 3, 4, 5], [False, False, False, True, True]),
        ([7, 7, 7, 7], [False, False, False, True]),
        ([7, 7], [False, True]),
    ],
)
def test_the_last_quarter_is_held_back_by_scenes_if_there_are_several(scenes, held):
    assert hold_back(scenes) == held


def observations(seed: int, samples: int = 3, cells: int = 3000) -> list[dict[str, Rows]]:
    """Feature 0 knows everything, feature 1 nothing."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(samples):
        x = torch.rand(cells, 2, generator=generator)
        x[:, 0] = (10 * x[:, 0]).floor() / 10
        labels = torch.stack([x[:, 0] > 0.85, x[:, 0] < 0.25], dim=1).float()
        made.append({"depth": Rows(x, 1 + 2 * x[:, :1]), "image": Rows(x, labels), "bev": Rows(x, labels)})
    return made


def test_a_feature_that_knows_the_truth_scores_one_and_one_that_does_not_scores_chance():
    columns = {kind: {"knows": slice(0, 1), "does not": slice(1, 2)} for kind in ("depth", "image", "bev")}
    found = solve_probes(columns, lambda: observations(0), lambda: observations(1), observations(2))
    assert set(found["knows"]) == set(FIGURES)
    knows = {"depth_r2": 1, "depth_abs_rel": 0} | dict.fromkeys(FIGURES[2:], 1)
    assert found["knows"] == pytest.approx(knows, abs=0.02)
    assert found["does not"]["depth_r2"] < 0.05
    assert found["does not"]["vehicle_ap"] == pytest.approx(0.1, abs=0.05)
    assert found["does not"]["bev_drivable_iou"] == pytest.approx(0.3, abs=0.05)
    lines = table(found)
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


def test_without_lidar_there_is_no_depth_but_the_rest():
    columns = {kind: {"knows": slice(0, 1)} for kind in ("depth", "image", "bev")}

    def blind(seed: int) -> list[dict[str, Rows]]:
        return [o | {"depth": Rows(o["depth"].features[:0], o["depth"].targets[:0])} for o in observations(seed)]

    found = solve_probes(columns, lambda: blind(0), lambda: blind(1), blind(2))["knows"]
    assert found["depth_r2"] is found["depth_abs_rel"] is None
    assert found["vehicle_ap"] == 1


def test_a_run_leaves_its_figures_and_repeats(tiny_world, tmp_path, capsys):
    flags = ("--task", "probe")
    main(arguments(tiny_world, tmp_path / "a", *flags))
    said = capsys.readouterr().err
    assert "depth R2 " in said
    assert POSITION in said
    figures = json.loads((tmp_path / "a/metrics.json").read_text())
    assert all(0 <= figures[name] <= 1 for name in FIGURES)
    assert {name: figures[name] for name in FIGURES} == figures["features"][ALL]
    assert set(figures["features"]) == {POSITION, PIXELS, *(f"stride {s}" for s in (4, 8, 16, 32)), ALL}
    assert figures["features"][POSITION]["depth_r2"] > 0.3  # near below, far above
    assert (figures["samples"], figures["val_samples"]) == (8, 4)
    assert figures["settings"]["freeze"]
    again = evaluate(tiny(tiny_world, tmp_path / "b", *flags), quiet=True)
    assert {name: again[name] for name in FIGURES} == {name: figures[name] for name in FIGURES}


def test_a_root_without_a_map_has_no_drivable_area(tiny_world, tmp_path):
    root = shutil.copytree(tiny_world, tmp_path / "root")
    shutil.rmtree(root / "maps/expansion")
    figures = evaluate(tiny(root, tmp_path / "run", "--task", "probe", "--backbone", "test_vit"), quiet=True)
    assert figures["drivable_ap"] is figures["bev_drivable_iou"] is None
    assert 0 < figures["vehicle_ap"] <= 1


def test_one_sample_is_too_few(tiny_world, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments(tiny_world, tmp_path / "run", "--task", "probe", "--labels", "0.1"))
    assert stop.value.code == 2
    assert "--labels 0.1 leaves 1 of 8 training samples" in capsys.readouterr().err
