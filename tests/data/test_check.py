"""``mim4d-data check``: each kind of fault is counted, the first one is named, and what is there is described."""

import numpy as np
import pytest
from PIL import Image

from mim4d.commands import data
from mim4d.data.cli import main
from tests.data.roots import LIDAR, VERSION, edit_table, file_of, write_root


def check(capsys, *words) -> tuple[int, list[str]]:
    """Exit code and lines of stdout; of stderr for bad input."""
    with pytest.raises(SystemExit) as caught:
        main(["check", *map(str, words)])
    out, err = capsys.readouterr()
    code = caught.value.code
    return code, (err if code == 2 else out).splitlines()


def faults(lines):
    return [line for line in lines if line.startswith("FAULT ")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("fleet") / "root", cameras=("front", "left"), between=1, samples=4)


def test_a_good_root_is_described_and_drawn(fleet, tmp_path, capsys):
    code, lines = check(capsys, fleet, "--full", "--picture", tmp_path / "picture.png")
    assert code == 0
    assert lines[-1] == "no faults"
    text = "\n".join(lines)
    assert f"{fleet}/{VERSION}: 1 scene, 4 key frames, 1.8 s in all" in text
    assert "camera front: 8 images of 128x72 pixels, 4.0 per second" in text
    assert f"LiDAR {LIDAR}: 8 sweeps, 4.0 per second" in text
    assert "clips of 3 frames 0.5 s apart: 2 from key frames, 4 with --sweeps" in text
    assert "--cameras front left" in text
    assert "read 24 of 24 files" in lines
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert picture.shape == (448, 1600, 3)
    assert picture.std() > 20


def spoil_missing(root):
    for number in (1, 3):
        file_of(root, "CAM_BACK", number).unlink()
    return "CAM_BACK: no such file", 2, str(file_of(root, "CAM_BACK", 1))


def spoil_sweep(root):
    file_of(root, LIDAR, 4).write_bytes(b"")
    return f"{LIDAR}: the file is empty", 1, str(file_of(root, LIDAR, 4))


def spoil_record(root):
    edit_table(root, "sample_data", lambda rows: [row for row in rows if row["token"] != "scene-0061-CAM_BACK-2"])
    return "CAM_BACK has no record in a key frame", 1, "scene-0061 at 1532402928.00 s"


def spoil_twice(root):
    again = {"token": "again"}
    edit_table(root, "sample_data", lambda rows: [*rows, rows[-1] | again])
    return "CAM_BACK has two records in a key frame", 1, "is_key_frame in sample_data.json"


def spoil_times(root):
    def late(rows):
        return [r | {"timestamp": r["timestamp"] + 900_000} if "CAM_BACK" in r["token"] else r for r in rows]

    edit_table(root, "sample_data", late)
    return "CAM_BACK is more than 0.5 s from LIDAR_TOP in a key frame", 12, "samples/CAM_BACK/"


def spoil_poses(root):
    def jump(rows):
        return [r | {"translation": [9e5, 0, 0]} if r["token"] == f"scene-0061-{LIDAR}-3" else r for r in rows]

    edit_table(root, "ego_pose", jump)
    return "the poses in ego_pose.json move faster than 100 m/s", 2, "scene-0061 at 1532402928.00 s"


def spoil_table(root):
    edit_table(root, "sample_data", lambda rows: [row | {"filename": None} for row in rows])
    return "sample_data.json: filename: expected a file's path inside the root, without ..", 36, "row 0"


SPOILED = [spoil_missing, spoil_sweep, spoil_record, spoil_twice, spoil_times, spoil_poses, spoil_table]


@pytest.mark.parametrize("spoil", SPOILED)
def test_each_kind_of_fault_is_counted(root, spoil, capsys):
    kind, count, first = spoil(root)
    code, lines = check(capsys, root, "--full", "--version", VERSION)
    assert code == 1
    (line,) = faults(lines)
    assert line.startswith(f"FAULT {kind} ({count} found; first: {first}")
    assert lines[-1] == "1 kind of fault"


def test_problems_that_differ_in_numbers_are_one_kind_with_the_numbers_of_the_first(root, capsys):
    for number, size in ((2, 21), (4, 22)):
        file_of(root, LIDAR, number).write_bytes(bytes(size))
    (line,) = faults(check(capsys, root, "--full", "--version", VERSION)[1])
    assert f"{LIDAR}: 21 bytes are not a whole number of points of 5 float32 each (2 found; first: " in line


def test_a_sample_is_read_unless_all_is_asked_for(root, monkeypatch, capsys):
    monkeypatch.setattr("mim4d.data.check.SAMPLE", 2)
    spoil_missing(root)  # neither the first nor the last
    assert check(capsys, root)[0] == 0
    assert check(capsys, root, "--full")[0] == 1


def test_bad_input_is_one_line(root, tmp_path, capsys, monkeypatch):
    assert check(capsys, tmp_path / "nowhere") == (2, [f"error: {tmp_path}/nowhere: no such folder"])
    code, lines = check(capsys, root, "--version", "v2")
    assert code == 2
    assert lines[-1].startswith("error: --version v2 is not in")
    (root / "v2").mkdir()
    (root / "v2/scene.json").write_text("[]")
    assert check(capsys, root)[1] == [f"error: {root}: choose one of v1.0-mini, v2 with --version"]
    for flags, message in (
        ([], "the following arguments are required: ROOT (see mim4d-data check --help)"),
        ([" "], "ROOT: expected a value, got an empty one"),
        ([root, "--version="], "--version: expected a value"),
        ([root, "--version=a\x1b[1m"], "--version: 'a\\x1b[1m' has characters that cannot be printed"),
        ([root, "--lidar-floats=x"], "--lidar-floats: invalid int value: 'x'"),
        ([root, "--lidar-floats=1000000000"], "--lidar-floats 1000000000: a point has 3"),
        ([root, "--picture="], "--picture: expected a value"),
        ([root, f"--picture={tmp_path}/none/a.png"], f"there is no folder {tmp_path}/none"),
    ):
        code, (line,) = check(capsys, *flags)
        assert (code, line.startswith("error: "), message in line) == (2, True, True), line
    monkeypatch.setattr("sys.argv", ["mim4d-data", "check", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="2"):
        data()
