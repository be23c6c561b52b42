"""The pictures of the gallery, drawn from a tiny world."""

import importlib.util
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.pictures import lidar_on_images
from tests.toy import toy_model

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery, learned = script("gallery"), script("learned")


@pytest.fixture
def clip(tiny_world):
    cameras = gallery.FRONT + gallery.BACK
    config = DataConfig(
        dataroot=str(tiny_world),
        version="v1.0-mini",
        split="mini_train",
        frames=3,
        cameras=cameras,
        image_size=(64, 160),
    )
    return NuScenesClips(config)[0]


def test_the_gallery_shows_the_share_of_patches_that_training_hides(clip):
    seen = gallery.hide(clip)
    hidden = (seen == gallery.HIDDEN_GREY).all(-1).unflatten(2, (2, 32)).unflatten(4, (5, 32))  # [T, V, 2, 32, 5, 32]
    assert (hidden.all(5).all(3).sum((2, 3)) == 3).all()  # 30 % of 2 x 5 patches in every image
    kept = (seen == clip.images[0].movedim(2, -1)).all(-1)
    assert kept.float().mean() >= 0.7


def test_every_picture_is_drawn_and_shown(clip):
    pictures = gallery.pictures(clip)
    stored = {path.stem: path for path in (ROOT / "docs/gallery").iterdir()}
    assert pictures.keys() == stored.keys()
    assert all(path.stat().st_size < 300_000 for path in stored.values())
    page = (ROOT / "docs/gallery.md").read_text()
    assert all(f"(gallery/{name}.jpg)" in page for name in stored)
    drawn, sheet = np.array(lidar_on_images(clip, columns=3)), np.array(pictures["lidar"])
    assert sheet.shape == (2 * 64 + 4, 3 * 160 + 2 * 4, 3)  # with gaps of 4 pixels
    assert (sheet[:64, :160] == drawn[:64, :160]).all()
    assert (sheet[-64:, -160:] == drawn[-64:, -160:]).all()


def test_learned_depth_has_the_colours_of_the_lidar_below_it(clip, monkeypatch):
    model = toy_model(encoder="mim4d_convnext_atto").eval()
    monkeypatch.setattr(model.lift, "log_depth", lambda probability: torch.full((1, 3, 6, 8, 20), 20.0).log())
    images, depth, lidar = learned.rows(model, clip)
    assert torch.equal(images, clip.images[0, -1, :3].movedim(1, -1))
    assert (depth == torch.tensor(matplotlib.colormaps["turbo_r"](20.0 / learned.FAR, bytes=True)[:3])).all()
    assert (
        lidar.numpy() == np.array(lidar_on_images(clip, far=learned.FAR))[:64].reshape(64, 3, 160, 3).swapaxes(0, 1)
    ).all()
    assert (ROOT / "docs/evidence/learned.jpg").stat().st_size < 300_000
