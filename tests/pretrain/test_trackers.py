"""``--log-with``: W&B and MLflow, offline; each run is opened again and its figures are read back."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate import PartialState

from mim4d.errors import UserError
from mim4d.pretrain import trackers
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.logs import RunLog
from mim4d.pretrain.trackers import Tracker
from mim4d.pretrain.trainer import train
from tests.pretrain.runs import metrics, tiny

ROWS = [{"step": step, "loss": 1.0 / step, "val_mean_depth": 2.0 * step} for step in (1, 2, 3)]


class Remote:
    """A tracker of accelerate's whose server can be down; it holds what arrived."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.ended: list[object] = []
        self.down = False
        self.run = SimpleNamespace(id="abc", finish=lambda exit_code: self.ended.append(exit_code))

    @property
    def tracker(self) -> SimpleNamespace:
        return self.run

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        if self.down:
            raise ConnectionError("no route to host\nand a page of details")
        assert values
        self.rows.append(step)

    def finish(self) -> None:
        self.ended.append("finished")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    there = Remote()
    monkeypatch.setattr(trackers, "_start", lambda name, folder, run: there)
    return there


def open_log(folder: Path, start: int = 0) -> RunLog:
    return RunLog(folder, steps=9, start=start, main=True, trackers=[Tracker("wandb", folder, {"steps": 9})])


def write(log: RunLog, rows: list[dict[str, float]]) -> None:
    with log:
        for row in rows:
            log.row(row)


def test_a_run_killed_after_its_checkpoint_sends_no_step_twice(remote, tmp_path):
    log = open_log(tmp_path)
    for row in ROWS:  # and no end: killed
        log.row(row)
    write(open_log(tmp_path, start=1), [*ROWS[1:], {"step": 4, "loss": 0.1}])
    assert remote.rows == [1, 2, 3, 4]
    assert remote.ended == ["finished"]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "abc", "step": 4}


def test_a_tracker_added_on_resume_gets_the_steps_before(remote, tmp_path):
    write(RunLog(tmp_path, steps=9, start=0, main=True), ROWS)
    write(open_log(tmp_path, start=2), ROWS[2:])
    assert remote.rows == [1, 2, 3]


def test_a_server_that_fails_does_not_stop_the_run_and_gets_the_steps_later(remote, tmp_path, caplog):
    remote.down = True
    with caplog.at_level(logging.WARNING), open_log(tmp_path) as log:
        log.row(ROWS[0])
        log.row(ROWS[1])
        remote.down = False
    assert remote.rows == [1, 2]
    (line,) = [record.message for record in caplog.records]  # one try, not one per step
    assert line == "warning: wandb: no route to host; 1 logged steps wait, to be sent later or by --resume"


def test_a_server_that_stays_down_gets_the_steps_by_resume(remote, tmp_path):
    remote.down = True
    write(open_log(tmp_path), ROWS)
    remote.down = False
    write(open_log(tmp_path, start=3), [])
    assert remote.rows == [1, 2, 3]


def test_a_run_that_fails_is_marked_so(remote, tmp_path):
    with pytest.raises(UserError, match="loss is nan"), open_log(tmp_path):
        raise UserError("loss is nan")
    assert remote.ended == [1]


def test_a_tracker_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    def start(name: str, folder: Path, run: str | None) -> Remote:
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login()")

    monkeypatch.setattr(trackers, "_start", start)
    with pytest.raises(UserError, match=r"^`log_with` wandb: api_key not configured \(no-tty\)$"):
        open_log(tmp_path)
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(UserError, match=r"wandb.json is damaged: remove it"):
        open_log(tmp_path)


@pytest.mark.parametrize("value", ["tensorbord", "wandb,", ",", "wandb,neptune"])
def test_names_of_trackers_are_checked(value):
    if value == "wandb,":
        assert PretrainConfig(log_with=value).trackers == ["wandb"]
    else:
        with pytest.raises(ValueError, match=r"^log_with = .* must be one or more of tensorboard, wandb, mlflow"):
            PretrainConfig(log_with=value)


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(UserError, match=r"^`log_with` mlflow needs the package mlflow: pip install 'mim4d\[mlflow\]'$"):
        train(PretrainConfig(log_with="wandb,mlflow", dataroot="nowhere", out=str(tmp_path)))


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind W&B's 7 bytes: blocks of 32 KiB with parts of records."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(folder: Path) -> tuple[list[str], dict[int, dict[str, float]], list[int]]:
    """Runs, rows by step and exit codes in the files of offline runs, oldest first."""
    from wandb.proto import wandb_internal_pb2

    names, rows, ends = [], {}, []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                names.append(record.run.run_id)
            if record.HasField("exit"):
                ends.append(record.exit.exit_code)
            if record.HasField("history"):
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                assert row["_step"] not in rows
                rows[row["_step"]] = row
    return names, rows, ends


@pytest.mark.usefixtures("fresh_accelerate")
def test_wandb_offline_holds_the_rows_of_a_run_and_of_its_resume(root, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'mim4d[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    flags = ("--log-with", "wandb", "--picture-every", "2", "--save-every", "1", "--eval-every", "2")
    train(tiny(root, out, *flags, "--steps", "2", "--eval-clips", "1"))
    train(tiny(root, out, *flags, "--steps", "3", "--eval-clips", "1"), resume=True)
    names, rows, ends = read_wandb(out)
    assert len(names) >= 2
    assert set(names) == {json.loads((out / "wandb.json").read_text())["id"]}
    assert ends == [0, 0]
    for row in metrics(out):
        assert rows[row["step"]]["train/loss"] == pytest.approx(row["loss"], abs=0)
    assert rows[2]["held_out/mean_depth"] > 0
    assert rows[2]["held_out._type"] == "images/separated"
    assert not (out / "tensorboard").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_mlflow_store_holds_the_rows_of_a_run_and_of_its_resume(root, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install 'mim4d[mlflow]')")
    whole = importlib.util.find_spec("alembic") is not None  # mlflow-skinny has no database
    store = f"sqlite:///{tmp_path / 'mlflow.db'}" if whole else (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    flags = ("--log-with", "mlflow,tensorboard", "--picture-every", "2", "--save-every", "1")
    train(tiny(root, out, *flags, "--steps", "2"))
    train(tiny(root, out, *flags, "--steps", "3"), resume=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.run_id == json.loads((out / "mlflow.json").read_text())["id"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["method.neck.channels"] == "16"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in metrics(out)]
    assert [Path(a.path).name for a in mlflow.MlflowClient().list_artifacts(run.info.run_id, "pictures")] == [
        "step_00000002.png",
        "step_00000003.png",
    ]
    assert (out / "tensorboard").exists()
    assert yaml.safe_load((out / "config.yaml").read_text())["log_with"] == "mlflow,tensorboard"


@pytest.fixture(autouse=True)
def state() -> None:
    """Accelerate's trackers need its state."""
    PartialState()
