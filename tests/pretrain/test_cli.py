"""The command: what a run leaves, and bad input, each in one line with exit code 2."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import timm
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.program import TensorBoard

from mim4d.commands import missing
from mim4d.eval.cli import parse as parse_evaluation
from mim4d.eval.model import make_encoder
from mim4d.hub.card import make_card
from mim4d.hub.folder import check_folder
from mim4d.pretrain.cli import main
from mim4d.roots import synthetic_root
from mim4d.world import WorldConfig, make_world
from tests.data.roots import edit_table, file_of, write_root
from tests.pretrain.runs import TINY, arguments, environment, losses, metrics, run

CAMERAS = tuple(TINY["cameras"])


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; its one error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert lines[-1] == error
    return error


def test_a_run_leaves_all_it_should(root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "run"
    main(arguments(root, out, "--picture-every", "4", "--eval-every", "2", "--keep", "1"))
    assert " % within 20 m, " in capsys.readouterr().err
    assert yaml.safe_load((out / "config.yaml").read_text())["split"] == "mini_train"
    rows = metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    named = {"loss", "direct_rgb", "direct_depth", "temporal_rgb", "temporal_depth", "frames", "rays"}
    assert all(named | {"lr", "grad_norm", "clips_per_s", "seconds", "skipped"} <= row.keys() for row in rows)
    held_out = {f"val_{kind}_{what}" for kind in ("direct", "temporal", "zero", "mean") for what in ("rgb", "depth")}
    assert [held_out <= row.keys() for row in rows] == [False, True, False, True]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]
    assert [path.name for path in (out / "pictures").iterdir()] == ["step_00000004.png"]
    assert {path.name for path in (out / "encoder").iterdir()} == {"config.json", "model.safetensors"}
    assert any((out / "tensorboard").iterdir())
    assert not list(out.rglob("*.partial"))


def test_the_end_names_what_is_there_and_commands_that_work(root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "my run"
    main(arguments(root, out, "--picture-every", "2"))
    lines = capsys.readouterr().err.splitlines()
    done, curves, score, use = (
        next(line.removeprefix(start).strip() for line in lines if line.startswith(start))
        for start in ("done; see", "curves:", "score it:", "use it:")
    )
    assert Path(done) == out / "report.html"
    assert Path(done).is_file()
    command, *flags = shlex.split(curves)
    assert Path(command).name == "tensorboard"
    board = TensorBoard()
    board.configure(argv=[command, *flags])
    assert list(Path(board.flags.logdir).rglob("events.out.tfevents.*"))
    command, *flags = shlex.split(score)
    assert Path(command).name == "mim4d-eval"
    config = parse_evaluation(flags)
    assert (config.backbone, config.dataroot, config.version) == (str(out), str(root), "v1.0-mini")
    make_encoder(config.backbone, "pretrained")
    assert not Path(config.out).exists()
    assert eval(use, {"timm": timm}).feature_info.channels()[-1] == 320


def test_rows_can_be_rarer_than_steps(root, tmp_path, fresh_accelerate):
    main(arguments(root, tmp_path / "every", "--steps", "5"))
    main(arguments(root, tmp_path / "second", "--steps", "5", "--log-every", "2"))
    rare = losses(tmp_path / "second")
    assert [row["step"] for row in rare] == [1, 2, 4, 5]
    assert rare == [row for row in losses(tmp_path / "every") if row["step"] in (1, 2, 4, 5)]


def test_data_is_read_by_workers_as_without_them(root, tmp_path, fresh_accelerate):
    main(arguments(root, tmp_path / "none", "--eval-every", "2"))
    main(arguments(root, tmp_path / "one", "--eval-every", "2", "--workers", "1"))
    assert losses(tmp_path / "none") == losses(tmp_path / "one")


def test_colour_alone_and_single_frames_work_too(root, tmp_path, fresh_accelerate):
    main(arguments(root, tmp_path / "run", "--supervision", "rgb", "--frames", "1", "--eval-every", "4"))
    rows = metrics(tmp_path / "run")
    assert all(row["frames"] == 1 and row["loss"] > 0 for row in rows)
    assert not any(name.startswith("temporal") for name in rows[-1])


def test_without_lidar_no_depth_is_reported_anywhere(run_cache, tmp_path, capsys, fresh_accelerate):
    scenes = ("scene-0061", "scene-0103")  # one of each split
    blind, out = write_root(tmp_path / "root", scenes=scenes, cameras=CAMERAS, lidar=False), tmp_path / "run"
    rendered = ("--method.loss.rgb", "1")
    main(arguments(blind, out, "--frame-gap", "0.5", *rendered, "--steps", "2", "--eval-every", "2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert any("held out: direct rgb " in line for line in lines)
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    made = json.loads((out / "encoder/config.json").read_text())["mim4d"]["measured"]
    card = make_card(check_folder(out / "encoder")).partition("## Measured")[2].partition("## Settings")[0]
    names = (
        {name for row in metrics(out) for name in row} | set(board.Tags()["scalars"]) | {*made["first"], *made["last"]}
    )
    assert {"direct_rgb", "val_temporal_rgb", "held_out/zero_rgb", "train/direct_rgb_hidden"} <= names
    assert not [name for name in names if any(kind in name for kind in ("depth", "abs_rel", "delta"))]
    assert "| val_direct_rgb |" in card
    assert not [kind for kind in ("depth", "abs_rel", "delta") if kind in " ".join(lines) + card]


def test_lidar_that_does_not_supervise_scores_held_out_clips(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    rendered = ("--method.loss.rgb", "1", "--method.loss.depth", "10")
    preset = ("--preset", "camera", "--frame-gap", "0.5")
    main(arguments(root, out, *preset, *rendered, "--steps", "2", "--eval-every", "2"))
    names = {name for row in metrics(out) for name in row}
    assert {"consistency", "val_consistency", "val_lift_delta", "val_direct_depth", "val_temporal_delta"} <= names
    assert {name for name in names if "depth" in name or "delta" in name} == {
        name for name in names if name.startswith("val_") and ("depth" in name or "delta" in name)
    }
    assert {"grad_encoder_consistency"} == {name for name in names if name.startswith("grad_encoder_")}


def test_the_encoders_gradients_are_split_where_the_run_halts_anyway(root, tmp_path, fresh_accelerate):
    main(arguments(root, tmp_path / "run", "--eval-every", "3"))
    terms = ("direct_rgb", "direct_depth", "temporal_rgb", "temporal_depth")
    for row in metrics(tmp_path / "run"):
        split = {name.removeprefix("grad_encoder_"): value for name, value in row.items() if "grad_encoder" in name}
        assert set(split) == (set(terms) if row["step"] in (1, 3, 4) else set())
        assert all(value > 0 for value in split.values())


def test_a_synthetic_world_is_made_once(run_cache, tmp_path, capsys, monkeypatch, fresh_accelerate):
    monkeypatch.setattr("mim4d.roots.make_world", partial(make_world, workers=1))  # so small, it is faster
    world = ["--world.scenes", "2", "--world.keyframes", "2", "--world.scale", "0.1", "--data", "synthetic"]
    flags = ["--preset", "gpu24", "--dataroot", "", "--steps", "1", *world]  # gpu24: its grid fits the tiny voxels
    main([*arguments(Path(), tmp_path / "first"), *flags])
    assert "making a synthetic world of" in capsys.readouterr().err
    (made,) = run_cache.glob("world-*")
    assert (made / "v1.0-mini" / "sample_data.json").exists()
    main([*arguments(Path(), tmp_path / "second"), *flags])
    assert "making a synthetic world of" not in capsys.readouterr().err
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_real_data_does_not_pass_for_drawn(tmp_path, capsys):
    """Its weights would carry the world's licence."""
    real = write_root(tmp_path / "root", scenes=("scene-0061",), cameras=CAMERAS)
    flags = ["--preset", "gpu24", "--data", "synthetic"]
    error = refused([*arguments(real, tmp_path / "run", *flags)], capsys)
    assert "holds a v1.0-mini that is no synthetic world of mim4d: set --data to nuscenes" in error


