"""What the comparison's tables and plot say of its results."""

import copy
import json
import random
import re
import statistics

import pytest
from matplotlib.image import imread

from benchmarks.evidence.report import details, gain, interval, plot, summarise, summary, table, verdict, write_report
from mim4d.errors import UserError

FIGURES = {"bev-seg": "iou_vehicle", "det3d": "mAP", "hd-map": "map_AP"}


def results(cells=(), unlabelled=()):
    return {
        "mim4d": "0.1.0",
        "size": "cpu",
        "command": "python -m benchmarks.evidence --size cpu",
        "machine": "2 CPU cores",
        "hours": 1.5,
        "protocol": {
            "backbone": "mim4d_convnext_atto",
            "scenes": {"train": 128, "val": 32},
            "pretraining_steps_of_ablations": 250,
            "evaluation_steps": {"10 %": 300},
        },
        "cells": list(cells),
        "unlabelled": list(unlabelled),
    }


def cell(init, values, task="bev-seg", mode="frozen", labels=0.1, figure="iou_vehicle"):
    figures = summarise({seed: {figure: value} for seed, value in enumerate(values)})
    return {"init": init, "task": task, "mode": mode, "labels": labels, "figures": figures}


def plausible(seed=0):
    """A whole comparison, made up: a level for each task and mode, a part of it shared by a seed's cells, and noise."""
    rng = random.Random(seed)
    worth = {"random": 0.0, "pixels": 0.5, "single": 1.0, "mim4d": 1.6}
    worth |= {
        name: 1.6 - rng.random()
        for name in ("whole", "no_colour", "no_depth", "no_warp", "no_time", "mask_0", "frames_4")
    }
    cells = []
    for task, figure in FIGURES.items():
        for mode in ("frozen", "full"):
            level, step = {"bev-seg": (9, 2.5), "det3d": (4, 1.0), "hd-map": (6, 0.6)}[task]
            level, step = (level, step) if mode == "frozen" else (level * 1.6, step * 0.6)
            for labels, factor in ((0.01, 0.5), (0.1, 1.0), (1.0, 1.8)):
                shared = [rng.gauss(0, 0.5) for _ in range(3)]
                for init, gained in worth.items():
                    main = init in ("random", "pixels", "single", "mim4d")
                    if main or labels == 0.1:
                        mean = (level + gained * step) * factor
                        values = [(mean + part + rng.gauss(0, 0.25)) / 100 for part in shared[: 3 if main else 1]]
                        cells.append(cell(init, values, task, mode, labels, figure))
    figures = {"depth_abs_rel": 0.12, "depth_delta": 0.83, "temporal_depth": 2.5, "mean_depth": 3.25, "flow_epe": 4.5}
    return results(cells, [{"init": "mim4d", "figures": summarise({0: figures})}])


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
    # Seeds differ by far more than initialisations do.
    given = results([cell("random", [0.10, 0.30, 0.50]), cell("mim4d", [0.11, 0.33, 0.52, 0.9])])
    got = gain(given, "mim4d", "random", "bev-seg", "frozen", 0.1, "iou_vehicle")
    assert got["mean"] == pytest.approx(0.02)
    assert got["spread"] == pytest.approx(0.01)
    assert got["seeds"] == pytest.approx({"0": 0.01, "1": 0.03, "2": 0.02})


@pytest.mark.parametrize("absent", [{"labels": 1.0}, {"mode": "full"}, {"task": "det3d"}, {"figure": "iou_divider"}])
def test_there_is_no_gain_over_what_was_not_measured(absent):
    asked = {"task": "bev-seg", "mode": "frozen", "labels": 0.1, "figure": "iou_vehicle"}
    given = results([cell("random", [0.1]), cell("mim4d", [0.2])])
    assert gain(given, "mim4d", "random", **asked)["mean"] == pytest.approx(0.1)
    assert gain(given, "mim4d", "random", **(asked | absent)) is None
    assert gain(given, "mim4d", "single", **asked) is None


def test_there_is_no_gain_without_a_common_seed():
    given = results([cell("random", [0.1]), cell("mim4d", [None, 0.2])])
    assert gain(given, "mim4d", "random", "bev-seg", "frozen", 0.1, "iou_vehicle") is None


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
    cells = [cell("random", [0.0] * len(gained)), cell("mim4d", gained)]
    assert rows(table(results(cells)))[2][-1] == shown


def test_the_verdict_counts_scores_that_rise_and_fall():
    random, better, worse = [0.1, 0.2, 0.3], [0.2, 0.301, 0.4], [0.0, 0.101, 0.2]
    cells = [
        *(cell(init, values) for init, values in {"random": random, "single": better, "mim4d": better}.items()),
        *(cell(init, values, "det3d", figure="mAP") for init, values in {"random": random, "mim4d": worse}.items()),
    ]
    assert verdict(results(cells)) == (
        "On held-out synthetic video, MIM4D pretraining is better than random weights in 1 of 2 scores and worse in 1; "
        "it is better than single-frame pretraining in 0 of 1 scores and worse in none, which chance alone explains: "
        "the temporal part shows no gain yet."
    )
    text = summary(results(cells))
    assert "Better than random: vehicle IoU (frozen, 10 % of labels). Worse than random: mAP (frozen, 10 % of" in text
    assert "than single frame: " not in text
    assert verdict(results()) == "Nothing has been measured with enough seeds yet."


