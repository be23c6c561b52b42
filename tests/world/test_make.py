import errno
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.splits import create_splits_scenes

from mim4d.errors import UserError
from mim4d.world import WorldConfig, cli, make, make_world
from mim4d.world.config import scene_names
from tests.pretrain.runs import environment


def made(out: Path, seed: int = 7, *, version: str = "v1.0-mini", workers: int = 1, progress=None, **changes) -> Path:
    """A small world."""
    config = WorldConfig(**{"scenes": 1, "scale": 0.06, "keyframes": 2, "seed": seed, **changes})
    return make_world(out, version, config, workers=workers, progress=progress)


def digest(root: Path) -> dict[str, str]:
    """Hash of every file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("small") / "root")


def test_same_seed_same_bytes_in_any_number_of_processes(small, tmp_path):
    again = made(tmp_path / "again", workers=2)
    assert digest(again) == digest(small)


def test_another_seed_is_another_world(small, tmp_path):
    other = digest(made(tmp_path / "other", seed=8))
    same_names = [name for name, value in digest(small).items() if other.get(name) == value]
    # Only the names of categories, attributes and levels may coincide.
    assert same_names == ["v1.0-mini/visibility.json"]


def test_scenes_do_not_depend_on_how_many_there_are(small, tmp_path):
    more = digest(made(tmp_path / "more", scenes=2))
    pictures = {name: value for name, value in digest(small).items() if name.endswith((".jpg", ".bin"))}
    assert pictures.items() <= more.items()


def test_a_begun_world_is_completed(small, tmp_path, monkeypatch):
    root, done = tmp_path / "begun", []

    def fails_at_the_second_frame(root, job, frame):
        if frame == 1:
            raise KeyboardInterrupt
        done.append(frame)
        return capture(root, job, frame)

    capture = make.capture
    monkeypatch.setattr(make, "capture", fails_at_the_second_frame)
    with pytest.raises(KeyboardInterrupt):
        made(root)
    assert done == [0]
    assert not (root / "v1.0-mini").exists()
    assert json.loads((root / "world.json").read_text())["complete"] is False
    first = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert len(first) == 6
    monkeypatch.setattr(make, "capture", capture)
    made(root)
    assert digest(root) == digest(small)
    assert {path: path.stat().st_mtime_ns for path in first} == first


MAKES = """
import sys
from pathlib import Path
from tests.world.test_make import made

if __name__ == "__main__":
    made(Path(sys.argv[1]), keyframes=4, workers=2)
