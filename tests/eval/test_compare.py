"""mim4d-eval compare: one table for several backbones, resumed where it stopped."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mim4d.errors import UserError
from mim4d.eval.cli import main, parse_comparison
from mim4d.eval.compare import imagenet_weights, read_row
from mim4d.eval.paired import Score, table
from mim4d.hub.folder import save_encoder
from tests.eval.runs import SIZES

SMALL = "test_resnet=random"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a pretraining leaves."""
    save_random(tmp_path / "runs/base", seed=1)
    return tmp_path / "runs/base"


def save_random(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_encoder(timm.create_model("test_resnet"), folder / "encoder")


def arguments(root: Path, out: Path, *given: object) -> list[str]:
    """A command line: backbones and flags, on the tiny world."""
    return ["compare", *map(str, given), *SIZES, "--data", "nuscenes", "--dataroot", str(root), "--out", str(out)]


def rows(printed: str) -> dict[str, list[str]]:
    """The cells of a table by its first column; differences by what they are of."""
    found, name = {}, ""
    for line in printed.splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
            name = f"{name} minus the first" if first == "- minus the first" else first
            found[name] = cells
    return found


def test_backbones_get_one_table_and_one_plot(tiny_world, tmp_path, run, capsys):
    command = arguments(tiny_world, tmp_path / "out", run, SMALL, "--task", "probe", "--seeds", 2)
    main(command)
    printed = capsys.readouterr().out
    assert "50 % of the labels (4 samples), 4 held out:" in printed
    assert "A probe trains nothing: a seed selects the labelled samples" in printed
    found = rows(printed)
    assert found["probe"] == ["depth R2", "vehicle AP", "drivable AP", "BEV vehicle AP", "BEV vehicle IoU"]
    for name in (SMALL, str(run)):
        assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d", cell) for cell in found[name])
    differences = found[f"{SMALL} minus the first"]
    assert all(re.fullmatch(r"[+-]\d+\.\d ± \d+\.\d\*?", cell) for cell in differences)
    means = [[float(cell.split()[0]) for cell in found[name]] for name in (SMALL, str(run))]
    shown = [float(cell.split()[0]) for cell in differences]
    assert shown == pytest.approx(np.subtract(*means), abs=0.11)  # of rounded means
    assert (tmp_path / "out/table.md").read_text().strip() in printed
    assert f"plot: {tmp_path / 'out/plot.png'}" in printed
    assert np.asarray(Image.open(tmp_path / "out/plot.png").convert("L"), float).std() > 10


def test_a_finished_cell_is_not_computed_again(tiny_world, tmp_path, run, capsys):
    out = tmp_path / "out"
    command = arguments(tiny_world, out, run, "--task", "probe", "--seeds", 1, "--with", "scratch")
    main(command)
    first = capsys.readouterr()
    assert "[2/2] scratch, 50 % of the labels, seed 0" in first.err
    cells = sorted(out.glob("*/*/metrics.json"))
    assert len(cells) == 2
    cells[0].unlink()  # as if it had been interrupted there
    before = [cell.stat().st_mtime_ns for cell in cells[1:]]
    main(command)
    again = capsys.readouterr()
    assert "1 of 2 cells are finished already" in again.err
    assert again.out == first.out
    assert [cell.stat().st_mtime_ns for cell in cells[1:]] == before
    save_random(run, seed=2)  # trained further since then
    main(command)
    assert "1 of 2 cells are finished already" in capsys.readouterr().err
    assert len(list(out.glob("*/*/metrics.json"))) == 3


def test_cells_of_other_settings_are_not_mixed(tiny_world, tmp_path, run, capsys):
    command = arguments(tiny_world, tmp_path / "out", SMALL, "--task", "probe", "--seeds", 1)
    main(command)
    assert "was made with --min-visibility 2, not 1: set another --out" in refused(
        [*command, "--min-visibility", "1"], capsys
    )


def test_heads_are_trained_for_every_fraction_of_the_labels(tiny_world, tmp_path, run, capsys):
    flags = ("--task", "bev-seg", "--freeze", "--labels", 1, 0.25, "--seeds", 1)
    main(arguments(tiny_world, tmp_path / "out", f"test_resnet={run}", SMALL, *flags))
    printed = capsys.readouterr().out
    quarter, whole = printed.split("100 % of the labels (8 samples)")
    assert "25 % of the labels (2 samples)" in quarter
    assert rows(whole)["bev-seg"] == ["vehicle IoU", "drivable IoU", "divider IoU"]
    assert "±" not in printed  # one seed has no interval
    assert len(list((tmp_path / "out").glob("*/labels-0.25-seed-0/losses.json"))) == 2


def test_all_labels_leave_a_seed_nothing_to_select_for_a_probe(tiny_world, tmp_path, capsys):
    main(arguments(tiny_world, tmp_path / "out", SMALL, "--task", "probe", "--labels", 0.5, 1, "--seeds", 2))
    assert {path.name for path in (tmp_path / "out").glob("*/*")} == {
        "labels-0.5-seed-0",
        "labels-0.5-seed-1",
        "labels-1-seed-0",
    }


def test_differences_are_paired_by_seed():
    """Two backbones whose scores depend on the seed, 10 points apart in each: worked by hand."""
    scores = [
        Score(row, 0.1, 6, 20, figure, {seed: start + 0.1 * seed for seed in range(3)})
        for row, start in (("a", 0.1), ("b", 0.2))
        for figure in ("map_AP", "map_AP_divider", "map_AP_boundary")
    ]
    found = rows(table(scores, "hd-map"))
    assert found["a"][0] == "20.0 ± 24.8"  # 4.303 * 10 / sqrt(3)
    assert found["b minus the first"][0] == "+10.0 ± 0.0*"


def test_a_score_that_a_seed_does_not_have_is_left_out():
    values = {"a": {0: 0.1, 1: 0.2}, "b": {0: None, 1: 0.2}}
    figures = ("map_AP", "map_AP_divider", "map_AP_boundary")
    scores = [Score(row, 1.0, 6, 20, figure, seeds) for row, seeds in values.items() for figure in figures]
    found = rows(table(scores, "hd-map"))
    assert found["b"] == found["b minus the first"] == ["-"] * 3


def test_the_demo_world_and_three_seeds_are_the_default():
    comparison = parse_comparison(["resnet18", "runs/demo", "--task", "probe", "--with", "scratch", "imagenet"])
    assert comparison.backbones == ("resnet18", "runs/demo")
    assert comparison.extra == ("scratch", "imagenet")
    assert (comparison.labels, comparison.seeds) == ((0.5,), 3)
    assert (comparison.settings.data, comparison.settings.preset) == ("synthetic", "demo")
    own = parse_comparison(["resnet18", "--task", "det3d", "--dataroot", "/data/nuscenes", "--labels", "1", "0.1"])
    assert (own.settings.data, own.settings.preset, own.labels) == ("nuscenes", "gpu24", (0.1, 1.0))


def test_a_backbone_may_have_weights_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/lr=0.1").mkdir(parents=True)
    Path("weights.pth").touch()
    assert (read_row("resnet18").backbone, read_row("resnet18").init) == ("resnet18", "pretrained")
    row = read_row(f"resnet18={tmp_path / 'weights.pth'}")
    assert (row.name, row.backbone, row.init) == (
        "resnet18=weights.pth",
        "resnet18",
        str(tmp_path / "weights.pth"),
    )
    assert read_row("runs/lr=0.1").backbone == "runs/lr=0.1"


def test_imagenet_rows_have_weights_from_imagenet():
    assert imagenet_weights("convnext_small") == "convnext_small.in12k_ft_in1k"  # timm's default
    assert imagenet_weights("tf_efficientnet_lite0") == "tf_efficientnet_lite0.in1k"
    with pytest.raises(UserError, match="timm has no ImageNet weights of vit_small_patch16_dinov3"):
        imagenet_weights("vit_small_patch16_dinov3")


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; its last line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--task", "probe", SMALL), "expected the backbones first"),
        ((SMALL,), "--task"),
        ((SMALL, "--task", "probes"), "--task: invalid choice: 'probes'"),
        ((SMALL, "resnet19", "--task", "probe"), "error: resnet19: Unknown model (resnet19)"),
        ((SMALL, "/no/such/run", "--task", "probe"), "no such folder: /no/such/run"),
        ((SMALL, "test_vit=/no/such.pth", "--task", "probe"), "/no/such.pth: no such file or folder"),
        ((SMALL, "=x.pth", "--task", "probe"), "=x.pth: expected NAME=WEIGHTS"),
        ((SMALL, __file__, "--task", "probe"), f"name its architecture too, such as resnet50={__file__}"),
        ((SMALL, SMALL, "--task", "probe"), "have the same weights: name one of them"),
        ((SMALL, "--task", "probe", "--init", "random"), "--init: write BACKBONE or BACKBONE=WEIGHTS"),
        ((SMALL, "--task", "probe", "--labels", "0.5", "2"), "--labels 2.0 must be above 0 and at most 1"),
        ((SMALL, "--task", "probe", "--labels", "1", "0.1"), "--labels 0.1 leaves 1 of 8 training samples"),
        ((SMALL, "--task", "probe", "--seeds", "0"), "--seeds 0: expected at least 1"),
        ((SMALL, "--task", "probe", "--step", "3"), "--step"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_scored(given, message, tiny_world, tmp_path, capsys):
    error = refused(arguments(tiny_world, tmp_path / "out", *given), capsys)
    assert error.startswith("error: ")
    assert message in error
    assert not list((tmp_path / "out").glob("*/*/metrics.json"))
