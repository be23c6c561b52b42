"""Tasks run in worker processes; whatever ends the caller ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mim4d.errors import UserError
from mim4d.io.pool import Task, run_in_processes
from mim4d.pretrain.processes import StopSignal

SCRIPT = """
from pathlib import Path
from mim4d.io.pool import run_in_processes
from tests.io.test_pool import save

if __name__ == "__main__":
    run_in_processes(save, [(Path({folder!r}), number, 60.0) for number in range(6)], 2, lambda task, error: None)
"""


def work(folder: Path, number: int, seconds: float) -> None:
    """Leave a file that says which process this is, take some time, leave another."""
    (folder / f"begun-{number}").write_text(str(os.getpid()))
    time.sleep(seconds)
    (folder / f"done-{number}").touch()


def save(folder: Path, number: int, seconds: float) -> None:
    """As a training does: asked to stop, it saves what it has, which takes a moment."""
    if number % 2:
        work(folder, number, seconds)
    with StopSignal() as stop:
        (folder / f"begun-{number}").write_text(str(os.getpid()))
        while not stop.received:
            time.sleep(0.05)
        time.sleep(2.0)
        (folder / f"saved-{number}").touch()


def die(folder: Path, number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


class OddError(Exception):
    """Cannot be made of what its message is."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{what} {number}")


def fail(folder: Path, number: int) -> None:
    (folder / f"begun-{number}").touch()
    raise OddError(number, "task")


def test_every_task_is_done_and_told(tmp_path: Path):
    told = {}
    run_in_processes(work, [(tmp_path, n, 0.0) for n in range(4)], 2, lambda task, error: told.update({task[1]: error}))
    assert told == dict.fromkeys(range(4))
    assert len(list(tmp_path.glob("done-*"))) == 4


def test_what_goes_wrong_is_the_callers_to_judge(tmp_path: Path):
    told = []
    run_in_processes(fail, [(tmp_path, n) for n in range(2)], 2, lambda task, error: told.append(str(error)))
    assert sorted(told) == ["OddError: task 0", "OddError: task 1"]


def test_a_caller_that_gives_up_begins_no_more(tmp_path: Path):
    def judge(task: Task, error: Exception | None) -> None:
        assert error is not None
        raise error

    with pytest.raises(RuntimeError, match="task"):
        run_in_processes(fail, [(tmp_path, n) for n in range(9)], 2, judge)
    assert len(list(tmp_path.glob("begun-*"))) <= 4  # two, and two that took their places


def test_a_killed_process_is_told_and_the_others_go_on(tmp_path: Path):
    told = {}
    run_in_processes(die, [(tmp_path, n) for n in range(3)], 2, lambda task, error: told.update({task[1]: error}))
    assert (told[0], told[2]) == (None, None)
    assert isinstance(told[1], UserError)
    assert str(told[1]) == "a worker process was killed by signal 9, perhaps because memory ran out"


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_a_signal_ends_all(tmp_path: Path, number: signal.Signals, to_group: bool):
    """Ctrl-C goes to all processes of a terminal, ``kill`` to one."""
    process = started(tmp_path)
    (os.killpg if to_group else os.kill)(process.pid, number)
    process.communicate(timeout=50)  # less than a task takes
    assert process.returncode in (143, -signal.SIGINT)
    assert len(list(tmp_path.glob("begun-*"))) == 2
    assert [path.name for path in tmp_path.glob("saved-*")] == ["saved-0"]  # however task 1 ended
    assert not list(tmp_path.glob("done-*"))
    for path in tmp_path.glob("begun-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_workers_of_a_killed_caller_end_too(tmp_path: Path):
    process = started(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=50)  # returns when the last of them has closed stderr, less than a task takes
    assert [path.name for path in tmp_path.glob("saved-*")] == ["saved-0"]
    assert not list(tmp_path.glob("done-*"))


def started(tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A program that runs six tasks of a minute, once two are at work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # where the tests' is ignored
    )
    begun: list[Path] = []
    while len(begun) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        begun = [path for path in tmp_path.glob("begun-*") if path.read_text()]
    return process