"""


def test_kill_9_leaves_whole_files_and_the_world_can_be_completed(tmp_path):
    """The workers of a killed process end with it, so that they do not write beside those of the next one."""
    whole = digest(made(tmp_path / "whole", keyframes=4))
    killed = subprocess.Popen([sys.executable, "-c", MAKES, tmp_path / "w"], env=environment(), stderr=subprocess.PIPE)
    while not list((tmp_path / "w").rglob("*.jpg")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=60)  # returns when the last of its workers has closed stderr
    left = digest(tmp_path / "w")
    finished = {name: value for name, value in left.items() if name in whole and name != "world.json"}
    assert finished.items() <= whole.items()
    assert any(name.endswith(".jpg") for name in finished)
    assert not any(name.startswith("v1.0-mini") for name in left)
    assert digest(made(tmp_path / "w", keyframes=4)) == whole


def test_a_whole_world_is_left_alone(small, monkeypatch):
    monkeypatch.setattr(make, "capture", None)
    assert made(small) == small


@pytest.mark.parametrize("end", [9, 13])
def test_progress_counts_key_frames(tmp_path, end, monkeypatch):
    monkeypatch.setattr(make, "capture", lambda root, job, frame: None)
    monkeypatch.setattr(make, "_finish", lambda root, version, config, jobs: None)
    seen = []
    made(tmp_path / "w", keyframes=end, progress=lambda done, whole: seen.append((done, whole)))
    assert seen[0] == (0, end)
    assert seen[-1] == (end, end)


@pytest.mark.parametrize(
    ("version", "scenes", "train", "val"),
    [
        ("v1.0-mini", 1, 1, 0),
        ("v1.0-mini", 2, 1, 1),
        ("v1.0-mini", 3, 2, 1),
        ("v1.0-mini", 10, 8, 2),
        ("v1.0-trainval", 20, 16, 4),
        ("v1.0-trainval", 850, 700, 150),
        ("v1.0-test", 5, 0, 0),
    ],
)
def test_names_come_from_the_official_splits(version, scenes, train, val):
    named = scene_names(version, scenes)
    names, splits = {name for name, _ in named}, create_splits_scenes()
    prefix = "mini_" if version == "v1.0-mini" else ""
    assert len(names) == scenes
    assert len(names & set(splits[prefix + "train"])) == train
    assert len(names & set(splits[prefix + "val"])) == val
    if version == "v1.0-test":
        assert names <= set(splits["test"])
    places = dict(named)
    held_out = {places[name] for name in names & set(splits[prefix + "val"])}
    assert not held_out & {places[name] for name in names - set(splits[prefix + "val"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v1.0-maxi"}, "version = v1.0-maxi is unknown"),
        ({"scenes": 11}, "world.scenes = 11 must be at most 10"),
        ({"scenes": 0}, "world.scenes = 0 must be at least 1"),
        ({"keyframes": 0}, "world.keyframes = 0 must be at least 1"),
        ({"seed": -1}, "world.seed = -1 must be at least 0"),
        ({"scale": 2.0}, "world.scale = 2.0 must lie in"),
        ({"camera_rate": 3.0}, "world.camera_rate = 3 must be a multiple of 2 Hz"),
        ({"lidar_rate": 0.0}, "world.lidar_rate = 0 must be a multiple of 2 Hz"),
    ],
)
def test_bad_values_are_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises((UserError, ValueError), match=message):
        made(tmp_path / "w", **change)
    assert not (tmp_path / "w").exists()


def test_what_is_not_this_world_is_not_touched(small, tmp_path):
    before = digest(small)
    with pytest.raises(UserError, match="holds a different world"):
        made(small, seed=8)
    assert digest(small) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no world"):
        made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="cannot write to the folder"):
        made(tmp_path / "thesis.txt")


def test_a_full_disk_is_named_and_the_world_can_be_completed(tmp_path, monkeypatch):
    def full(root, job, frame):
        raise OSError(errno.ENOSPC, "No space left on device", str(root / "samples"))

    with monkeypatch.context() as patched:
        patched.setattr(make, "capture", full)
        with pytest.raises(UserError, match=r"No space left on device.*run the command again"):
            made(tmp_path / "w")
    assert not (tmp_path / "w" / "v1.0-mini").exists()
    assert (made(tmp_path / "w") / "v1.0-mini").exists()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mim4d-world", *arguments])
    cli.main()


def test_the_command_makes_the_same_world(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "w"
    run(
        monkeypatch,
        *("--out", str(out), "--version", "v1.0-mini", "--scenes", "1", "--seed", "7"),
        *("--scale", "0.06", "--keyframes", "2", "--workers", "1"),
    )
    assert digest(out) == digest(small)
    assert str(out) in capsys.readouterr().out


def test_another_world_in_the_folder_is_reported_in_one_line(small, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--out", str(small), "--seed", "8")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "holds a different world" in error
    assert error.count("\n") == 1


def test_help_explains_every_option_with_its_unit(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--out",
        "--version",
        "--scenes",
        "--seed",
        "--scale",
        "--keyframes",
        "--camera-rate",
        "--lidar-rate",
    ):
        assert option in text
    assert "Hz" in text
    assert "0.5 s" in text


def test_importing_the_world_does_not_import_the_devkit():
    code = "import sys, mim4d.world; sys.exit('nuscenes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_are_neither_blank_nor_noise(small):
    from PIL import Image

    for path in small.rglob("*.jpg"):
        picture = np.asarray(Image.open(path).convert("L"), float)
        assert 40 < picture.mean() < 215
        assert picture.std() > 15
        neighbours = np.corrcoef(picture[:, 1:].ravel(), picture[:, :-1].ravel())[0, 1]
        assert neighbours > 0.7
