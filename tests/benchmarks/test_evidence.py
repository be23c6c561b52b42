"""The comparison from end to end, at toy size."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.evidence.protocol import ABLATIONS, CONSISTENCY, EVERY, PRETRAININGS, SIZES, Cell, Size, images
from benchmarks.evidence.run import Job, compare, curve, jobs_of, last_scores, run_job
from mim4d.errors import UserError
from mim4d.pretrain.config import PretrainConfig, flatten, to_dict
from mim4d.pretrain.folder import RunFolder
from mim4d.world import WorldConfig
from tests.eval.runs import tiny as tiny_cell
from tests.pretrain.runs import REPOSITORY, tiny

PROBE, SEG = Cell("probe", "frozen", 1.0), Cell("bev-seg", "frozen", 0.5)
TINY_WORLD = WorldConfig(scenes=3, keyframes=4, scale=0.125)
SOME = ["scratch", "scratch-camera"]


@pytest.fixture(scope="module")
def size(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Size:
    """Steps that take a moment, and few of them."""
    folder = tmp_path_factory.mktemp("sizes")
    pretraining = replace(
        tiny(root, folder / "x"), frames=3, steps=2, probe_every=2, eval_every=2, eval_clips=1, world=TINY_WORLD
    )
    evaluation = tiny_cell(root, folder / "y")
    return Size(
        name="toy",
        pretraining=replace(pretraining, method=replace(pretraining.method, loss=CONSISTENCY), supervision="rgb"),
        evaluation={"probe": evaluation, "bev-seg": evaluation},
        evaluation_steps={0.5: 3, 1.0: 3},
        probes=(PROBE,),
        heads=(SEG,),
        seeds=1,
    )


@pytest.fixture(scope="module")
def compared(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a whole comparison of some starts leaves."""
    out = tmp_path_factory.mktemp("evidence")
    compare(size, out, SOME, workers=1, command="the command")
    return out


