"""The comparison from end to end, at toy size."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from benchmarks.evidence.methods import NoTemporalPath, Pixels, Timeless, Unwarped
from benchmarks.evidence.protocol import ABLATIONS, EVERY, RANDOM, SIZES, STARTS, Cell, Size
from benchmarks.evidence.run import compare, jobs_of, run_job
from mim4d.errors import UserError
from mim4d.method.model import MIM4D
from mim4d.pretrain.folder import RunFolder
from mim4d.world import WorldConfig
from tests.eval.runs import tiny as tiny_cell
from tests.pretrain.runs import REPOSITORY, tiny
from tests.toy import toy_clip, toy_config

SEG = Cell("bev-seg", "frozen", 0.5)
TINY_WORLD = WorldConfig(scenes=3, keyframes=4, scale=0.125)
SOME = [RANDOM, "pixels", "mim4d"]


@pytest.fixture(scope="module")
def size(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Size:
    """Steps that take a moment, and few of them."""
    folder = tmp_path_factory.mktemp("sizes")
    return Size(
        name="toy",
        pretraining=replace(tiny(root, folder / "x"), frames=3, steps=2, world=TINY_WORLD),
        evaluation={"bev-seg": tiny_cell(root, folder / "y")},
        evaluation_steps={0.5: 3},
        cells=(SEG,),
        ablation_steps=1,
        ablation_cells=(),
        seeds=1,
        yardstick_seeds=1,
        scored_clips=1,
    )


@pytest.fixture(scope="module")
def compared(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a whole comparison of some starts leaves."""
    out = tmp_path_factory.mktemp("evidence")
    compare(size, out, SOME, workers=1, command="the command")
    return out


def test_a_comparison_leaves_every_cell_and_its_report(compared: Path):
    results = json.loads((compared / "results.json").read_text())
    assert [cell["init"] for cell in results["cells"]] == SOME
    for cell in results["cells"]:
        assert (cell["task"], cell["mode"], cell["labels"]) == ("bev-seg", "frozen", 0.5)
        metrics = json.loads((compared / "cells" / f"{cell['init']}-0" / SEG.name / "metrics.json").read_text())
        assert cell["figures"]["iou_drivable"]["seeds"] == {"0": metrics["iou_drivable"]}
    scores = {row["init"]: row["figures"] for row in results["unlabelled"]}
    assert scores["pixels"] == {}
    assert scores["mim4d"]["temporal_depth"]["mean"] > 0
    assert "MIM4D" in (compared / "table.md").read_text()
    assert (compared / "plot.png").stat().st_size > 1000
    assert (compared / "strip.jpg").stat().st_size > 1000


def test_what_is_done_is_not_done_again(size: Size, compared: Path):
    files = sorted(compared.glob("cells/*/*/metrics.json")) + sorted(compared.glob("pretraining/*/metrics.jsonl"))
    before = [file.stat().st_mtime_ns for file in files]
    lost = compared / "cells" / "mim4d-0" / SEG.name / "metrics.json"
    figures = json.loads(lost.read_text())
    lost.unlink()  # as if the run had been killed there
    compare(size, compared, SOME, workers=1, command="the command")
    again = [(file, old) for file, old in zip(files, before, strict=True) if file.stat().st_mtime_ns != old]
    assert [file for file, _ in again] == [lost]
    assert json.loads(lost.read_text())["iou_drivable"] == figures["iou_drivable"]