def test_a_world_of_other_settings_is_not_taken_for_the_one_asked_for(tmp_path, capsys):
    drawn = write_root(tmp_path / "root", scenes=("scene-0061",), cameras=CAMERAS)
    (drawn / "world.json").write_text(json.dumps({"complete": True, "config": {**asdict(WorldConfig()), "seed": 5}}))
    error = refused(arguments(drawn, tmp_path / "run", "--preset", "gpu24", "--data", "synthetic"), capsys)
    assert "holds a synthetic world with --world.seed 5, not 0: set --world.seed 5 or another --dataroot" in error


def test_processes_that_need_a_world_at_once_draw_it_once(tmp_path, monkeypatch):
    drawn = []

    def slowly(root, version, config, progress):
        drawn.append(root)
        time.sleep(0.3)
        (root / version).mkdir(parents=True)
        (root / "world.json").write_text(json.dumps({"complete": True, "config": asdict(config)}))

    monkeypatch.setattr("mim4d.roots.make_world", slowly)
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(synthetic_root, [str(tmp_path / "w")] * 4, ["v1.0-mini"] * 4, [WorldConfig()] * 4))
    assert roots == [tmp_path / "w"] * 4
    assert drawn == [tmp_path / "w"]


def test_nothing_is_overwritten(root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "run"
    main(arguments(root, out, "--steps", "1"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    error = refused(arguments(root, out, "--steps", "2", "--seed", "1"), capsys)
    assert "already holds a run: resume it with --resume, or set another --out" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataroot", "/no/such/folder"), "/no/such/folder"),
        (("--version", "v1.0-trainval"), "v1.0-trainval"),
        (("--split", "test"), "split test: none of its scenes"),
        (("--split", "scene-9999"), "scene-9999"),
        (("--val-split", "test"), "split test: none of its scenes"),
        (("--cameras", "CAM_ROOF"), "CAM_ROOF"),
        (("--image-size", "100", "128"), "multiples of 32"),
        (("--image-size", "256", "128"), "fewer than --image-size"),
        (("--frames", "40"), "no clip of 40 frames"),
        (("--frame-gap", "0.1", "--tolerance", "0.2"), "--tolerance 0.2 s must be less than half"),
        (("--model", "mim4d_convnext_huge"), "--model mim4d_convnext_huge"),
        (("--init", "convnext_femto.nothing"), "--init convnext_femto.nothing"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(flags, message, root, tmp_path, capsys):
    out = tmp_path / "run"
    assert message in refused(arguments(root, out, *flags), capsys)
    assert not out.exists()


def test_an_unknown_key_is_refused(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("stepps: 3\n")
    error = refused(["--config", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "run")], capsys)
    assert error == f"error: {tmp_path / 'my.yaml'}: unknown key stepps; did you mean steps?"


def test_an_unknown_flag_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--stepps", "3"])
    assert stop.value.code == 2


def truncated_jpg(broken: Path) -> Path:
    file = file_of(broken, "CAM_FRONT", 3)
    file.write_bytes(file.read_bytes()[:-200])
    return file


def empty_lidar(broken: Path) -> Path:
    file = file_of(broken, "LIDAR_TOP", 3)
    file.write_bytes(b"")
    return file


def missing_image(broken: Path) -> Path:
    file = file_of(broken, "CAM_BACK", 3)
    file.unlink()
    return file


def camera_missing_in_one_sample(broken: Path) -> str:
    edit_table(broken, "sample_data", lambda rows: [row for row in rows if row["token"] != "scene-0061-CAM_BACK-3"])
    return "CAM_BACK in scene-0061"


BROKEN = (truncated_jpg, empty_lidar, missing_image, camera_missing_in_one_sample)


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_data_is_named_and_what_was_saved_stays(
    damage: Callable[[Path], object], run_cache, tmp_path, capsys, fresh_accelerate
):
    broken = write_root(tmp_path / "root", scenes=("scene-0061", "scene-0103"), cameras=CAMERAS)
    out = tmp_path / "run"
    main(arguments(broken, out, "--steps", "1", "--save-every", "1"))
    what = damage(broken)
    error = refused(["--resume", "--out", str(out), "--steps", "20"], capsys)
    assert str(what) in error
    assert "--on-error skip" in error
    kept = sorted((out / "checkpoints").iterdir())
    assert len(kept) >= 1
    assert not list(out.rglob("*.partial"))
    assert [row["step"] for row in metrics(out)] == list(range(1, len(metrics(out)) + 1))

    main(["--resume", "--out", str(out), "--steps", "6", "--on-error", "skip"])
    assert metrics(out)[-1]["step"] == 6
    assert metrics(out)[-1]["skipped"] > 0


def test_held_out_scenes_that_are_broken_are_named_not_left_out(run_cache, tmp_path, capsys, fresh_accelerate):
    broken = write_root(tmp_path / "root", scenes=("scene-0061", "scene-0103"), cameras=CAMERAS)
    edit_table(broken, "sample_data", lambda rows: [row for row in rows if row["token"] != "scene-0103-CAM_BACK-3"])
    assert "CAM_BACK in scene-0103" in refused(arguments(broken, tmp_path / "run"), capsys)


def test_without_held_out_scenes_there_is_no_evaluation(run_cache, tmp_path, caplog, fresh_accelerate):
    alone = write_root(tmp_path / "root", scenes=("scene-0061",), cameras=CAMERAS)
    main(arguments(alone, tmp_path / "run", "--eval-every", "1", "--picture-every", "4"))
    assert not any(name.startswith("val_") for row in metrics(tmp_path / "run") for name in row)
    assert (tmp_path / "run" / "pictures" / "step_00000004.png").exists()
    assert "no evaluation: split mini_val: none of its scenes" in caplog.text


def test_a_root_without_lidar_learns_from_cameras_alone(run_cache, tmp_path, capsys, fresh_accelerate):
    blind = write_root(tmp_path / "root", scenes=("scene-0061",), cameras=CAMERAS, lidar=False)
    out = tmp_path / "run"
    error = refused(arguments(blind, out, "--preset", "gpu24"), capsys)
    assert error == f"error: {blind} has no LiDAR: train with --preset camera"
    assert not out.exists()
    main(arguments(blind, out, "--frame-gap", "0.5", "--steps", "1"))
    assert "preset: camera, the default without LiDAR" in capsys.readouterr().err
    assert metrics(out)[0]["consistency"] > 0
    assert not any("rgb" in name for name in metrics(out)[0])  # nothing is rendered


def test_lidar_that_no_camera_sees_is_told_once(root, tmp_path, capsys, fresh_accelerate):
    main(arguments(root, tmp_path / "run", "--method.grid.z", "300", "308"))
    assert capsys.readouterr().err.count("warning: at step 1 no LiDAR point falls on any image") == 1
    assert [row["rays"] for row in metrics(tmp_path / "run")] == [0] * 4


def test_a_missing_module_is_reported_with_how_to_install_it(tmp_path):
    without = "import sys; sys.modules['tyro'] = None; from mim4d.commands import {0}; {0}()"
    for name in ("pretrain", "world"):
        ended = subprocess.run(
            [sys.executable, "-c", without.format(name)], env=environment(), capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 2
        assert ended.stderr == f"error: mim4d-{name} cannot run: no module tyro: pip install 'mim4d[pretrain]'\n"


def test_a_missing_devkit_is_reported_with_the_python_versions_that_have_it():
    assert "Python 3.10 to 3.12" in missing("pyquaternion", (3, 13))
    assert "pip install" in missing("pyquaternion", (3, 12))
    assert "pip install" in missing("tyro", (3, 13))


def test_the_command_itself_ends_in_one_line_and_code_2(tmp_path):
    ended = run("--data", "nuscenes", "--dataroot", str(tmp_path / "nothing"), "--out", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
