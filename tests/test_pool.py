"""Work is shared out among processes; whatever ends it early ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mim4d.errors import UserError
from mim4d.pool import share_out

SCRIPT = """
from pathlib import Path
from mim4d.pool import share_out
from tests.test_pool import work

if __name__ == "__main__":
    share_out(work, [(Path({folder!r}), number, 60.0) for number in range(6)], 2, lambda task, future: None)
"""


def work(folder: Path, number: int, seconds: float) -> int:
    """Leave a file that says which process this is, take some time, leave another."""
    (folder / f"begun-{number}").write_text(str(os.getpid()))
    time.sleep(seconds)
    (folder / f"done-{number}").touch()
    return number**2


def die(folder: Path, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(folder: Path, number: int) -> None:
    (folder / f"begun-{number}").touch()
    raise ValueError(f"task {number}")


def test_every_task_is_done_and_told(tmp_path: Path):
    told = {}
    share_out(work, [(tmp_path, n, 0.0) for n in range(7)], 2, lambda *ended: told.update([ended]))
    assert {task[1]: future.result() for task, future in told.items()} == {n: n**2 for n in range(7)}


def test_what_goes_wrong_is_the_callers_to_judge(tmp_path: Path):
    told = []
    share_out(fail, [(tmp_path, n) for n in range(3)], 2, lambda task, future: told.append(str(future.exception())))
    assert sorted(told) == ["task 0", "task 1", "task 2"]


def test_a_caller_that_gives_up_begins_no_more(tmp_path: Path):
    with pytest.raises(ValueError, match="task"):
        share_out(fail, [(tmp_path, n) for n in range(9)], 2, lambda task, future: future.result())
    assert len(list(tmp_path.glob("begun-*"))) <= 4  # two, and two that took their places


def test_a_killed_process_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="a process was killed, perhaps for want of memory: run the same again"):
        share_out(die, [(tmp_path, n) for n in range(3)], 2, lambda task, future: None)


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_a_signal_ends_all(tmp_path: Path, number: signal.Signals, to_group: bool):
    """Ctrl-C goes to all processes of a terminal, ``kill`` to one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    root = Path(__file__).parents[1]
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
    (os.killpg if to_group else os.kill)(process.pid, number)
    process.communicate(timeout=50)  # less than a task takes
    assert process.returncode in (143, -signal.SIGINT)
    assert len(list(tmp_path.glob("begun-*"))) == 2
    assert not list(tmp_path.glob("done-*"))
    for path in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
