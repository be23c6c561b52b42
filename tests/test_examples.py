"""Every file in examples/ runs, at toy size; bevformer_tiny_mim4d.py does in tests/integrations/test_mmdet.py."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pyquaternion import Quaternion

from mim4d import roots
from mim4d.data import DataConfig, NuScenesClips
from mim4d.hub.folder import save_encoder
from mim4d.world import WorldConfig
from tests.hub.conftest import environment, hub, server
from tests.pretrain import runs

__all__ = ["environment", "hub", "server"]

ROOT = Path(__file__).parents[1]
README = (ROOT / "examples/README.md").read_text()


def run(script: str, *arguments: str, capsys, monkeypatch) -> str:
    """Run an example in this process, as ``python examples/SCRIPT ARGUMENTS`` would; what it prints."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture
def example(capsys, monkeypatch):
    return lambda script, *arguments: run(script, *arguments, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def encoder(tmp_path) -> str:
    """An exported encoder, as timm names it."""
    torch.manual_seed(0)
    save_encoder(timm.create_model("mim4d_convnext_atto"), tmp_path / "encoder")
    return f"local-dir:{tmp_path / 'encoder'}"


def test_the_readme_and_this_file_know_every_example():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert set(re.findall(r"examples/(\w+\.py)", README)) == scripts
    tests = Path(__file__).read_text()
    assert all(script in tests for script in scripts)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / "examples" / link).exists(), link


