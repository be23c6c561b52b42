"""Stopped and gone on with is never stopped."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from mim4d.errors import UserError
from mim4d.io.tensors import read_tensors
from mim4d.pretrain.checkpoint import list_checkpoints
from mim4d.pretrain.cli import main, parse
from mim4d.pretrain.trainer import train
from tests.data.roots import edit_table
from tests.pretrain.runs import arguments, command, environment, losses, metrics, older, run, tiny

AVERAGED = ("--optim.accumulate", "2", "--optim.ema-decay", "0.9")
# Everything that could break the sequence: stochastic depth, accumulation, a moving average, rows that fall between
# checkpoints, evaluations.
HARD = ("--steps", "16", "--save-every", "4", "--eval-every", "5", *AVERAGED)

LATE = ("--log-every", "20", "--save-every", "20")


def start_and_signal(args: list[str], out: Path, at_step: int, number: signal.Signals) -> subprocess.Popen[str]:
    """Start a run and send it a signal once it has logged a step."""
    process = subprocess.Popen(command(*args), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < at_step:
        assert process.poll() is None, f"ended before step {at_step}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(*arguments(root, out, *HARD)).returncode == 0
    return out


def test_after_kill_9_the_losses_go_on_bit_for_bit(root, uninterrupted, tmp_path):
    out = tmp_path / "run"
    killed = start_and_signal(arguments(root, out, *HARD), out, at_step=9, number=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "encoder").exists(), "it was over before it was killed"
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "los')  # as a kill in mid-write leaves it
    resumed = run("--resume", "--out", str(out))
    assert resumed.returncode == 0, resumed.stderr
    assert any(f"checkpoint of step {step}" in resumed.stderr for step in (8, 12))
    assert losses(out) == losses(uninterrupted)
    assert [row["step"] for row in losses(out)] == list(range(1, 17))
    for file in ("encoder/model.safetensors", "encoder/config.json"):
        assert (out / file).read_bytes() == (uninterrupted / file).read_bytes()


def test_sigterm_saves_first_and_loses_nothing(root, uninterrupted, tmp_path):
    out = tmp_path / "run"
    stopped = start_and_signal(arguments(root, out, *HARD), out, at_step=3, number=signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM
    newest = list_checkpoints(out / "checkpoints")[-1]
    assert metrics(out)[-1]["step"] == json.loads((newest / "state.json").read_text())["step"]
    assert "; resume with --resume --out" in (out / "report.html").read_text()
    resumed = run("--resume", "--out", str(out))
    assert resumed.returncode == 0, resumed.stderr
    assert losses(out) == losses(uninterrupted)


def test_time_goes_on_too(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "2"))
    before = metrics(out)[-1]["seconds"]
    train(parse(["--resume", "--out", str(out), "--steps", "4"])[0], resume=True)
    assert [row["seconds"] > before for row in metrics(out)] == [False, False, True, True]


def test_killed_before_its_first_checkpoint_it_starts_anew(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out))
    for checkpoint in list_checkpoints(out / "checkpoints"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    first = losses(out)
    main(["--resume", "--out", str(out)])
    assert losses(out) == first


def test_a_finished_run_has_nothing_left_but_its_export(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out))
    before = losses(out)
    (out / "encoder" / "config.json").unlink()
    main(["--resume", "--out", str(out)])
    assert losses(out) == before
    assert (out / "encoder" / "config.json").exists()
    with pytest.raises(UserError, match="has already reached step 4: raise --steps 3"):
        train(parse(["--resume", "--out", str(out), "--steps", "3"])[0], resume=True)


def test_the_saved_config_is_the_runs_own(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "2", "--seed", "3"))
    config, resume = parse(["--resume", "--out", str(out), "--steps", "3"])
    assert resume
    assert (config.seed, config.steps, config.split) == (3, 3, "mini_train")
    train(config, resume=True)
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "mim4d_convnext_femto"], "--model mim4d_convnext_atto, not mim4d_convnext_femto"),
        (["--frames", "3"], "--frames 2, not 3"),
        (["--method.neck.channels", "32"], "--method.neck.channels 16, not 32"),
        (["--preset", "demo"], "--preset gpu24, not demo"),
        (["--batch-size", "2"], "clips_per_step was 1, now it is 2"),
    ],
)
def test_a_run_is_not_gone_on_with_as_another(flags, message, root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    saved = (out / "config.yaml").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--resume", "--out", str(out), "--steps", "2", *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (out / "config.yaml").read_bytes() == saved


def test_a_run_goes_on_where_its_data_lies_now_but_not_on_other_data(root, tmp_path, capsys, fresh_accelerate):
    out, moved = tmp_path / "run", shutil.copytree(root, tmp_path / "moved")
    train(tiny(root, out, "--steps", "1"))
    main(["--resume", "--out", str(out), "--steps", "2", "--dataroot", str(moved)])
    edit_table(moved, "sample_data", lambda rows: [row | {"timestamp": row["timestamp"] + 1} for row in rows])
    with pytest.raises(SystemExit) as stop:
        main(["--resume", "--out", str(out), "--steps", "3"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "clips was " in error
    assert "the scenes or times of its data differ from those of --dataroot and --tolerance" in error
    assert len(losses(out)) == 2


def test_a_checkpoint_that_does_not_know_its_data_is_gone_on_with(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    file = older(list_checkpoints(out / "checkpoints")[-1]) / "state.json"
    state = json.loads(file.read_text())
    del state["identity"]["clips"]
    file.write_text(json.dumps(state))
    main(["--resume", "--out", str(out), "--steps", "2"])
    assert len(losses(out)) == 2


def test_a_file_may_name_what_differs_too(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    (tmp_path / "other.yaml").write_text("model: mim4d_convnext_femto\n")
    config, _ = parse(["--resume", "--out", str(out), "--config", str(tmp_path / "other.yaml")])
    with pytest.raises(UserError, match="--model mim4d_convnext_atto, not mim4d_convnext_femto"):
        train(config, resume=True)


def test_a_card_that_stands_with_the_encoder_stays(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    (out / "encoder" / "README.md").write_text("Mine.")
    train(tiny(root, out, "--steps", "2"), resume=True)
    assert (out / "encoder" / "README.md").read_text() == "Mine."
    assert json.loads((out / "encoder" / "config.json").read_text())["mim4d"]["steps"] == 2


def test_there_must_be_a_run_to_go_on_with(tmp_path):
    with pytest.raises(UserError, match=r"has no config.yaml, so there is nothing to resume"):
        parse(["--resume", "--out", str(tmp_path)])


def test_the_same_line_with_resume_finds_its_run(root, tmp_path, monkeypatch, fresh_accelerate):
    """Wherever the folder's name came from: the file, or the defaults."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.yaml").write_text("out: runs/mine\n")
    for flags, out in ((("--config", "mine.yaml"), "runs/mine"), ((), "runs/pretrain")):
        train(tiny(root, tmp_path / out, "--steps", "1"))
        config, resume = parse([*flags, "--resume"])
        assert resume
        assert (config.out, config.steps) == (out, 1)


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "2"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--resume", "--out", str(out), "--steps", "20", *LATE, "--optim.lr", "1e30"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(("error: loss is nan at step ", "error: grad_norm is "))
    assert "clips scene-0061@" in error
    assert "the last good checkpoint is" in error
    for checkpoint in list_checkpoints(out / "checkpoints"):
        for file in checkpoint.glob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in read_tensors(file).values()), file
    assert all(row["loss"] == row["loss"] for row in metrics(out))


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(root, tmp_path, capsys, fresh_accelerate):
    """The loss of the last step is finite; the step that follows it breaks the weights."""
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    before = {path: path.read_bytes() for folder in ("checkpoints", "encoder") for path in (out / folder).rglob("*.*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--resume", "--out", str(out), "--steps", "2", "--optim.lr", "1e42"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the weight encoder.stem.0.")
    assert (
        f"not finite after step 2: lower --optim.lr; the last good checkpoint is {out}/checkpoints/step_00000001"
        in error
    )
    assert [row["step"] for row in metrics(out)] == [1]
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step_00000001"]


def test_a_checkpoint_of_weights_that_are_not_finite_is_refused(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, "--steps", "1"))
    file = older(list_checkpoints(out / "checkpoints")[-1]) / "model.safetensors"
    tensors = read_tensors(file)
    tensors["neck.output.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"weight neck.output.0.weight is not finite in .*step_00000001; remove it"):
        train(parse(["--resume", "--out", str(out), "--steps", "2"])[0], resume=True)
