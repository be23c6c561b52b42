"""mim4d-eval: what a run leaves, that it can be repeated, and bad input in one line."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mim4d.errors import UserError
from mim4d.eval.cli import main, parse
from mim4d.eval.config import EvalConfig
from mim4d.eval.data import EvalData
from mim4d.eval.headline import headline
from mim4d.eval.model import make_encoder
from mim4d.eval.run import Run, evaluate, seeded_encoder
from mim4d.hub.folder import save_encoder
from mim4d.pretrain.presets import DEMO as PRETRAINING
from tests.eval.runs import arguments, tiny
from tests.imagenet import efficientnet_lite0

FIGURES = {
    "bev-seg": ("iou_vehicle", "iou_drivable", "iou_divider", "iou_crossing", "iou_best_vehicle", "ap_vehicle"),
    "det3d": ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "AP_car"),
    "hd-map": ("map_AP", "map_AP_divider", "map_AP_boundary", "map_AP_crossing", "map_AP_divider_0.5"),
}
FILES = {"metrics.json", "losses.json", "picture.png"}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pretraining leaves."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run") / "encoder"
    save_encoder(timm.create_model("mim4d_convnext_atto"), folder)
    return folder


def build(config: EvalConfig, data: EvalData) -> Run:
    """A run with its own backbone."""
    return Run(config, data, seeded_encoder(config)[0])


@pytest.mark.parametrize("task", FIGURES)
def test_a_run_leaves_its_figures(task, tiny_world, tmp_path, encoder_folder):
    """The command itself, with what a pretraining exported."""
    out = tmp_path / "run"
    main(arguments(tiny_world, out, "--task", task, "--backbone", str(encoder_folder.parent), "--init", "pretrained"))
    figures = json.loads((out / "metrics.json").read_text())
    assert set(FIGURES[task]) <= figures.keys()
    assert all(figures[name] is None or figures[name] >= 0 for name in FIGURES[task])
    assert figures["settings"]["task"] == task
    assert (figures["samples"], figures["val_samples"]) == (8, 4)
    assert len(json.loads((out / "losses.json").read_text())) == 3
    own = {"submission.json", "metrics_summary.json", "metrics_details.json"} if task == "det3d" else set()
    assert {path.name for path in out.iterdir()} == FILES | own
    picture = np.asarray(Image.open(out / "picture.png").convert("L"), float)
    assert picture.std() > 20


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "mim4d_convnext_atto"])
@pytest.mark.parametrize("freeze", [True, False])
def test_any_backbone_frozen_or_trained(backbone, freeze, tiny_world, tmp_path, data):
    config = tiny(tiny_world, tmp_path, "--backbone", backbone, "--freeze" if freeze else "--no-freeze")
    run = build(config, data)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    losses = run.train(_silent())
    assert len(losses) == config.steps
    assert np.isfinite(losses).all()
    for name, value in run.model.state_dict().items():
        if name.startswith("encoder.") and freeze:
            assert torch.equal(value, before[name]), name  # the statistics of norms, too
    moved = [n for n, v in run.model.state_dict().items() if not torch.equal(v, before[n])]
    assert any(name.startswith("view.") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) == (not freeze)


def _silent():
    from rich.console import Console

    return Console(quiet=True)


def test_the_same_command_gives_the_same_figures(tiny_world, tmp_path, data):
    first, again, other = (
        evaluate(tiny(tiny_world, tmp_path / name, "--seed", seed, "--workers", workers), d, quiet=True)
        for name, seed, workers, d in (("a", "0", "0", data), ("b", "0", "2", None), ("c", "1", "0", data))
    )
    same = [name for name in first if name not in ("seconds", "settings")]
    assert [first[name] for name in same] == [again[name] for name in same]
    assert first["loss"] != other["loss"]


def test_the_backbone_is_created_once_and_follows_from_the_seed(tiny_world, tmp_path, data, monkeypatch):
    encoders = []

    def make(*args, **kwargs):
        made = make_encoder(*args, **kwargs)
        encoders.append({name: value.clone() for name, value in made[0].state_dict().items()})
        return made

    monkeypatch.setattr("mim4d.eval.run.make_encoder", make)
    torch.manual_seed(99)  # of no consequence
    evaluate(tiny(tiny_world, tmp_path / "run", "--seed", "5"), data, quiet=True)
    evaluate(tiny(tiny_world, tmp_path / "opens-the-data", "--seed", "5"), quiet=True)
    assert len(encoders) == 2  # one per run
    torch.manual_seed(5)
    for name, value in make_encoder("mim4d_convnext_atto", "random")[0].state_dict().items():
        assert all(torch.equal(encoder[name], value) for encoder in encoders), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_backbone_in_either_precision(precision, tiny_world, tmp_path):
    """Its maps are cached in float16, and read again in later steps."""
    figures = evaluate(tiny(tiny_world, tmp_path / "run", "--freeze", "--precision", precision), quiet=True)
    assert 0 <= figures["iou_vehicle"] <= 1


def test_kept_maps_of_a_frozen_backbone_change_nothing(tiny_world, tmp_path, data):
    run = build(tiny(tiny_world, tmp_path, "--freeze"), data)
    model = run.model.eval()
    numbers = [1, 4]
    from mim4d.clip import Clip

    clip = Clip.collate([data.train.clip(number) for number in numbers])
    with torch.no_grad():
        straight = model(clip)
    for _ in range(2):  # computed, then kept
        torch.testing.assert_close(run.predict(model, "train", numbers), straight, atol=2e-2, rtol=2e-2)


def test_few_labels_are_used_where_few_are_asked_for(tiny_world, tmp_path, data):
    figures = evaluate(tiny(tiny_world, tmp_path / "run", "--labels", "0.25"), data, quiet=True)
    assert figures["samples"] == 2


def test_data_of_other_settings_is_refused(tiny_world, tmp_path, data):
    with pytest.raises(ValueError, match="opened for"):
        evaluate(tiny(tiny_world, tmp_path, "--image-size", "64", "96"), data)


def test_heads_start_the_same_under_any_weights(tiny_world, tmp_path, data, encoder_folder):
    random = build(tiny(tiny_world, tmp_path), data)
    flags = ("--backbone", str(encoder_folder), "--init", "pretrained")
    pretrained = build(tiny(tiny_world, tmp_path, *flags), data)
    theirs = pretrained.model.state_dict()
    alike = {name: torch.equal(value, theirs[name]) for name, value in random.model.state_dict().items()}
    assert all(same for name, same in alike.items() if not name.startswith("encoder."))
    assert not all(same for name, same in alike.items() if name.startswith("encoder."))


def test_the_backbone_learns_at_a_lower_rate(tiny_world, tmp_path, data):
    run = build(tiny(tiny_world, tmp_path, "--optim.lr", "1e-3", "--optim.backbone-scale", "0.2"), data)
    assert {round(group["peak"], 9) for group in run.optimizer.param_groups} == {1e-3, 2e-4}


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "0"), "--labels 0.0 must be above 0 and at most 1"),
        (("--labels", "1.5"), "--labels 1.5 must be above 0"),
        (("--steps", "0"), "--steps 0 must be at least 1"),
        (("--optim.stem-scale", "0.8"), "--optim.stem-scale 0.8 must be 1 here"),
        (("--preset", "cloud"), "--preset cloud: expected one of demo, gpu24"),
        (("--min-visibility", "5"), "--min-visibility 5 must be at most 4"),
        (("--backbone", "resnet19"), "--backbone resnet19: Unknown model (resnet19)"),
        (("--init", "/no/such/file.pth"), "--init /no/such/file.pth: no such file or folder"),
        (("--init", "scratch"), "--init scratch: timm has no weights scratch"),
        (("--init", "mim4d_resnet18"), "--init mim4d_resnet18: "),
        (("--backbone", "swin_tiny_patch4_window7_224"), "channels last"),
        (("--backbone", "/no/such/run"), "no such folder: /no/such/run"),
        (("--backbone", "mim4d_convnext_large", "--init", "pretrained"), "mim4d_convnext_large"),
        (("--dataroot", "/no/such/root"), "--dataroot /no/such/root: no such folder"),
        (("--dataroot", ""), "--data nuscenes needs --dataroot"),
        (("--version", "v1.0-trainval"), "--version v1.0-trainval is not in"),
        (("--version", "v1.0-testt"), "--version v1.0-testt is not in"),
        (("--dataroot", "/no/such/root", "--version", "v1.0-test"), "set --split to train on and --val-split"),
        (("--val-split", "scene-9999"), "split scene-9999: neither a split"),
        (("--task", "det3d", "--val-split", "scene-0103", "--steps", "1"), "cannot score"),
        (("--batch-size", "1e9"), "--batch-size 1000000000 must be at most 1024"),
        (("--model.channels", "1e6"), "--model.channels 1000000 must be at most 4096"),
        (("--model.levels", "1e6"), "--model.levels 1000000 must be at most 256"),
        (("--model.coarse", "3"), "--model.coarse 3 must divide the labels' 200 x 200 cells"),
        (("--task", "hd-map", "--model.channels", "18"), "--model.channels 18"),
        (("--optim.lr", "1e30", "--steps", "30", "--optim.clip-norm", "1e30"), "lower --optim.lr"),
        (("--task", "hd-map", "--optim.lr", "1e30", "--steps", "30", "--optim.clip-norm", "1e30"), "lower --optim.lr"),
    ],
)
def test_bad_input_is_one_line(flags, message, tiny_world, tmp_path, capsys):
    assert message in refused(arguments(tiny_world, tmp_path / "run", *flags), capsys)


def test_a_result_is_not_overwritten(tiny_world, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    assert "already holds a result" in refused(arguments(tiny_world, tmp_path), capsys)
    (tmp_path / "file").write_text("")
    assert "cannot write to the folder" in refused(arguments(tiny_world, tmp_path / "file"), capsys)


def test_wrong_flags_end_with_two(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--task", "driving", "--data", "synthetic"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "--task" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["samples/CAM_BACK/m0553-*", "maps/expansion/boston-seaport.json"])
def test_what_the_scores_would_lack_is_named_before_the_training(lacking, tiny_world, tmp_path, capsys):
    root = shutil.copytree(tiny_world, tmp_path / "root")
    file = sorted(root.glob(lacking))[-1]
    file.unlink()
    with pytest.raises(SystemExit) as stop:
        main(arguments(root, tmp_path / "run", "--split", "scene-0061", "--val-split", "scene-0553"))
    assert stop.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert str(file) in told
    assert "--on-error" not in told  # which is not for scores


def test_help_names_every_setting():
    """As the installed command says it."""
    code = "from mim4d.commands import evaluate; evaluate()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for flag in ("task", "backbone", "init", "freeze", "data", "dataroot", "version", "labels", "steps", "seed", "out"):
        assert f"--{flag}" in done.stdout


@pytest.mark.parametrize("backbone", ["resnet18", "test_vit", "ese_vovnet19b_dw"])
def test_backbones_of_any_strides_score(backbone, tiny_world, tmp_path):
    """Four or five maps, and one at stride 16."""
    flags = ["--backbone", backbone, "--init", "random", "--image-size", "64", "128"]
    figures = evaluate(tiny(tiny_world, tmp_path / "run", *flags), quiet=True)
    assert 0 <= figures["iou_vehicle"] <= 1


def test_a_backbone_starts_from_imagenets_weights_in_a_file(tiny_world, tmp_path, capsys):
    file = efficientnet_lite0(tmp_path)
    flags = ("--backbone", "tf_efficientnet_lite0", "--init", str(file), "--freeze", "--image-size", "64", "128")
    main(arguments(tiny_world, tmp_path / "run", *flags))
    told = capsys.readouterr().err
    assert f"294 of 294 tensors from {file}, 0 missing, left out: classifier.bias, classifier.weight" in told
    assert f"(weights of {file})" in told
    found = make_encoder("tf_efficientnet_lite0", str(file))[0].state_dict()
    weights = load_file(file)
    assert found.keys() == weights.keys() - {name for name in weights if name.startswith(("conv_head", "bn2", "cla"))}
    assert all(torch.equal(value, weights[name]) for name, value in found.items())


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "vit_tiny_patch16_dinov3_qkvb", "mim4d_resnet18"])
def test_weights_from_a_file_are_those_that_timm_would_compute_with(name, tmp_path):
    torch.manual_seed(5)
    plain = timm.create_model(name, num_classes=7).eval()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    encoder, about = make_encoder(name, str(tmp_path / "weights.safetensors"))
    images = torch.rand(1, 3, *plain.pretrained_cfg["input_size"][1:])
    maps = plain.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(encoder.eval()(images)[-1], maps[-1])
    assert "0 missing" in about
    assert "state_dict" not in encoder.pretrained_cfg  # it would be copied with the model


def test_a_folders_architecture_can_start_from_other_weights(tmp_path, encoder_folder):
    torch.manual_seed(6)
    other = timm.create_model("mim4d_convnext_atto").state_dict()
    save_file(other, tmp_path / "other.safetensors")
    found = make_encoder(str(encoder_folder), str(tmp_path / "other.safetensors"))[0].state_dict()
    assert torch.equal(found["stem_0.weight"], other["stem.0.weight"])


def test_images_that_are_no_multiples_of_the_coarsest_stride_are_refused():
    with pytest.raises(UserError, match="image_size = 100 128: both must be multiples of 32, such as 96 128"):
        make_encoder("resnet18", "random", image_size=(100, 128))


def test_a_bad_backbone_is_refused_before_a_world_is_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mim4d.eval.data.synthetic_root", None)
    flags = ["--task", "bev-seg", "--data", "synthetic", "--out", str(tmp_path / "run")]
    assert "--backbone resnet19" in refused([*flags, "--backbone", "resnet19", "--init", "random"], capsys)
    assert "--image-size 100" in refused(
        [*flags, "--backbone", "resnet18", "--init", "random", "--image-size", "100", "128"], capsys
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "scene-9999"], "split scene-9999: neither a split"),
        (["--split", "mini_train"], "split mini_train: none of its scenes is in a world of v1.0-trainval"),
        (["--val-split", "scene-0003,scene-9999"], "split scene-9999: neither a split"),
        (["--world.scenes", "1"], "split val: none of its scenes is in a world of v1.0-trainval with --world.scenes 1"),
        (["--cameras", "CAM_ROOF"], "--cameras CAM_ROOF: a synthetic world has CAM_FRONT_LEFT, "),
        (["--lidar", "TOP"], "--lidar TOP: a synthetic world has LIDAR_TOP"),
        (["--task", "det3d", "--val-split", "scene-0003"], "the nuscenes-devkit scores det3d on val"),
    ],
)
def test_a_drawn_world_is_known_before_it_is_drawn(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mim4d.eval.data.synthetic_root", None)
    task = [] if "--task" in flags else ["--task", "bev-seg"]
    out = tmp_path / "run"
    random = ["--data", "synthetic", "--backbone", "resnet18", "--init", "random", "--out", str(out)]
    assert message in refused([*task, *random, *flags], capsys)
    assert not out.exists()


def test_the_demo_is_scored_on_its_own_world():
    config = parse(["--task", "bev-seg", "--data", "synthetic"])
    assert (config.world, config.version) == (PRETRAINING.world, PRETRAINING.version)


def test_the_end_names_the_figures_and_a_baseline_or_how_to_get_one(tmp_path):
    settings = {"task": "bev-seg", "init": "pretrained", "labels": 0.1, "image_size": [64, 128], "out": "a"}
    figures = {"iou_vehicle": 0.125, "iou_drivable": 0.5, "iou_divider": None, "settings": settings}
    flags = ["--task", "bev-seg", "--labels=0.1", "--init", "pretrained", "--backbone", "runs/my demo", "--out=a"]
    first, second = headline(figures, tmp_path / "a", flags)
    assert first == "vehicle IoU 12.5 %, drivable IoU 50.0 % (pretrained weights)"
    from_file = {**figures, "settings": {**settings, "init": "w.pth"}}
    assert headline(from_file, tmp_path / "a", flags)[0].endswith("(weights of w.pth)")
    told, *words = shlex.split(second)
    assert told == "baseline:"
    assert parse([*words[1:], "--dataroot", "/data"]) == parse(
        [*flags, "--init", "random", "--out", str(tmp_path / "a-random"), "--dataroot", "/data"]
    )
    (tmp_path / "a-random").mkdir()
    (tmp_path / "a-random/metrics.json").write_text("{}")  # of other settings
    assert second.replace("a-random", "a-random-2") == headline(figures, tmp_path / "a", flags)[1]
    for name, labels in (("b", 0.1), ("c", 1.0)):
        other = {**settings, "init": "random", "labels": labels, "out": name}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"iou_vehicle": labels, "settings": other}))
    assert headline(figures, tmp_path / "a", flags)[1] == f"vehicle IoU 10.0 % (random weights, {tmp_path / 'b'})"