def test_lidar_on_images(example, tiny_world, tmp_path):
    picture = tmp_path / "picture.png"
    data = ["--dataroot", str(tiny_world), "--image-size", "96", "192"]
    assert "scene-0061" in example("lidar_on_images.py", *data, "--out", str(picture))
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("demo", [False, True])
def test_examples_take_the_demos_world_or_a_tiny_one(demo, example, tiny_world, tmp_path, monkeypatch, capsys):
    """Here the demo's world is the tests' and the tiny one is of one scene of it."""
    worlds = {True: WorldConfig(scenes=3, keyframes=4, scale=0.125), False: WorldConfig(scenes=1, keyframes=2)}
    monkeypatch.setenv("MIM4D_CACHE", str(tmp_path))
    monkeypatch.setattr(roots, "DEMO_VERSION", "v1.0-mini")
    monkeypatch.setattr(roots, "DEMO_WORLD", worlds[True])
    root = roots._cached("v1.0-mini", worlds[demo])
    shutil.copytree(tiny_world, root)
    record = json.loads((root / "world.json").read_text())
    record["config"] |= asdict(worlds[demo])
    (root / "world.json").write_text(json.dumps(record))
    example("lidar_on_images.py", "--image-size", "96", "192", "--out", str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").is_file()
    taken = roots.default_to_synthetic(DataConfig())
    assert (taken.dataroot, taken.split) == (str(root), "mini_train")
    assert ("using a tiny synthetic world" in capsys.readouterr().err) != demo
    assert roots.default_to_synthetic(DataConfig(dataroot="/data")) == DataConfig(dataroot="/data")


@pytest.mark.parametrize("own", [False, True])
def test_lift_splat_learns_on_a_named_backbone_and_on_a_folder(example, tiny_world, encoder, own):
    torch.manual_seed(0)
    backbone = encoder if own else "mim4d_resnet18"
    data = ["--dataroot", str(tiny_world), "--image-size", "64", "128"]
    told = example("lift_splat.py", *data, "--backbone", backbone, "--steps", "5")
    assert f"has {[160, 320] if own else [256, 512]} channels" in told
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", told)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_lift_splat_puts_pixels_where_they_are():
    """A pixel at a known depth lands in the cell of its point."""
    names = runpy.run_path(str(ROOT / "examples/lift_splat.py"))
    model = names["LiftSplat"]("mim4d_convnext_atto")
    intrinsics = torch.tensor([[100.0, 0, 64], [0, 100, 32], [0, 0, 1]])
    ego_from_camera = torch.tensor([[0.0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.6], [0, 0, 0, 1]])  # looks ahead
    cells = model._cells(intrinsics[None, None], ego_from_camera[None, None], 4, 8).view(len(names["DEPTHS"]), 4, 8)
    depth, row, column = 10, 1, 6  # 12 m; the pixel (104, 24)
    forward, left = 12 + 1.5, -(104 - 64) / 100 * 12 + 0.2
    assert int(cells[depth, row, column]) == int(forward + 48) * 96 + int(left + 48)
    assert int(cells[-1, row, column]) == 96 * 96  # 49 m and 1.5 m: beyond the map


def test_feature_pyramid(example, encoder):
    for backbone, channels in ((encoder, [80, 160, 320]), ("mim4d_resnet18", [128, 256, 512])):
        told = example("feature_pyramid.py", "--backbone", backbone)
        assert f"channels {channels}, strides [8, 16, 32]" in told
        assert "stride 16: [1, 64, 16, 44]" in told


def test_hub_round_trip(hub, environment, encoder):
    told = subprocess.run(
        [sys.executable, "examples/hub_round_trip.py", "--run", encoder.partition(":")[2], "--repo", "org/name"],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert f"pushed: {hub.endpoint}/org/name/commit/" in told.stdout
    assert "pulled org/name: same features as before the push" in told.stdout
    assert "model.safetensors" in hub.files("org/name")


# --- your own video --------------------------------------------------------------------------------------------------

SENSORS = {"front": "CAM_FRONT", "back": "CAM_BACK", "LIDAR_TOP": "LIDAR_TOP"}


def write_recordings(folder: Path, world: Path, sensors: dict[str, str]) -> Path:
    """Two scenes of a drawn world as someone's recordings: scene-0061's calibration stands for both."""
    tables = {
        name: json.loads((world / f"v1.0-mini/{name}.json").read_text())
        for name in ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
    }
    by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items()}
    calibration = {}
    for scene in ("scene-0061", "scene-0553"):
        poses = {}
        for data in tables["sample_data"]:
            sample = by_token["sample"][data["sample_token"]]
            mounted = by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
            channel = by_token["sensor"][mounted["sensor_token"]]["channel"]
            if by_token["scene"][sample["scene_token"]]["name"] != scene:
                continue
            pose = by_token["ego_pose"][data["ego_pose_token"]]
            poses[data["timestamp"]] = [*pose["translation"], *pose["rotation"]]
            for name in (name for name, theirs in sensors.items() if theirs == channel):
                ego_from_sensor = Quaternion(mounted["rotation"]).transformation_matrix
                ego_from_sensor[:3, 3] = mounted["translation"]
                about = {"ego_from_sensor": ego_from_sensor.tolist(), "intrinsics": mounted["camera_intrinsic"]}
                calibration.setdefault(name, about)
                target = folder / scene / name / f"{data['timestamp']}{Path(data['filename']).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(world / data["filename"])
        with (folder / scene / "poses.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["time", "x", "y", "z", "qw", "qx", "qy", "qz"])
            rows.writerows([time, *pose] for time, pose in sorted(poses.items()))
    ordered = {name: calibration[name] for name in sensors}
    (folder / "calibration.json").write_text(json.dumps(ordered))
    return folder


def test_own_video_gives_the_clips_of_the_root_it_came_from(example, tiny_world, tmp_path):
    recordings = write_recordings(tmp_path / "drives", tiny_world, SENSORS)
    told = example("own_video.py", "--recordings", str(recordings), "--out", str(tmp_path / "root"))
    assert "2 drives, 3 sensors" in told
    assert "--supervision" not in told

    def clips(root, version, split, cameras):
        size = dict(frames=3, image_size=(96, 192))
        return NuScenesClips(DataConfig(dataroot=str(root), version=version, split=split, cameras=cameras, **size))

    ours = clips(tmp_path / "root", "v1.0-own", "train", ("front", "back"))
    theirs = clips(tiny_world, "v1.0-mini", "scene-0061", ("CAM_FRONT", "CAM_BACK"))
    assert len(ours) == len(theirs) == 2
    for i in range(len(ours)):
        a, b = ours[i], theirs[i]
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.points, b.points)
        assert torch.equal(a.timestamps, b.timestamps)
        for name in ("intrinsics", "ego_from_camera", "current_from_ego"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


def test_own_video_without_lidar_trains_by_the_command_it_prints(example, tiny_world, tmp_path):
    cameras = {name: theirs for name, theirs in SENSORS.items() if name != "LIDAR_TOP"}
    recordings = write_recordings(tmp_path / "drives", tiny_world, cameras)
    told = example("own_video.py", "--recordings", str(recordings), "--out", str(tmp_path / "my root"))
    command = shlex.split(told.splitlines()[-1])
    assert command[0] == "mim4d-pretrain"
    assert command[-4:] == ["--preset", "camera", "--frame-gap", "0.5"]
    tiny = runs.arguments(tmp_path / "my root", tmp_path / "run", "--steps", "2")
    done = runs.run(*tiny, *command[1:])
    assert done.returncode == 0, done.stderr
    backbone = timm.create_model(f"local-dir:{tmp_path / 'run/encoder'}", pretrained=True, features_only=True)
    assert backbone(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 320, 2, 2)


def test_own_video_takes_poses_from_between(tmp_path):
    poses = runpy.run_path(str(ROOT / "examples/own_video.py"))["Poses"]
    turn = Quaternion(axis=[0, 0, 1], degrees=20)
    rows = [[0, 0, 0, 0, 1, 0, 0, 0], [1000, 4, 2, 0, *turn.elements]]
    lines = ["time,x,y,z,qw,qx,qy,qz", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    translation, rotation = poses.read(tmp_path / "poses.csv").at(250, tmp_path)
    assert translation == [1.0, 0.5, 0.0]
    np.testing.assert_allclose(rotation, Quaternion(axis=[0, 0, 1], degrees=5).elements, atol=1e-9)


def spoil_calibration(folder):
    (folder / "calibration.json").write_text('{"front": {"ego_from_sensor": [[1, 2], [3, 4]]}}')


def spoil_name(folder):
    (folder / "scene-0061/front/first.jpg").touch()


def spoil_image(folder):
    image = min((folder / "scene-0061/front").iterdir())
    image.unlink()  # it may be a link
    image.touch()


def spoil_poses(folder):
    lines = (folder / "scene-0553/poses.csv").read_text().splitlines()
    (folder / "scene-0553/poses.csv").write_text("\n".join(lines[:3]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_calibration, "error: calibration.json: front"),
        (lambda folder: (folder / "calibration.json").unlink(), "calibration.json"),
        (spoil_name, "expected files named by their time in microseconds"),
        (spoil_image, "is not a readable image"),
        (spoil_poses, "its time is outside the drive's poses.csv"),
        (lambda folder: (folder / "scene-0061/poses.csv").write_text("t,x\n1,2\n"), "expected columns time,x,y,z"),
    ],
)
def test_own_video_names_what_is_wrong_and_leaves_nothing(example, tiny_world, tmp_path, capsys, spoil, message):
    recordings = write_recordings(tmp_path / "drives", tiny_world, {"front": "CAM_FRONT"})
    spoil(recordings)
    with pytest.raises(SystemExit) as stop:
        example("own_video.py", "--recordings", str(recordings), "--out", str(tmp_path / "root"))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
