"""Several processes learn what one learns with their batches joined."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from mim4d.io.tensors import read_tensors
from mim4d.pretrain.checkpoint import list_checkpoints
from mim4d.pretrain.trainer import train
from tests.pretrain.runs import arguments, command, environment, losses, run, tiny

# Stochastic depth draws for the batch it sees, so it alone depends on how clips are dealt out.
SAME = ("--steps", "4", "--method.drop-path", "0", "--eval-every", "4", "--optim.lr", "1e-4")
TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(*arguments(root, out, *SAME, "--batch-size", "2")).returncode == 0
    return losses(out)


def close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    """The same to rounding: exact at first, then less so, as importance sampling and Adam magnify the last digits.

    Norms of gradients have a digit less than losses: the same sums in another order moved one by 1.8e-5.
    """
    assert len(one) == len(other) == 4
    for here, there, tolerance in zip(one, other, (1e-5, 1e-4, 1e-3, 1e-2), strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            wide = max(tolerance, 1e-4) if name.startswith("grad_") else tolerance
            assert value == pytest.approx(there[name], rel=wide), name


def test_two_processes_learn_what_one_learns_with_twice_the_batch(root, tmp_path, alone):
    out = tmp_path / "run"
    two = run(*arguments(root, out, *SAME, "--batch-size", "1"), launcher=TWO)
    assert two.returncode == 0, two.stderr
    assert "2 x cpu" in two.stderr
    close(losses(out), alone)
    assert two.stderr.count("use it:") == 1
    assert "Warning" not in two.stderr


def test_so_they_do_with_the_running_statistics_of_a_resnet(root, tmp_path, fresh_accelerate):
    flags = ("--model", "mim4d_resnet18", "--steps", "2", "--method.drop-path", "0", "--optim.lr", "1e-4")
    two = run(*arguments(root, tmp_path / "two", *flags, "--batch-size", "1"), launcher=TWO)
    assert two.returncode == 0, two.stderr
    train(tiny(root, tmp_path / "one", *flags, "--batch-size", "2"))
    together, alone = (
        read_tensors(list_checkpoints(tmp_path / name / "checkpoints")[-1] / "model.safetensors")
        for name in ("two", "one")
    )
    running = [name for name in alone if "running" in name]
    assert len(running) == 40
    for name in running:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=1e-5, msg=name)


def test_so_does_one_that_accumulates(root, tmp_path, alone, fresh_accelerate):
    out = tmp_path / "run"
    train(tiny(root, out, *SAME, "--optim.accumulate", "2"))
    close(losses(out), alone)


def test_an_error_of_the_main_process_ends_all(root, tmp_path):
    out = tmp_path / "run"
    out.write_text("a file where the folder should be")
    failed = run(*arguments(root, out), launcher=TWO)
    assert failed.returncode != 0
    assert failed.stderr.count("error: cannot write to the folder") == 1


def test_a_loss_that_is_not_finite_is_printed_once(root, tmp_path):
    out = tmp_path / "run"
    broken = ("--steps", "20", "--optim.lr", "1e30", "--optim.clip-norm", "1e30", "--optim.warmup-steps", "0")
    failed = run(*arguments(root, out, *broken, "--log-every", "20", "--save-every", "20"), launcher=TWO)
    assert failed.returncode != 0
    (error,) = [line for line in failed.stderr.splitlines() if "error: " in line]
    assert error.startswith(("error: loss is nan at step ", "error: grad_norm is "))
    assert error.count("scene-") == 2  # the clips of both processes
    assert "failed (exitcode: 2)" in failed.stderr  # of whichever process ended first
    assert "stopped" in (out / "report.html").read_text()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigterm_to_the_launcher_and_its_processes_at_once_leaves_a_checkpoint(trial, root, tmp_path):
    """As Slurm does; the launcher sends it to its processes a second time. No row is due for a long time."""
    out = tmp_path / "run"
    rare = ("--steps", "100000", "--log-every", "100000", "--save-every", "100000")
    launcher = subprocess.Popen(
        command(*arguments(root, out, *rare), launcher=TWO), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():  # of the first step
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.4 * trial)
    for pid in (*children(launcher.pid), launcher.pid):
        os.kill(pid, signal.SIGTERM)
    told = launcher.communicate(timeout=60)[1]
    (checkpoint,) = list_checkpoints(out / "checkpoints")
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert f"stopped after step {step}; resume with --resume" in told