def test_a_pretraining_killed_before_its_first_checkpoint_goes_on(size: Size, tmp_path: Path):
    (job,) = [job for job in jobs_of(size, tmp_path, ["mim4d"]) if job.seed == 0]
    run_job(job, threads=1)
    folder = RunFolder(job.pretraining)
    before = (folder.encoder / "model.safetensors").read_bytes()
    for left in (folder.checkpoints, folder.encoder):
        shutil.rmtree(left)
    shutil.rmtree(tmp_path / "cells")
    run_job(job, threads=1)
    assert (folder.encoder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("starts", [[RANDOM, "mim4d"], ["single"]])
@pytest.mark.parametrize("change", ["pretraining", "evaluation", "backbone"])
def test_another_comparison_is_refused(size: Size, compared: Path, change: str, starts: list[str]):
    """Even if only what is not there yet is asked for: the report would be of both."""
    other = {
        "pretraining": replace(size, pretraining=replace(size.pretraining, steps=3)),
        "evaluation": replace(size, evaluation_steps={0.5: 4}),
        "backbone": replace(size, pretraining=replace(size.pretraining, model="mim4d_resnet18")),
    }[change]
    with pytest.raises(UserError, match="--out"):
        compare(other, compared, starts, workers=1, command="the command")


def test_cells_of_a_pretraining_that_is_gone_are_refused(size: Size, compared: Path, tmp_path: Path):
    """It would be made anew, and they would pass for its own."""
    shutil.copytree(compared / "cells", tmp_path / "cells")
    with pytest.raises(UserError, match=r"cells/pixels-0/.* belongs to a pretraining that no longer exists"):
        compare(size, tmp_path, SOME, workers=1, command="the command")


def test_cells_of_another_version_are_refused(size: Size, compared: Path, tmp_path: Path):
    shutil.copytree(compared / "cells" / "random-0", tmp_path / "cells" / "random-0")
    file = tmp_path / "cells" / "random-0" / SEG.name / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mim4d": "0.0.1"}))
    with pytest.raises(UserError, match=r"made with mim4d = 0\.0\.1, .*--out"):
        compare(size, tmp_path, [RANDOM], workers=1, command="the command")


def test_two_comparisons_do_not_share_a_folder(size: Size, tmp_path: Path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another comparison is running"):
        compare(size, tmp_path, [RANDOM], workers=1, command="the command")


def test_what_failed_is_named_and_its_log_says_where(size: Size, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken = replace(size, evaluation={"bev-seg": replace(size.evaluation["bev-seg"], val_split="scene-9999")})
    with pytest.raises(UserError, match=r"random-0 FAILED: .*scene-9999.*Run the same command again to resume"):
        compare(broken, tmp_path, [RANDOM], workers=1, command="the command")
    assert "random-0, 0 min: FAILED: " in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "logs" / "random-0.txt").read_text()


@pytest.mark.parametrize("name", SIZES)
def test_every_start_sees_as_many_images(name: str):
    size = SIZES[name]
    jobs = [job for job in jobs_of(size, Path("x"), list(EVERY)) if job.seed == 0]
    assert {job.start for job in jobs} == set(STARTS) | set(ABLATIONS)
    for starts, steps in ((STARTS, size.pretraining.steps), (ABLATIONS, size.ablation_steps)):
        seen = {job.start: _images(job.pretraining_config()) for job in jobs if job.start in starts}
        wanted = steps * size.pretraining.batch_size * size.pretraining.frames
        assert seen == pytest.approx(dict.fromkeys(starts, wanted), rel=0.01)


def _images(config) -> int:
    return config.steps * config.batch_size * config.frames


def test_the_whole_that_ablations_stand_beside_is_mim4d_pretrained_as_briefly():
    jobs = {job.start: job for job in jobs_of(SIZES["cpu"], Path("x"), ["mim4d", "whole"]) if job.seed == 0}
    long, brief = jobs["mim4d"].pretraining_config(), jobs["whole"].pretraining_config()
    assert brief.steps < long.steps
    assert replace(brief, steps=long.steps, out=long.out) == long


def test_pixels_are_filled_in_where_hidden(monkeypatch: pytest.MonkeyPatch):
    model = Pixels(replace(toy_config(), frames=1, mask_ratio=0.5)).eval()
    clip = toy_clip(clips=1, frames=1, cameras=1)
    painted = torch.rand(1, 3, *clip.image_size)
    monkeypatch.setattr(model.output, "forward", lambda x: painted)
    images, visible = model.normalised(clip)[0], model.visible(clip)[0, 0, 0]
    errors = []
    for row, column in (~visible).nonzero().tolist():  # slow: patch by patch
        place = (slice(None), slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
        wanted = (images[place] - images[place].mean()) / images[place].std()
        errors.append((painted[0][place] - wanted).square().mean())
    torch.testing.assert_close(model(clip)["loss"], torch.stack(errors).mean(), rtol=1e-5, atol=0)


def test_the_decoder_of_pixels_is_told_nothing_of_what_is_hidden():
    model = Pixels(replace(toy_config(), frames=1, mask_ratio=0.5)).eval()
    clip = toy_clip(clips=1, frames=1, cameras=1)
    painted = []
    model.output.register_forward_hook(lambda module, args, result: painted.append(result))
    hidden = ~model.visible(clip).flatten(0, 2)
    other = torch.where(
        hidden.repeat_interleave(32, 1).repeat_interleave(32, 2)[None, None, :, None], 255 - clip.images, clip.images
    )
    for images in (clip.images, other):
        model(replace(clip, images=images))
    assert torch.equal(*painted)


def test_unwarped_differs_from_mim4d_by_the_warp_alone():
    torch.manual_seed(0)
    model, clip = MIM4D(toy_config()), toy_clip()
    other = Unwarped(toy_config())
    other.load_state_dict(model.state_dict())
    still = replace(clip, current_from_ego=torch.eye(4).expand_as(clip.current_from_ego))
    targets = torch.tensor([[2], [2]])
    volumes = torch.randn(2, 3, 8, *toy_config().grid.shape)
    torch.testing.assert_close(
        other.warp_others(volumes, clip, targets)[0], model.warp_others(volumes, still, targets)[0]
    )
    assert (
        other.warp_others(volumes, clip, targets)[0] - model.warp_others(volumes, clip, targets)[0]
    ).abs().max() > 0.1


def test_without_continuous_time_gaps_are_counted_in_frames():
    torch.manual_seed(0)
    model, clip = Timeless(toy_config()), toy_clip(clips=2, frames=4)
    targets = torch.tensor([[0, 3], [1, 2]])
    _, gaps = model.warp_others(torch.randn(2, 4, 8, *toy_config().grid.shape), clip, targets)
    assert gaps.tolist() == [[1, 2, 3], [-3, -2, -1], [-1, 1, 2], [-2, -1, 1]]


def test_without_the_temporal_path_the_direct_losses_are_the_same():
    torch.manual_seed(0)
    model, clip = MIM4D(toy_config()).eval(), toy_clip()
    other = NoTemporalPath(toy_config()).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    whole, half = model(clip), other(clip)
    assert set(whole) - set(half) == {name for name in whole if name.startswith("temporal_")}
    torch.testing.assert_close(half["direct_depth"], whole["direct_depth"])
    assert half["loss"] < whole["loss"]


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
