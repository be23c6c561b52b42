"""What the comparison's tables and plot say of its results."""

import copy
import json
import random
import re
import statistics

import pytest
from matplotlib.image import imread

from benchmarks.evidence.report import (
    details,
    gain,
    gates,
    interval,
    plot,
    summarise,
    summary,
    table,
    verdict,
    write_report,
)
from mim4d.errors import UserError

FIGURES = {"probe": "depth_r2", "bev-seg": "iou_vehicle", "det3d": "mAP", "hd-map": "map_AP"}
PRETRAININGS = {"": 0.0, "-colour": -2.0, "-decoder": -1.0, "-camera": 2.0, "-lidar": 3.0}
STARTS = {f"imagenet{name}": value for name, value in PRETRAININGS.items()}


def results(cells=(), depth=(), curves=()):
    found = {
        "mim4d": "0.2.0",
        "size": "cpu",
        "command": "python -m benchmarks.evidence --size cpu",
        "machine": "2 CPU cores",
        "hours": 1.5,
        "protocol": {
            "backbones": "tf_efficientnet_lite0, mim4d_resnet18",
            "images": "128 x 352",
            "scenes": {"train": 128, "val": 32},
            "pretraining_steps": 400,
            "evaluation_steps": {"10 %": 300},
        },
        "cells": list(cells),
        "depth": list(depth),
        "curves": list(curves),
    }
    return found | {"gates": gates(found)}


def cell(init, values, task="probe", mode="frozen", labels=1.0, figure="depth_r2"):
    figures = summarise({seed: {figure: value} for seed, value in enumerate(values)})
    return {"init": init, "task": task, "mode": mode, "labels": labels, "figures": figures}


def plausible(seed=0):
    """A whole comparison, made up: a level for each task and mode, a part of it shared by a seed's cells, and noise."""
    rng = random.Random(seed)
    worth = STARTS | {f"scratch{name}": value - 9 for name, value in PRETRAININGS.items()}
    worth |= {f"imagenet-{name}": 2 - rng.random() for name in ("both", "mask_0", "frames_4")}
    cells = []
    for task, figure in FIGURES.items():
        for mode in ("frozen",) if task == "probe" else ("frozen", "full"):
            level = {"probe": 60, "bev-seg": 19, "det3d": 14, "hd-map": 16}[task]
            for labels, factor in ((0.1, 0.8), (1.0, 1.0)):
                shared = [rng.gauss(0, 0.5) for _ in range(3)]
                for init, gained in worth.items():
                    main = init in STARTS or init.startswith("scratch")
                    if main or task == "probe":
                        values = [(level * factor + gained + part + rng.gauss(0, 0.25)) / 100 for part in shared]
                        cells.append(cell(init, values[: 3 if main else 1], task, mode, labels, figure))
    depth = {"lift_delta": 0.65, "lift_abs_rel": 0.25}
    steps = {"100": summarise({0: {"x": 0.84}})["x"], "200": summarise({0: {"x": 0.85}})["x"]}
    return results(
        cells,
        [{"init": "imagenet-camera", "figures": summarise({0: depth})}],
        [{"init": "imagenet-camera", "figure": "depth_r2", "steps": steps}],
    )


def rows(markdown):
    return [[part.strip() for part in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]


def row(markdown, title):
    return next(cells[1:] for cells in rows(markdown) if cells[0] == title)


def test_summaries_are_those_worked_by_hand():
    got = summarise({0: {"iou": 0.1, "ap": 0.5}, 1: {"iou": 0.2, "ap": None}, 2: {"iou": 0.6, "ap": None}})
    assert got["iou"]["mean"] == pytest.approx(0.3)
    assert got["iou"]["spread"] == pytest.approx(0.07**0.5)  # (0.04 + 0.01 + 0.09) / 2
    assert got["iou"]["seeds"] == {"0": 0.1, "1": 0.2, "2": 0.6}
    assert got["ap"] == {"mean": 0.5, "spread": None, "seeds": {"0": 0.5}}


def test_only_finite_numbers_are_figures():
    figures = {"none": None, "table": {"car": 0.1}, "text": "0.1", "truth": True, "nan": float("nan"), "there": 1}
    assert list(summarise({0: figures})) == ["there"]


def test_summaries_survive_json():
    got = summarise({10: {"iou": 0.1}, 2: {"iou": 0.2}})
    assert json.loads(json.dumps(got)) == got
    assert list(got["iou"]["seeds"]) == ["2", "10"]


def test_gains_are_paired_by_seed():
    # Seeds differ by far more than pretrainings do.
    given = results([cell("imagenet", [0.10, 0.30, 0.50]), cell("imagenet-camera", [0.11, 0.33, 0.52, 0.9])])
    got = gain(given, "imagenet-camera", "imagenet", "probe", "frozen", 1.0, "depth_r2")
    assert got["mean"] == pytest.approx(0.02)
    assert got["spread"] == pytest.approx(0.01)
    assert got["seeds"] == pytest.approx({"0": 0.01, "1": 0.03, "2": 0.02})


@pytest.mark.parametrize("absent", [{"labels": 0.1}, {"mode": "full"}, {"task": "det3d"}, {"figure": "vehicle_ap"}])
def test_there_is_no_gain_over_what_was_not_measured(absent):
    asked = {"task": "probe", "mode": "frozen", "labels": 1.0, "figure": "depth_r2"}
    given = results([cell("scratch", [0.1]), cell("scratch-camera", [0.2])])
    assert gain(given, "scratch-camera", "scratch", **asked)["mean"] == pytest.approx(0.1)
    assert gain(given, "scratch-camera", "scratch", **(asked | absent)) is None
    assert gain(given, "scratch-camera", "scratch-lidar", **asked) is None


def test_there_is_no_gain_without_a_common_seed():
    given = results([cell("scratch", [0.1]), cell("scratch-camera", [None, 0.2])])
    assert gain(given, "scratch-camera", "scratch", "probe", "frozen", 1.0, "depth_r2") is None


def test_intervals_are_those_worked_by_hand():
    (difference,) = summarise({0: {"gain": 0.1}, 1: {"gain": 0.2}, 2: {"gain": 0.6}}).values()
    half = 4.3027 * (0.07 / 3) ** 0.5  # t(0.975) with two degrees of freedom, and the variance 0.07 of 3 seeds
    assert interval(difference) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-4)
    assert interval(summarise({0: {"gain": 0.1}, 1: {"gain": 0.2}})["gain"]) is None  # two seeds know no spread


