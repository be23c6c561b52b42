"""Whatever is in a folder, it is read, or refused in one line: no traceback, no hang, nothing written elsewhere."""

import shutil
import time

import pytest

from mim4d.data import NuScenesClips
from mim4d.data.cli import main
from mim4d.errors import UserError
from tests.data.roots import write_root
from tests.data.test_nuscenes import config_of
from tests.fuzz.roots import mutate

LONGEST = 30.0
"""Seconds that one root may take, on a busy machine."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("base") / "root", samples=3)


def outcome(command, capsys) -> str:
    """What a command printed; it may end with 0, 1 or 2."""
    code = 0
    try:
        command()
    except SystemExit as error:
        code = error.code
    assert code in (0, 1, 2), code
    out, err = capsys.readouterr()
    if code == 2:
        assert "error: " in err or "Error" in err, err
        assert err.count("\nerror: ") <= 1, err
    assert "Traceback" not in out + err
    assert all(line.isprintable() for line in (out + err).splitlines()), out + err
    return out + err


def test_any_root_is_read_or_refused(base, tmp_path, capsys, fuzz_size):
    kinds = {"clean": 0, "faults": 0, "read": 0, "refused": 0}
    for seed in range(fuzz_size):
        home = tmp_path / "case"
        home.mkdir()
        root = home / "root"
        what = f"seed {seed}: {mutate(base, root, seed)}"
        before = sorted(path.name for path in root.rglob("*"))
        began = time.monotonic()
        try:
            printed = outcome(lambda root=root: main(["check", str(root), "--version", "v1.0-mini", "--full"]), capsys)
            kinds["clean" if "no faults" in printed else "faults"] += 1
            try:
                clips = NuScenesClips(config_of(root, split="scene-0061", frames=2, on_error="skip"))
                for number in range(len(clips)):
                    clips[number].validate()
                kinds["read"] += 1
            except UserError as error:
                message = str(error)
                kinds["refused"] += 1
            else:
                message = ""
            assert message.isprintable(), message
        except BaseException as error:
            error.add_note(what) if hasattr(error, "add_note") else print(what)
            raise
        assert time.monotonic() - began < LONGEST, what
        assert sorted(path.name for path in root.rglob("*")) == before, what
        assert [path.name for path in home.iterdir()] == ["root"], what
        capsys.readouterr()
        shutil.rmtree(home)
    print(kinds)
    assert min(kinds.values()) > 0, kinds