def test_a_comparison_leaves_every_cell_and_its_report(compared: Path):
    results = json.loads((compared / "results.json").read_text())
    assert [(cell["init"], cell["task"]) for cell in results["cells"]] == [
        *((start, task) for task in ("probe", "bev-seg") for start in SOME)
    ]
    for cell in results["cells"]:
        name = Cell(cell["task"], cell["mode"], cell["labels"]).name
        metrics = json.loads((compared / "cells" / f"{cell['init']}-0" / name / "metrics.json").read_text())
        figure = {"probe": "depth_r2", "bev-seg": "iou_drivable"}[cell["task"]]
        assert cell["figures"][figure]["seeds"] == {"0": metrics[figure]}
    depth = {row["init"]: row["figures"] for row in results["depth"]}
    assert set(depth) == set(SOME[1:])
    assert 0 <= depth["scratch-camera"]["lift_delta"]["mean"] <= 1
    assert [list(row["steps"]) for row in results["curves"] if row["init"] == "scratch-camera"] == 3 * [["2"]]
    gate = results["gates"]["scratch_depth_r2_of_cameras_alone_over_before"]
    after, before = (results["cells"][k]["figures"]["depth_r2"]["mean"] for k in (1, 0))
    assert gate == {"value": pytest.approx(after - before), "aim": 0.4, "spread": None, "held": False}
    assert results["gates"]["imagenet_vehicle_ap_of_cameras_alone_over_before"]["held"] is None
    assert "cameras alone" in (compared / "table.md").read_text()
    assert (compared / "plot.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again(size: Size, compared: Path):
    files = sorted(compared.glob("cells/*/*/metrics.json")) + sorted(compared.glob("pretraining/*/metrics.jsonl"))
    before = [file.stat().st_mtime_ns for file in files]
    lost = compared / "cells" / "scratch-camera-0" / SEG.name / "metrics.json"
    figures = json.loads(lost.read_text())
    lost.unlink()  # as if the run had been killed there
    compare(size, compared, SOME, workers=1, command="the command")
    again = [(file, old) for file, old in zip(files, before, strict=True) if file.stat().st_mtime_ns != old]
    assert [file for file, _ in again] == [lost]
    assert json.loads(lost.read_text())["iou_drivable"] == figures["iou_drivable"]


def test_a_pretraining_killed_before_its_first_checkpoint_goes_on(size: Size, tmp_path: Path):
    short = replace(size, pretraining=replace(size.pretraining, steps=1, probe_every=1, eval_every=1))
    (job,), _ = jobs_of(short, tmp_path, ["scratch-camera"])
    job = replace(job, cells=())
    run_job(job, threads=1)
    folder = RunFolder(job.pretraining)
    before = (folder.encoder / "model.safetensors").read_bytes()
    for left in (folder.checkpoints, folder.encoder):
        shutil.rmtree(left)
    run_job(job, threads=1)
    assert (folder.encoder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("starts", [["scratch", "scratch-camera"], ["scratch-lidar"]])
@pytest.mark.parametrize("change", ["pretraining", "evaluation"])
def test_another_comparison_is_refused(size: Size, compared: Path, change: str, starts: list[str]):
    """Even if only what is not there yet is asked for: the report would be of both."""
    other = {
        "pretraining": replace(size, pretraining=replace(size.pretraining, steps=3)),
        "evaluation": replace(size, evaluation_steps={0.5: 4, 1.0: 4}),
    }[change]
    with pytest.raises(UserError, match="--out"):
        compare(other, compared, starts, workers=1, command="the command")


def test_cells_of_a_pretraining_that_is_gone_are_refused(size: Size, compared: Path, tmp_path: Path):
    """It would be made anew, and they would pass for its own."""
    shutil.copytree(compared / "cells", tmp_path / "cells")
    with pytest.raises(UserError, match=r"cells/scratch-camera-0/.* belongs to a pretraining that no longer exists"):
        compare(size, tmp_path, SOME, workers=1, command="the command")


def test_cells_of_another_version_are_refused(size: Size, compared: Path, tmp_path: Path):
    shutil.copytree(compared / "cells" / "scratch-0", tmp_path / "cells" / "scratch-0")
    file = tmp_path / "cells" / "scratch-0" / PROBE.name / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mim4d": "0.0.1"}))
    with pytest.raises(UserError, match=r"made with mim4d = 0\.0\.1, .*--out"):
        compare(size, tmp_path, ["scratch"], workers=1, command="the command")


def test_two_comparisons_do_not_share_a_folder(size: Size, tmp_path: Path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another comparison is running"):
        compare(size, tmp_path, ["scratch"], workers=1, command="the command")


def test_what_failed_is_named_and_its_log_says_where(size: Size, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = {"probe": replace(size.evaluation["probe"], val_split="scene-9999")}
    broken = replace(size, evaluation={**size.evaluation, **other})
    with pytest.raises(UserError, match=r"scratch-0 FAILED: .*scene-9999.*Run the same command again to resume"):
        compare(broken, tmp_path, ["scratch"], workers=1, command="the command")
    assert "scratch-0, 0 min: FAILED: " in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "logs" / "scratch-0.txt").read_text()


@pytest.mark.parametrize("name", SIZES)
def test_every_pretraining_sees_as_many_images(name: str):
    size = SIZES[name]
    probes, heads = jobs_of(size, Path("x"), EVERY)
    configs = {job.start.name: job.pretraining_config() for job in probes if job.start.pretraining and not job.seed}
    assert set(configs) == {
        *(f"{weights}-{each}" for weights in ("imagenet", "scratch") for each in PRETRAININGS),
        *(f"imagenet-{each}" for each in ABLATIONS),
    }
    for config in configs.values():
        assert config.steps == size.pretraining.steps
        assert images(config) == size.pretraining.batch_size * 6
    assert {job.start.pretraining for job in heads} == ({"", *PRETRAININGS} if size.heads else set())


def test_lidar_is_read_where_it_supervises_alone():
    probes, _ = jobs_of(SIZES["cpu"], Path("x"), EVERY)
    for job in probes:
        if job.start.pretraining:
            assert (job.pretraining_config().supervision == "rgbd") == (job.start.pretraining == "lidar")


def test_an_ablation_differs_by_one_part():
    probes, _ = jobs_of(SIZES["cpu"], Path("x"), EVERY)
    whole = next(job for job in probes if job.start.name == "imagenet-camera").pretraining_config()
    for job in probes:
        if job.start.pretraining in ABLATIONS:
            assert len(_differences(job, whole)) == 1, job.name


def _differences(job: Job, whole: PretrainConfig) -> set[str]:
    """Parts that differ: the losses are one, with the number of clips whose frames are all encoded to render them."""
    other, base = (flatten(to_dict(each)) for each in (job.pretraining_config(), whole))
    different = [name for name in base if base[name] != other[name] and name != "out"]
    parts = dict.fromkeys((f"method.loss.{x}" for x in ("rgb", "depth", "rendered_gradient", "other_rays")), "loss")
    parts |= {"batch_size": "loss", "optim.stem_scale": "optim.backbone_scale"}
    return {parts.get(name, name) for name in different}


def test_scores_and_curves_come_from_the_log():
    rows = [
        {"step": 100, "loss": 1.0, "probe_depth_r2": 0.5},
        {"step": 200, "loss": 0.5, "val_lift_delta": 0.25, "probe_depth_r2": 0.75},
        {"step": 210, "loss": 0.5},
    ]
    assert last_scores(rows) == {"lift_delta": 0.25}
    assert last_scores(rows[:1]) == {}
    found = curve({0: rows, 1: rows[:1]}, "probe_depth_r2")
    assert {step: summary["seeds"] for step, summary in found.items()} == {
        "100": {"0": 0.5, "1": 0.5},
        "200": {"0": 0.75},
    }


def test_a_wrong_start_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence", "--starts", "nothing"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --starts nothing")
    assert done.stderr.count("\n") == 1