@pytest.mark.parametrize(
    ("gained", "shown"),
    [
        ([0.24, 0.5, 0.76], "+50.0 ± 26.0"),  # the interval is wider than 2.48 of its spread
        ([0.011, 0.021, 0.031], "+2.1 ± 1.0"),
        ([0.013, 0.021, 0.029], "**+2.1 ± 0.8**"),
        ([-0.013, -0.021, -0.029], "**-2.1 ± 0.8**"),  # a loss is as much a finding as a gain
        ([0.02, 0.022], "+2.1 ± 0.1"),  # two seeds
        ([0.02], "+2.0"),
    ],
)
def test_bold_is_a_difference_whose_interval_excludes_zero(gained, shown):
    cells = [cell("scratch", [0.0] * len(gained)), cell("scratch-camera", gained)]
    assert rows(table(results(cells)))[2][-1] == shown


def test_the_verdict_says_what_changed_by_how_much():
    cells = [
        *(cell(f"imagenet{name}", [level]) for name, level in (("", 0.84), ("-camera", 0.86))),
        *(cell(f"imagenet{name}", [level], figure="vehicle_ap") for name, level in (("", 0.85), ("-camera", 0.84))),
    ]
    cells[0]["figures"] |= cells.pop(2)["figures"]
    cells[1]["figures"] |= cells.pop(2)["figures"]
    assert verdict(results(cells)) == (
        "On held-out synthetic video, pretraining from cameras alone changes probes as follows: from ImageNet weights, "
        "depth R2 by +2.0 and image vehicle AP by -1.0 points (1 seed)."
    )
    assert verdict(results()) == "Nothing has been measured yet."


def test_the_summary_has_at_most_six_rows_with_intervals():
    whole = plausible()
    lines = rows(summary(whole))
    assert [line[0] for line in lines[2:]] == ["depth R2, from ImageNet weights", "depth R2, from random weights"]
    difference = gain(whole, "imagenet-camera", "imagenet", "probe", "frozen", 1.0, "depth_r2")
    low, high = interval(difference)
    assert lines[2][-1].strip("*") == f"{100 * difference['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert verdict(whole) in summary(whole)


@pytest.mark.parametrize(
    ("gained", "held"),
    [
        ([0.03, 0.04, 0.05], True),
        ([0.01, 0.04, 0.07], False),  # within twice its spread
        ([0.02, 0.021, 0.022], False),  # below the aim
        ([0.05], False),  # one seed has no spread
    ],
)
def test_a_gain_is_held_beyond_its_aim_and_twice_its_spread(gained, held):
    given = results([cell("imagenet", [0.0] * len(gained)), cell("imagenet-camera", gained)])
    gate = given["gates"]["imagenet_depth_r2_of_cameras_alone_over_before"]
    assert gate["value"] == pytest.approx(statistics.mean(gained))
    assert (gate["aim"], gate["held"]) == (0.03, held)


def test_weights_without_a_pretraining_are_no_row_of_the_summary():
    cells = [cell("imagenet", [0.8]), cell("imagenet-camera", [0.9]), cell("scratch", [0.3])]
    text = summary(results(cells))
    assert "| depth R2, from ImageNet weights | 80.0 | 90.0 | +10.0 |" in text
    assert "random" not in text
    assert "from random weights | 30.0 |" in summary(results(cells[2:]))


def test_what_was_not_measured_is_no_gate_held_or_missed():
    for gate in results()["gates"].values():
        assert (gate["value"], gate["spread"], gate["held"]) == (None, None, None)


