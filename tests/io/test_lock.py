"""One process per output folder, and no lock that outlives its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mim4d.errors import UserError
from mim4d.io.lock import LOCK, locked_folder
from tests.pretrain.runs import arguments, command, environment, metrics

HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from mim4d.io.lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that has locked a folder, and the number of its forked child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_second_process_is_refused_and_told_which_is_the_first(tmp_path):
    first, child = hold(tmp_path / "run")
    with pytest.raises(UserError, match=f"is in use by another process .process {first.pid} on .*another `out`"):
        locked_folder(tmp_path / "run").__enter__()
    first.kill()
    first.wait()
    with locked_folder(tmp_path / "run"):  # although the child that it forked lives on
        os.kill(child, signal.SIGKILL)


def test_a_second_run_of_the_same_process_is_refused_too(tmp_path):
    with locked_folder(tmp_path), pytest.raises(UserError, match="in use by another run in this process"):
        locked_folder(tmp_path / ".").__enter__()
    with locked_folder(tmp_path):
        pass


def test_a_folder_that_nothing_was_written_to_is_not_left(tmp_path):
    with locked_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_where_the_file_system_has_no_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with locked_folder(tmp_path / "run"):
        pass
    assert "without locks (No locks available): make sure that no other process writes there" in caplog.text


def test_of_two_runs_with_one_folder_the_second_is_refused(trial, tiny_world, tmp_path):
    """At whatever moment of its start, or of its steps, the first one is: 0 to 3 seconds apart."""
    out, apart = tmp_path / "run", 3.0 * ((trial + 1) * 0.618 % 1)
    words = arguments(tiny_world, out, "--steps", "12")
    processes = []
    for _ in range(2):
        processes.append(subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE, text=True))
        time.sleep(apart)
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2]
    refused = told[[process.returncode for process in processes].index(2)]
    assert refused.startswith(f"error: {out} is in use by another process (process ")
    assert refused.count("\n") == 1
    assert [row["step"] for row in metrics(out)] == list(range(1, 13))
    assert not (out / LOCK).exists()
