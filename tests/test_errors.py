"""What a machine runs out of, in one line and with exit code 2."""

import errno
import os

import pytest
import torch

from mim4d.errors import UserError, shortage
from mim4d.flags import report_user_errors

MESSAGES = [
    (MemoryError(), "out of memory on the CPU: lower --batch-size"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory on the GPU: lower"),
    (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "on the GPU: lower"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory on the CPU: lower"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg"), "too many open files: raise the limit (ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "too many open files"),
    (
        RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"),
        "ulimit",
    ),
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: Success (0)"), "out of shared memory"),
    (RuntimeError("unable to write to file </torch_9>: No space left on device (28)"), "--shm-size"),
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
        "the data-loading workers are out of shared memory: lower --workers",
    ),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a data-loading worker was killed"),
    (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), "a data-loading worker was killed"),
    (RuntimeError("[gloo/transport/tcp/pair.cc:535] Connection closed by peer [::1]:4"), "another process of this run"),
    (RuntimeError("Could not determine home directory."), "no home folder: set MIM4D_CACHE"),
    (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a: No space left on device"),
]


@pytest.mark.parametrize(("error", "line"), MESSAGES, ids=[str(error)[:40] or "memory" for error, _ in MESSAGES])
def test_what_a_machine_runs_out_of_is_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as stop, report_user_errors("lower --batch-size"):
        raise error
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert line in told
    assert told.count("\n") == 1


def test_torchs_own_words_for_too_little_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "out of memory on the CPU" in (shortage(caught.value) or "")


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="size mismatch"), report_user_errors():
        raise RuntimeError("size mismatch")
    with pytest.raises(KeyError), report_user_errors():
        raise KeyError("memory")
    assert shortage(UserError("out of memory")) is None
