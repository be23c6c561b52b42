"""``mim4d-show``: colours of features by hand, and the files that the command writes."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mim4d.backbones.named import open_backbone
from mim4d.commands import show
from mim4d.show.cli import find_images, main, read_images
from mim4d.show.depth import Depth, depth_by_probe
from mim4d.show.features import Stage, principal_components, random_mask
from mim4d.show.page import save_pages
from tests.encoders import noise


def test_components_are_those_of_a_singular_value_decomposition():
    maps = noise(2, 5, 4, 6) * torch.tensor([9.0, 5.0, 3.0, 0.1, 0.1]).view(1, 5, 1, 1)
    found = principal_components(maps)
    x = maps.movedim(1, -1).reshape(-1, 5)
    _, singular, vectors = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    alike = (found.directions.numpy() * vectors[:3].T).sum(0)
    np.testing.assert_allclose(np.abs(alike), 1, atol=1e-4)
    assert found.explained == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum(), rel=1e-4)
    colours = found.colours(maps)
    assert colours.shape == (2, 3, 4, 6)
    assert (float(colours.amin()), float(colours.amax())) == pytest.approx((0, 1), abs=1e-6)
    joint = principal_components(maps.flip(0)).colours(maps)  # over all images, in any order
    torch.testing.assert_close(joint, colours)


def test_equal_features_have_equal_colours_in_all_images():
    features = noise(3, 8, 1, 1)
    maps = features[torch.tensor([0, 1, 2, 0])].expand(4, 8, 2, 2)
    colours = principal_components(maps).colours(maps)
    assert torch.equal(colours[0], colours[3])
    assert not torch.allclose(colours[0], colours[1], atol=0.1)


def test_a_mask_hides_the_same_share_of_each_image():
    assert (~random_mask((3, 4, 10))).sum((1, 2)).tolist() == [12, 12, 12]


def put(path, seed=0, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def test_a_folder_in_nuscenes_format_gives_one_image_per_camera(tmp_path, capsys):
    for camera in ("CAM_BACK", "CAM_FRONT"):
        for number in range(3):
            put(tmp_path / f"samples/{camera}/{number}.jpg", number)
    (tmp_path / "samples/LIDAR_TOP").mkdir()
    assert [file.name for file in find_images(tmp_path)] == ["1.jpg", "1.jpg"]
    main(["mim4d_convnext_atto", str(tmp_path), "--size", "64", "96", "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert re.findall(r"^stride (\d+): three components have \d+% of the variance$", out, re.M) == [
        "4",
        "8",
        "16",
        "32",
    ]
    page = (tmp_path / "out/index.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 * 2 * 5  # two images, whole and masked, four stages
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert "CAM_BACK/1.jpg" in page
    assert Image.open(tmp_path / "out/features.png").size == (5 * 356, 24 + 4 * (round(352 * 64 / 96) + 4))


def test_files_and_a_folder_of_images(tmp_path):
    files = [put(tmp_path / f"{number:02}.png", number) for number in range(9)]
    assert find_images(files[3]) == [files[3]]
    assert len(find_images(tmp_path)) == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["."], "no images in .: expected files such as .jpg or .png, or samples/CAMERA/ with them"),
        (["text.png"], "cannot read text.png: cannot identify image file"),
        (["good.png", "--size", "60", "96"], "--size 60 96: both must be multiples of 32, such as 64 96"),
    ],
)
def test_what_cannot_be_shown_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    if argv[0] != ".":
        put(tmp_path / "good.png")
        (tmp_path / "text.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mim4d-show", "mim4d_convnext_atto", *argv])
    with pytest.raises(SystemExit) as stop:
        show()
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_lidar_shows_depth_too(tiny_world, tmp_path, capsys):
    main(["mim4d_convnext_atto", str(tiny_world), "--size", "96", "160", "--out", str(tmp_path)])
    assert "no depth" not in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "features.png"))
    height = round(352 * 96 / 160) + 4
    assert sheet.shape == (24 + 12 * height, 6 * 356, 3)  # six images, whole and masked; four stages, and depth
    cells = sheet[24:].reshape(12, height, 6, 356, 3)[:, :-4, :, :-4]
    assert (cells.std((1, 3)).max(-1) > 5).all()  # no place is left empty
    titles = sheet[:24].reshape(24, 6, 356, 3)
    assert (titles.min((0, 2)) < 100).all()  # each column has a title
    assert "<th>depth: read off; below, LiDAR</th>" in (tmp_path / "index.html").read_text()


def test_without_a_masked_forward_the_lidar_stands_beside_the_depth(tmp_path):
    images = torch.rand(1, 3, 64, 96)
    stage = Stage(stride=32, colours=torch.rand(1, 3, 2, 3), masked=None, explained=0.5)
    depth = Depth(torch.full((1, 2, 3), 10.0), torch.tensor([[[2.0, 20, 50], [torch.inf] * 3]]))
    save_pages(tmp_path, "A backbone", ["a.png"], images, [stage], torch.ones(1, 2, 3, dtype=bool), depth)
    assert Image.open(tmp_path / "features.png").size == (4 * 356, 24 + round(352 * 64 / 96) + 4)
    assert "<th>depth, read off all stages</th><th>depth, LiDAR</th>" in (tmp_path / "index.html").read_text()


def test_depth_is_near_that_of_lidar_and_not_fitted_on_its_own_moment(tiny_world):
    torch.manual_seed(0)
    model = open_backbone("mim4d_convnext_atto")
    files = find_images(tiny_world)
    images = read_images(files, 32, (96, 160))
    depth = depth_by_probe(model, lambda x: (x - 0.45) / 0.225, tiny_world, files, images)
    assert depth.read.shape == depth.measured.shape == (6, 12, 20)
    seen = (depth.measured >= 1) & (depth.measured <= 60)
    error = (depth.read.log() - depth.measured.log())[seen]
    constant = depth.measured[seen].log()
    assert error.square().mean() < 0.7 * constant.var()


def test_a_folder_whose_lidar_cannot_be_used_still_shows_features(tiny_world, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(tiny_world, root)
    for table in root.glob("*/sample.json"):
        table.write_text("[]")
    main(["mim4d_convnext_atto", str(root), "--size", "64", "96", "--out", str(tmp_path / "out")])
    assert re.search(r"^no depth is shown: .*sample", capsys.readouterr().out, re.M)
    assert (tmp_path / "out/index.html").exists()