def test_the_verdict_says_that_the_temporal_part_gains_only_beyond_chance():
    better = [cell(init, [level, level + 0.1, level + 0.2]) for init, level in (("single", 0.1), ("mim4d", 0.2))]
    more = [
        {**cell, "task": task, "figures": {FIGURES[task]: cell["figures"]["iou_vehicle"]}}
        for cell in better
        for task in FIGURES
    ]
    assert "no gain" in verdict(results(better))  # 1 of 1: an interval excludes 0 by chance too
    assert "no gain" not in verdict(results(more))


def test_the_summary_has_a_row_per_task_and_mode_with_intervals():
    whole = plausible()
    lines = rows(summary(whole))
    assert [line[0] for line in lines[2:]] == [
        f"{score}, {mode}"
        for score in ("vehicle IoU", "detection mAP", "HD-map AP")
        for mode in ("frozen", "fine-tuned")
    ]
    difference = gain(whole, "mim4d", "random", "det3d", "full", 0.1, "mAP")
    low, high = interval(difference)
    assert lines[5][4].strip("*") == f"{100 * difference['mean']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert verdict(whole) in summary(whole)


def test_a_known_fault_is_told_with_the_figures_it_touches():
    assert "BatchNorm" in summary(results())  # made by 0.1.0
    assert "BatchNorm" not in summary(results() | {"mim4d": "0.2.0"})


def test_the_table_has_a_line_for_what_was_measured_and_says_how():
    text = table(results([cell("random", [0.1, 0.2, 0.3]), cell("mim4d", [0.4], "det3d", "full", 1.0, "mAP")]))
    assert rows(text)[0] == [
        *("score", "backbone", "labels", "random", "2D pixels", "single frame", "MIM4D", "MIM4D - random"),
    ]
    assert rows(text)[2:] == [
        ["vehicle IoU", "frozen", "10 %", "20.0 ± 10.0", "–", "–", "–", "–"],  # noqa: RUF001
        ["mAP", "fine-tuned", "100 %", "–", "–", "–", "40.0", "–"],  # noqa: RUF001
    ]
    assert "over 1 seed (3 of random weights);" in text
    assert "`python -m benchmarks.evidence --size cpu`" in text
    assert "scenes: train 128, val 32; pretraining steps of ablations: 250; evaluation steps: 10 % 300." in text


def test_details_show_units_and_leave_out_what_is_not_there():
    figures = {"mATE": 0.876, "mASE": 0.25, "NDS": 0.123}
    cells = [{**cell("random", [], "det3d"), "figures": summarise({0: figures, 1: figures})}]
    text = details(results(cells, [{"init": "mim4d", "figures": summarise({0: {"flow_epe": 2.345}})}]))
    assert row(text, "mATE ↓, m")[:3] == ["frozen", "10 %", "0.88 ± 0.00"]
    assert row(text, "mASE ↓")[:3] == ["frozen", "10 %", "25.0 ± 0.0"]
    assert row(text, "NDS")[:3] == ["frozen", "10 %", "12.3 ± 0.0"]
    assert re.findall("^### (.*)", text, re.MULTILINE) == ["3D detection", "Without labels"]
    assert "2.35" in row(text, "MIM4D")


def test_colour_is_no_score_of_what_was_taught_none():
    figures = summarise({0: {"temporal_rgb": 0.4, "depth_abs_rel": 0.2}})
    text = details(results([], [{"init": init, "figures": figures} for init in ("mim4d", "no_colour")]))
    assert "40.0" in row(text, "MIM4D")
    assert "20.0" in row(text, "no colour loss")
    assert "40.0" not in row(text, "no colour loss")


def test_ablations_are_told_against_the_same_seeds_of_mim4d_pretrained_as_briefly():
    given = results([cell("mim4d", [0.50]), cell("whole", [0.20, 0.90, 0.90]), cell("no_warp", [0.15])])
    text = details(given)
    assert "pretrained for 250 steps" in text
    assert row(text, "no ego-motion warp") == ["1", "-5.0"]
    assert row(text, "ablation") == ["seeds", "vehicle IoU, frozen, 10 %"]


def test_every_table_has_the_columns_of_its_head():
    whole = plausible()
    for text in (write(given) for write in (summary, table, details) for given in (whole, results())):
        for block in text.split("\n\n"):
            if block.startswith("|"):
                lines = rows(block)
                assert {len(line) for line in lines} == {len(lines[0])}
                assert set(lines[1]) == {"---"}
    assert len(rows(table(whole))) == 2 + 3 * 2 * 3  # tasks, modes, shares


def test_the_table_agrees_with_the_results():
    whole = plausible()
    asked = {"init": "single", "task": "hd-map", "mode": "full", "labels": 0.1}
    values = next(cell for cell in whole["cells"] if asked.items() <= cell.items())
    seeds = [100 * value for value in values["figures"]["map_AP"]["seeds"].values()]
    shown = f"{statistics.mean(seeds):.1f} ± {statistics.stdev(seeds):.1f}"
    (line,) = [line for line in rows(table(whole)) if line[:3] == ["map AP", "fine-tuned", "10 %"]]
    assert line[5] == shown


CASES = {"whole": plausible(), "one": results([cell("mim4d", [0.1])]), "none": results()}


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
