"""Logs on a disk that is full, and after a crash."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim4d.errors import UserError
from mim4d.pretrain.logs import RunLog, read_metrics


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def open_log(folder: Path) -> RunLog:
    return RunLog(folder, steps=2, start=0, main=True)


def log_a_row(log: RunLog) -> None:
    with log:
        log.row({"step": 1, "loss": 1.0})


def fail(log: RunLog) -> None:
    with log:
        raise UserError("loss is nan")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_metrics_that_cannot_be_written_are_named_although_closing_fails_too(tmp_path):
    log = open_log(tmp_path)
    log._metrics._file = Path("/dev/full").open("a")  # noqa: SIM115  # the log closes it
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: .*No space left"):
        log_a_row(log)


def test_metrics_that_cannot_be_begun_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: .*No space left"):
        open_log(tmp_path)


def test_a_board_that_cannot_be_begun_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mim4d.pretrain.logs.SummaryWriter", full)
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: .*No space left"):
        open_log(tmp_path)


@pytest.mark.parametrize("what", ["add_scalar", "close"])
def test_a_board_that_cannot_be_written_is_named(what, tmp_path, monkeypatch):
    log = open_log(tmp_path)
    monkeypatch.setattr(log._board, what, full)
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: .*No space left"):
        log_a_row(log)


def test_a_board_that_cannot_be_closed_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    monkeypatch.setattr(log._board, "close", full)
    with pytest.raises(UserError, match="loss is nan"):
        fail(log)


ROWS = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
LINES = [json.dumps(row).encode() for row in ROWS]


@pytest.mark.parametrize(
    ("content", "kept", "damaged"),
    [
        ([*LINES, b""], (1, 2, 3), 0),
        ([*LINES, b'{"step": 4, "lo'], (1, 2, 3), 0),  # a kill in mid-write
        ([LINES[0], b"\0" * 64, LINES[2], b""], (1, 3), 1),
        ([LINES[0] + b"\0\0", LINES[1], b"", b"  ", LINES[2], b""], (2, 3), 3),
        ([LINES[0], LINES[1][:9], LINES[2], b""], (1, 3), 1),
        (
            [b"\xff\xfe", b"[]", b"3", b'{"loss": 1}', b'{"step": "1"}', b'{"step": null}', *LINES, b""],
            (1, 2, 3),
            6,
        ),
        ([LINES[0], LINES[2], LINES[1], LINES[2], b""], (1, 3), 2),
        ([b"\0" * 64], (), 0),
    ],
)
def test_damaged_lines_of_metrics_are_left_out_and_counted(content, kept, damaged, tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join(content))
    with RunLog(tmp_path, steps=9, start=3, main=True) as log:
        log.row({"step": 4, "loss": 0.1})
    assert [row["step"] for row in read_metrics(file)] == [*kept, 4]
    told = capsys.readouterr().err
    assert (f"warning: {damaged} damaged lines of {file} are ignored" in told) == (damaged > 0)


@pytest.mark.parametrize("start", [0, 2])
def test_tensorboard_shows_a_step_once_after_a_kill(start, tmp_path):
    """Before the first checkpoint, too: the run starts anew from step 0 then."""
    for first in (0, start):
        with RunLog(tmp_path, steps=4, start=first, main=True) as log:
            for step in range(first + 1, 5):
                log.row({"step": step, "loss": float(step)})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(s, float(s)) for s in (1, 2, 3, 4)]


def test_rows_hold_no_nan_and_no_infinity_wherever_a_value_is_from(tmp_path):
    """Of an evaluation or the encoder's gradients too: JSON has neither, and strict readers refuse the whole line."""
    with open_log(tmp_path) as log:
        log.row({"step": 1, "loss": 1.0, "val_direct_depth": math.inf, "grad_encoder_direct_rgb": math.nan})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": 1.0}


def test_what_was_not_measured_is_not_shown(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.row({"step": 1, "loss": 0.0, "rays": 0.0, "frames": 2.0, "clips_per_s": 1.0})
        log.row({"step": 2, "loss": 1.0, "rays": 1.0, "direct_rgb": 0.25, "grad_encoder_direct_rgb": 3.0})
        log.row({"step": 3, "loss": 1.0, "rays": 1.0, "direct_rgb": 0.25, "direct_depth": 2.0, "val_mean_depth": 4.0})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert "no ray to compare with, 1.0 clips/s" in lines[0]
    assert "loss 1.000, direct rgb 0.250, " in lines[1]
    assert "held out: mean depth 4.00 m" in lines[2]
    assert not any("depth 0" in line or "rgb 3" in line for line in lines)
