"""Fresh processes that start fast: a process that has imported torch forks for each piece of code.

The Hub's client, timm and this package read the environment when they are imported, so each fork imports them anew.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Fresh:
    """Runs code in processes of their own, each with the environment that it is given."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        """Start the process that forks; ``folder`` takes what the others print."""
        self._out, self._err = folder / "out", folder / "err"
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *argv: str, environment: dict[str, str]) -> tuple[int, str, str]:
        """What ``python -c CODE ARGV`` would give: exit code, output, errors."""
        order = [code, argv, environment, str(self._out), str(self._err)]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline()), self._out.read_text(), self._err.read_text()

    def close(self) -> None:
        """End the process that forks."""
        self._process.communicate(timeout=60)


def run_here(code: str, argv: list[str], environment: dict[str, str], out: str, err: str) -> int:
    """Run code in this process; return its exit code."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["-c", *argv]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Fork for each line of standard input, and print the exit code."""
    import safetensors.torch
    import torchvision  # with torch; timm imports both, and they read nothing of the Hub's

    assert safetensors.torch
    assert torchvision
    assert not {"huggingface_hub", "timm", "mim4d"} & sys.modules.keys()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = run_here(*json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # as with -c in the repository; this folder would hide packages
    serve()
