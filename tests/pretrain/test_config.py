"""Settings: presets, YAML, flags, and what is refused."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mim4d.errors import UserError
from mim4d.eval.config import PRESETS as EVAL_PRESETS
from mim4d.flags import finite_number, flag_of, whole_number
from mim4d.method.model import MethodConfig
from mim4d.optim import OptimConfig, lr_scale
from mim4d.pretrain import config as config_module
from mim4d.pretrain.cli import main, parse
from mim4d.pretrain.config import PretrainConfig, check_resumable, complete, held_out_split, save_config
from mim4d.pretrain.presets import PRESETS
from mim4d.settings import overlay, preset_lines, read_yaml
from mim4d.world import WorldConfig

FIXED_FLAGS = ("data", "dataroot", "version", "split", "model", "init", "frames", "steps", "batch-size", "seed", "out")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_config_reads_back_as_itself(name, tmp_path):
    config = complete(dataclasses.replace(PRESETS[name], dataroot="/data"))
    save_config(config, tmp_path / "config.yaml")
    assert overlay(PretrainConfig(), read_yaml(tmp_path / "config.yaml"), tmp_path / "config.yaml") == config
    assert parse(["--config", str(tmp_path / "config.yaml")])[0] == config


def test_the_paper_preset_is_the_published_setting():
    paper = PRESETS["paper"]
    model = paper.model_config()
    assert (paper.frames, len(paper.cameras), paper.batch_size, paper.steps) == (4, 6, 1, 12 * 28130 // 8)
    assert (paper.optim.lr, paper.optim.weight_decay, paper.optim.clip_norm) == (4e-4, 0.01, 35)
    optim = complete(dataclasses.replace(paper, dataroot="/data")).optim
    assert (optim.backbone_scale, optim.stem_scale) == (0.1, 1)
    assert (model.encoder, model.mask_ratio, model.drop_path, model.frozen) == ("mim4d_convnext_small", 0.3, 0.2, 2)
    assert model.grid.shape == (5, 180, 180)
    assert (model.lift.num_bins, model.lift.channels, model.neck.channels, model.neck.stages) == (118, 32, 256, (3,))
    assert (model.render.rays_per_view, model.render.uniform_samples, model.render.importance_samples) == (512, 72, 24)


def test_gpu24_lifts_from_two_stages():
    assert PRESETS["gpu24"].model_config().neck.stages == (2, 3)
    assert parse(["--dataroot", "/data"])[0].method.neck.stages == (2, 3)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = write(tmp_path / "my.yaml", "preset: paper\nsteps: 7\nseed: 5\noptim: {lr: 1e-3}\n")
    config, resume = parse(["--config", file, "--seed", "6", "--optim.clip-norm", "0.5"])
    assert not resume
    assert config.preset == "paper"
    assert config.frames == PRESETS["paper"].frames
    assert (config.steps, config.seed, config.optim.lr, config.optim.clip_norm) == (7, 6, 1e-3, 0.5)
    assert parse(["--config", file, "--preset", "demo"])[0].model == PRESETS["demo"].model


def test_the_preset_follows_the_data_when_none_is_named():
    assert parse(["--data", "synthetic"])[0] == PRESETS["demo"]
    assert parse(["--data", "nuscenes", "--dataroot", "/data"])[0].preset == "gpu24"
    assert parse(["--preset", "paper", "--data=synthetic"])[0].preset == "paper"


def test_the_log_names_a_preset_that_follows_from_the_data_or_needs_a_gpu():
    assert list(preset_lines("demo", "synthetic", "cuda")) == [
        "preset: demo, the default for --data synthetic; --preset gpu24 has the settings for one GPU"
    ]
    assert list(preset_lines("paper", "nuscenes", "cpu")) == [
        "no GPU: --preset paper is made for one, --preset demo for a CPU"
    ]
    assert not list(preset_lines("gpu24", "nuscenes", "cuda"))


def test_help_lists_the_fixed_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in (*FIXED_FLAGS, "preset", "config", "resume", "optim.lr", "method.mask-ratio", "world.scenes"):
        assert f"--{flag} " in shown or f"--{flag}," in shown, flag


@pytest.mark.parametrize("kind", [PretrainConfig, OptimConfig, WorldConfig, MethodConfig])
def test_every_field_says_what_it_is(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and "Suppress" not in ast.unparse(statement.annotation):
            name = ast.unparse(statement.target)
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            section = name in ("optim", "method", "world")
            assert told or section, f"{kind.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4", "unknown key batchsize; did you mean batch_size?"),
        ("optim: {learning_rate: 1}", "unknown key optim.learning_rate; see mim4d-pretrain --help"),
        ("method: {grid: {voxels: [1, 1, 1]}}", "unknown key method.grid.voxels; did you mean method.grid.voxel?"),
        ("method: {encoder: mim4d_convnext_tiny}", "unknown key method.encoder; "),
        ("steps: many", "steps = 'many' is not of type int"),
        ("optim: 3", "optim must hold settings of its own, not 3"),
        ("optim: {lr: fast}", "could not convert string to float: 'fast'"),
        ("data: kitti", "data = 'kitti' is not of type"),
        ("steps: 0", "steps = 0 must be at least 1"),
        ("optim: {clip_norm: 0}", "optim.clip_norm = 0"),
        ("method: {mask_ratio: 1.5}", "mask_ratio = 1.5 must be at least 0 and below 1"),
        ("[1, 2]", "must hold settings"),
        ("a: b: c", "is not YAML"),
        ("preset: huge", "--preset huge: expected one of camera, demo, gpu24, paper"),
        ("preset: [a]", "--preset ['a']: expected one of camera, demo, gpu24, paper"),
    ],
)
def test_a_wrong_config_file_is_refused_by_name(text, message, tmp_path):
    file = write(tmp_path / "wrong.yaml", text)
    with pytest.raises(UserError) as refusal:
        parse(["--config", file])
    assert message in str(refusal.value)
    assert "wrong.yaml" in str(refusal.value) or "--preset" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_config_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("out: Läufe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml is not YAML: .*utf-8"):
        parse(["--config", str(tmp_path / "latin.yaml")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 0", "--steps 0 must be at least 1"),
        ("--frames 0", "--frames 0 must be at least 1"),
        ("--seed -1", "--seed -1 must be at least 0"),
        ("--method.lift.depth-step 0", "--method.lift.depth-step 0.0 must be more than 0"),
        ("--method.lift.depth-step -1", "--method.lift.depth-step -1.0 must be more than 0"),
        ("--method.lift.depth-step 0.7", "--method.lift.depth-range 1 60 is not a whole number of 0.7 m bins"),
        ("--method.lift.depth-range 9 3", "--method.lift.depth-range 9 3 must rise"),
        ("--method.lift.channels 0", "--method.lift.channels 0 must be at least 1"),
        ("--method.neck.channels 0", "--method.neck.channels 0 must be at least 1"),
        ("--method.neck.stages 3 2", "--method.neck.stages 3 2 must rise within 0 .. 3"),
        ("--method.temporal.short-channels 6", "--method.temporal.short-channels 6 must be a multiple of 4"),
        ("--method.temporal.points 0", "--method.temporal.points 0 must be at least 1"),
        ("--method.drop-path 1", "--method.drop-path 1.0 must be at least 0 and below 1"),
        ("--method.frozen -1", "--method.frozen -1 must be at least 0"),
        ("--method.loss.rgb -1", "--method.loss.rgb -1.0 must be at least 0"),
        ("--optim.ema-decay 2", "--optim.ema-decay 2.0 must lie in 0 .. 0.999999"),
        ("--batch-size 1e9", "--batch-size 1000000000 must be at most 1024"),
        ("--frames 1e6", "--frames 1000000 must be at most 1000"),
        ("--image-size 1e6 1e6", "--image-size 1000000 1000000 must be at most 8192 each"),
        ("--method.grid.voxel 1e-3 1e-3 1e-3", "--method.grid.voxel 0.001 0.001 0.001 m makes 9.33e+13 voxels"),
        ("--method.grid.voxel 7 0.6 1.6", "--method.grid.x -54 54 m is not a whole number of voxels of 7 m"),
        ("--method.render.rays-per-view 1e9", "--method.render.rays-per-view 1000000000 must be at most 65536"),
        ("--method.render.uniform-samples 1e9", "--method.render.uniform-samples 1000000000 must be at most 4096"),
        ("--method.lift.channels 1e6", "--method.lift.channels 1000000 must be at most 4096"),
        ("--method.lift.depth-step 1e-4", "--method.lift.depth-step 0.0001 makes 590000 bins"),
        ("--method.neck.channels 1e6", "--method.neck.channels 1000000 must be at most 4096"),
        ("--method.temporal.points 1e6", "--method.temporal.points 1000000 must be at most 64"),
        ("--optim.accumulate 1e9", "--optim.accumulate 1000000000 must lie in 1 .. 65536"),
        ("--data synthetic --world.scenes 1e7", "--world.scenes 10000000 must be at most 850"),
        ("--workers 1e9", "--workers 1000000000 must be at most 1024"),
        ("--steps 1.5", "--steps: expected a whole number, got '1.5'"),
        ("--steps 1e30", "--steps: expected a whole number below 2^63, got 1e30"),
        ("--image-size 64 x", "--image-size 64 x: expected INT INT"),
        ("--supervision red", "invalid choice 'red' for argument '--supervision'. Expected one of ('rgbd', 'rgb')"),
        ("--data", "--data: expected one argument (see mim4d-pretrain --help)"),
        ("--config=", "--config is empty: give a YAML file of settings"),
        ("--preset=", "--preset : expected one of camera, demo, gpu24, paper"),
        ("--stepps 3", "--stepps, 3; did you mean --steps?"),
        ("--steps", "--steps"),
        ("--data synthetic --world.scenes 0", "--world.scenes 0 must be at least 1"),
        ("--data synthetic --world.seed -1", "--world.seed -1 must be at least 0"),
        ("--data synthetic --world.scenes 300 --version v1.0-mini", "--world.scenes 300 must be at most 10"),
        ("--data synthetic --split scene-9999", "split scene-9999: neither a split"),
        ("--data synthetic --val-split mini_val", "split mini_val: none of its scenes is in a world of v1.0-trainval"),
        ("--data synthetic --cameras CAM_ROOF", "--cameras CAM_ROOF: a synthetic world has CAM_FRONT_LEFT, "),
        ("--data synthetic --frames 40", "--frames 40 0.5 s apart do not fit into a scene of 2.5 s"),
        ("--data synthetic --world.camera-rate 3", "--world.camera-rate 3 must be a multiple of 2 Hz"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_flag(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*flags.split(), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def sections_of(config: object, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Each setting of one number: its section, the section's name, its own name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from sections_of(value, f"{prefix}{field.name}.")
        elif type(value) in (int, float) and not prefix.startswith("world."):  # checked where it is drawn
            yield prefix, config, field.name


@pytest.mark.parametrize("config", [PRESETS["demo"], EVAL_PRESETS["demo"]], ids=["pretrain", "eval"])
def test_every_number_has_a_bound_and_names_its_flag(config):
    for prefix, section, name in sections_of(config):
        if (prefix, name) in {("method.", "frames")}:  # set above
            continue
        with pytest.raises(ValueError, match=r"^[\w.]+ = -1") as refusal:
            dataclasses.replace(section, **{name: -1})
        flag = "--" + f"{prefix}{name}".replace("_", "-")
        assert flag_of(str(refusal.value).split(" = ")[0], type(config)) == flag


@pytest.mark.parametrize("text", ["", "nan", "inf", "text", "1e400", "0x10"])
def test_what_is_no_number_is_refused(text):
    for read in (whole_number, finite_number):
        with pytest.raises(ValueError, match="expected a"):
            read(text)


def test_a_number_may_be_written_with_an_exponent():
    assert parse(["--dataroot", "/data", "--steps", "1e6", "--optim.lr", "1e-4"])[0].steps == 1_000_000


def test_a_version_that_the_root_does_not_have_is_answered_with_those_it_has(tiny_world):
    with pytest.raises(UserError, match=rf"version = v1.0-trainvall is not in {tiny_world}: it has v1.0-mini"):
        complete(PretrainConfig(dataroot=str(tiny_world), version="v1.0-trainvall"))


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.yaml: No such file"):
        parse(["--config", str(tmp_path / "nothing.yaml")])


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    file = write(tmp_path / "numbers.yaml", "optim: {lr: 4e-4, ema_decay: 0}\nframe_gap: 1\nimage_size: [64, 96]")
    config = parse(["--config", file])[0]
    assert (config.optim.lr, config.optim.ema_decay, config.frame_gap, config.image_size) == (4e-4, 0.0, 1.0, (64, 96))


@pytest.mark.parametrize(
    ("version", "split", "held_out"),
    [
        ("v1.0-trainval", "train", "val"),
        ("v1.0-mini", "mini_train", "mini_val"),
        ("v1.0-test", "test", "none"),
    ],
)
def test_splits_follow_from_the_version(version, split, held_out):
    config = complete(PretrainConfig(dataroot="/data", version=version))
    assert (config.split, held_out_split(config)) == (split, held_out)


def test_a_version_of_ones_own_needs_a_split():
    with pytest.raises(UserError, match="--split"):
        complete(PretrainConfig(dataroot="/data", version="v2-fleet"))
    config = complete(PretrainConfig(dataroot="/data", version="v2-fleet", split="a,b"))
    assert held_out_split(config) == "none"


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="--dataroot"):
        complete(PretrainConfig())
    with pytest.raises(UserError, match=r"did you mean mim4d_convnext_small\?"):
        complete(PretrainConfig(dataroot="/data", model="mim4d_convnext_smal"))
    with pytest.raises(UserError, match="--model swin_tiny_patch4_window7_224: SwinTransformer has no masked forward"):
        complete(PretrainConfig(dataroot="/data", model="swin_tiny_patch4_window7_224", image_size=(224, 224)))
    with pytest.raises(UserError, match=r"image_size = 256 704: both must be multiples of 28, such as 252 700"):
        complete(PretrainConfig(dataroot="/data", model="vit_small_patch14_dinov2"))
    with pytest.raises(UserError, match=r"method.frozen = 6 must be at most 5"):
        complete(PretrainConfig(dataroot="/data", init="convnext_small", method=MethodConfig(frozen=6)))
    with pytest.raises(UserError, match="--init scratch"):
        complete(PretrainConfig(dataroot="/data", method=MethodConfig(frozen=2)))


def test_the_backbone_learns_slower_only_where_it_knows_something():
    def rates(init, **changes):
        optim = complete(PretrainConfig(dataroot="/data", init=init, optim=OptimConfig(**changes))).optim
        return optim.backbone_scale, optim.stem_scale

    assert rates("scratch") == (1, 1)
    assert rates("convnext_small") == (0.3, 0.01)
    assert rates("convnext_small", backbone_scale=0.1, stem_scale=1.0) == (0.1, 1)
    assert rates("scratch", backbone_scale=0.5, stem_scale=0.8) == (0.5, 0.8)


def test_the_run_says_what_the_model_is():
    config = PretrainConfig(model="mim4d_convnext_tiny", frames=5, supervision="rgb")
    model = config.model_config()
    assert (model.encoder, model.frames, model.supervision) == ("mim4d_convnext_tiny", 5, "rgb")
    assert not config.data_config("train").lidar


def test_a_resumed_run_may_change_what_does_not_touch_its_model_or_data():
    saved = complete(PretrainConfig(dataroot="/data"))
    check_resumable(saved, dataclasses.replace(saved, steps=9, workers=0, dataroot="/moved", precision="fp32"))
    for change in ({"model": "mim4d_convnext_tiny"}, {"seed": 1}, {"frames": 2}, {"method": MethodConfig(drop_path=0)}):
        with pytest.raises(UserError, match="was started with --"):
            check_resumable(saved, dataclasses.replace(saved, **change))


def test_what_may_change_are_settings_that_exist():
    names = set(config_module.flatten(config_module.to_dict(PretrainConfig())))
    assert names > config_module.MAY_CHANGE


@given(st.integers(1, 200), st.integers(0, 300))
def test_the_learning_rate_stays_between_its_ends(steps, warmup):
    config = OptimConfig(warmup_steps=warmup)
    scales = [lr_scale(step, steps, config) for step in range(1, steps + 1)]
    assert all(0 < scale <= 1 for scale in scales)


def test_the_learning_rate_warms_up_and_cools_down():
    config = OptimConfig(warmup_steps=10)
    assert lr_scale(1, 1000, config) == pytest.approx(1 / 3)
    assert lr_scale(11, 1000, config) == pytest.approx(1, abs=1e-3)
    assert lr_scale(1000, 1000, config) == pytest.approx(1e-3)


def test_yaml_holds_plain_values_alone(tmp_path):
    save_config(PRESETS["demo"], tmp_path / "config.yaml")
    assert "!!" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["image_size"] == list(PRESETS["demo"].image_size)