def test_lidars_share_is_that_of_its_gain():
    cells = [cell("imagenet", [0.80]), cell("imagenet-camera", [0.83]), cell("imagenet-lidar", [0.84])]
    gate = results(cells)["gates"]["imagenet_depth_r2_share_of_lidars_gain"]
    assert gate["value"] == pytest.approx(0.75)
    assert gate["held"] is False


def test_the_table_has_a_line_for_what_was_measured_and_says_how():
    text = table(
        results([cell("scratch", [0.1, 0.2, 0.3]), cell("scratch-camera", [0.4], "det3d", "full", 0.1, "mAP")])
    )
    assert rows(text)[0] == [
        *("score", "first weights", "backbone", "labels", "before", "colour of single frames"),
        *("colour and temporal decoder", "cameras alone", "LiDAR", "cameras alone - before"),
    ]
    assert rows(text)[2:4] == [
        ["depth R2", "random", "frozen", "100 %", "20.0 ± 10.0", "–", "–", "–", "–", "–"],  # noqa: RUF001
        ["mAP", "random", "fine-tuned", "10 %", "–", "–", "–", "40.00", "–", "–"],  # noqa: RUF001
    ]
    assert "over 1 to 3 seeds;" in text
    assert "`python -m benchmarks.evidence --size cpu`" in text
    assert "scenes: train 128, val 32; pretraining steps: 400; evaluation steps: 10 % 300." in text


def test_details_show_units_and_leave_out_what_is_not_there():
    figures = {"mATE": 0.876, "mASE": 0.25, "NDS": 0.123}
    cells = [{**cell("scratch", [], "det3d"), "figures": summarise({0: figures, 1: figures})}]
    text = details(results(cells, [{"init": "scratch-camera", "figures": summarise({0: {"lift_delta": 0.654}})}]))
    assert row(text, "mATE ↓, m")[1:4] == ["frozen", "100 %", "0.88 ± 0.00"]
    assert row(text, "mASE ↓")[1:4] == ["frozen", "100 %", "25.0 ± 0.0"]
    assert row(text, "NDS")[1:4] == ["frozen", "100 %", "12.3 ± 0.0"]
    assert re.findall("^### (.*)", text, re.MULTILINE) == ["3D detection", "Depth of held-out clips"]
    assert row(text, "cameras alone, from random weights")[:2] == ["1", "65.4"]


def test_ablations_are_told_against_the_same_seeds_of_cameras_alone():
    given = results([cell("imagenet-camera", [0.20, 0.90, 0.90]), cell("imagenet-mask_0", [0.15])])
    text = details(given)
    assert row(text, "nothing masked") == ["1", "-5.0", "–", "–"]  # noqa: RUF001
    assert row(text, "change")[:2] == ["seeds", "depth R2, 100 % of labels"]


def test_curves_have_a_column_per_step():
    text = details(plausible()).partition("### Over steps")[2]
    assert row(text, "pretraining") == ["probe", "100", "200"]
    assert [line[1:] for line in rows(text) if line[:2] == ["cameras alone, from ImageNet weights", "depth R2"]] == [
        ["depth R2", "84.0", "85.0"]
    ]


def test_every_table_has_the_columns_of_its_head():
    whole = plausible()
    for text in (write(given) for write in (summary, table, details) for given in (whole, results())):
        for block in text.split("\n\n"):
            if block.startswith("|"):
                lines = rows(block)
                assert {len(line) for line in lines} == {len(lines[0])}
                assert set(lines[1]) == {"---"}


def test_the_table_agrees_with_the_results():
    whole = plausible()
    asked = {"init": "scratch-lidar", "task": "hd-map", "mode": "full", "labels": 0.1}
    values = next(cell for cell in whole["cells"] if asked.items() <= cell.items())
    seeds = [100 * value for value in values["figures"]["map_AP"]["seeds"].values()]
    shown = f"{statistics.mean(seeds):.1f} ± {statistics.stdev(seeds):.1f}"
    (line,) = [line for line in rows(table(whole)) if line[:4] == ["map AP", "random", "fine-tuned", "10 %"]]
    assert line[8] == shown


CASES = {"whole": plausible(), "one": results([cell("imagenet-camera", [0.1])]), "none": results()}


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_a_report_is_written_at_any_time(given, tmp_path):
    before = copy.deepcopy(given)
    write_report(given, tmp_path / "report")
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        *("details.md", "plot.png", "results.json", "summary.md", "table.md"),
    ]
    assert json.loads((tmp_path / "report/results.json").read_text()) == given == before
    assert (tmp_path / "report/table.md").read_text() == table(given) + "\n"
    picture = imread(tmp_path / "report/plot.png")
    assert picture.shape[1] == 1600
    assert (picture[0] == 1).all()  # white and opaque: it is read in dark mode too


def test_a_report_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        write_report(results(), tmp_path / "file")
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        plot(results(), tmp_path / "plot.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "plot.png"]
