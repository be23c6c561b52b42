"""Logs on a disk that is full: one message, of what failed first."""

from pathlib import Path

import pytest

from mim4d.errors import UserError
from mim4d.pretrain.logs import RunLog


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
