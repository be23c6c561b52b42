"""Progress: an estimate that does not jump, lines that fit their terminal."""

import io
import itertools
import random
import re

import pytest
from rich.console import Console

from mim4d.io.progress import Bar, TimeLeft, duration
from mim4d.pretrain.logs import RunLog, speed


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", [0, 1])
def test_the_time_left_is_steady_where_two_processes_draw_scenes(seed):
    """Six frames per scene, 5 s each, more for the first: two processes end together and then both build a scene."""
    draw = random.Random(seed)
    ends = sorted(
        end
        for worker in range(2)
        for end in itertools.accumulate(draw.uniform(4, 6) + 8 * (n % 6 == 0) for n in range(96))
    )
    clock = Clock()
    left = TimeLeft(clock)
    left.update(0, len(ends))
    for done, end in enumerate(ends, 1):
        clock.now = 100 + end
        left.update(done, len(ends))
        if done > len(ends) // 10:
            assert left.seconds() == pytest.approx(ends[-1] - end, rel=0.2, abs=15)


def test_what_was_done_before_does_not_count_as_speed():
    clock = Clock()
    left = TimeLeft(clock)
    left.update(90, 100)
    assert left.seconds() is None
    clock.now += 10
    left.update(91, 100)
    assert left.seconds() == pytest.approx(90)
    clock.now += 4
    assert left.seconds() == pytest.approx(86)


def test_lines_where_there_is_no_terminal():
    clock = Clock()
    text = io.StringIO()
    with Bar(Console(file=text), "step", start=0, total=50, every=5, clock=clock) as bar:
        for step in range(1, 51):
            clock.now += 1
            bar.update(step, 50, f"loss {step}")
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["step 1/50  loss 1, 49 s left", "step 6/50  loss 6, 44 s left"]
    assert lines[-1].startswith("step 50/50  loss 50")
    assert len(lines) == 11


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_whole_words_and_one_bar_above_the_end(width, tmp_path, monkeypatch):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None, highlight=False)
    monkeypatch.setattr("mim4d.pretrain.logs.Console", lambda **_: console)
    values = {f"{kind}_{what}": 0.125 for kind in ("direct", "temporal", "zero", "mean") for what in ("rgb", "depth")}
    with RunLog(tmp_path, steps=1, start=0, main=True) as log:
        log.row({"step": 1, "loss": 1.5, "clips_per_s": 0.04, **values, **{f"val_{n}": v for n, v in values.items()}})
        log.end()
        log.say("done: " + "x" * 150, to_copy=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").splitlines()
    held_out = " ".join(shown).partition("held out: ")[2]
    assert held_out.startswith("direct rgb 0.125 depth 0.12 m, temporal rgb 0.125 depth")
    assert all(len(line) <= width for line in shown if "x" * 150 not in line)
    bars = [number for number, line in enumerate(shown) if "1/1" in line and "25.0 s/clip" in line]
    assert bars
    assert max(bars) < next(number for number, line in enumerate(shown) if "x" * 150 in line)
    assert not any("━" in line for line in shown[shown.index("done: " + "x" * 150) :])


def test_times_and_speeds_have_a_unit_that_fits():
    assert [duration(s) for s in (3, 89, 100, 5000, 9000)] == ["3 s", "89 s", "2 min", "83 min", "2.5 h"]
    assert [speed(s) for s in (12.34, 1.0, 0.04)] == ["12.3 clips/s", "1.0 clips/s", "25.0 s/clip"]
