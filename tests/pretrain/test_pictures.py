"""Pictures of what a model renders."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mim4d.pretrain.pictures import MAX_DEPTH, _depth_colours, render_views, save_animation, save_picture
from tests.toy import toy_clip, toy_model


def moments(*seconds: float):
    """Single clips of different images, one for each time of the current frame."""
    times = [torch.tensor([[second - 0.5, second]], dtype=torch.float64) for second in seconds]
    return [replace(toy_clip(clips=1, frames=2, seed=seed), timestamps=time) for seed, time in enumerate(times)]


def test_one_camera_is_rendered_as_among_all():
    model, clip = toy_model(frames=2), toy_clip(clips=1, frames=2, cameras=3)
    whole, alone = render_views(model, clip), render_views(model, clip, cameras=slice(1, 2))
    for kind in ("direct", "temporal"):
        torch.testing.assert_close(alone.rgb[kind], whole.rgb[kind][1:2])
        torch.testing.assert_close(alone.depth[kind], whole.depth[kind][1:2], equal_nan=True)


def test_a_picture_has_a_column_of_lidar_where_there_is_lidar(tmp_path):
    clip = toy_clip(clips=1, frames=2)
    widths = {}
    for name, points in {"with": clip.num_points, "without": torch.zeros_like(clip.num_points)}.items():
        save_picture(toy_model(frames=2), replace(clip, num_points=points), tmp_path / f"{name}.png", stride=16)
        with Image.open(tmp_path / f"{name}.png") as picture:
            widths[name] = picture.width
    assert widths["with"] - widths["without"] == pytest.approx(2.6 * 120, abs=2)  # one column less


def test_an_animation_goes_at_the_pace_of_the_recording(tmp_path):
    """A jump to another scene, later or earlier, is a pause, as is the end before it begins again."""
    path = tmp_path / "loop.webp"
    save_animation(toy_model(frames=2), moments(100.0, 100.5, 100.75, 900.0, 50.0), path, stride=16)
    durations = []
    with Image.open(path) as animation:
        for frame in range(animation.n_frames):
            animation.seek(frame)
            animation.load()
            durations.append(animation.info["duration"])
        assert animation.info["loop"] == 0
    assert durations == [500, 250, 1000, 1000, 1000]
    assert [file.name for file in tmp_path.iterdir()] == ["loop.webp"]


def test_an_animation_shows_the_front_camera_or_the_first(tmp_path):
    clip = replace(toy_clip(clips=1, frames=1, cameras=2), cameras=("CAM_BACK", "CAM_FRONT"))
    clip.images[0, -1, 0], clip.images[0, -1, 1] = 20, 220  # the front is bright
    for cameras, brightness in ((clip.cameras, 220), (("left", "right"), 20)):
        save_animation(toy_model(frames=1), [replace(clip, cameras=cameras)], tmp_path / "loop.webp")
        with Image.open(tmp_path / "loop.webp") as animation:
            assert animation.size == (2 * 96, 2 * (64 + 14))  # without a temporal path: one row of renderings
            assert np.asarray(animation.convert("RGB"))[20:70, 4:90].mean() == pytest.approx(brightness, abs=3)


def test_an_animation_leaves_the_model_and_the_random_state_as_they_were(tmp_path):
    model = toy_model(frames=2).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    save_animation(model, moments(1.0, 1.5), tmp_path / "loop.webp", stride=16)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_near_is_red_far_is_blue_and_nothing_is_black():
    near, far, beyond, nothing = _depth_colours(np.array([[8.0, 0.85 * MAX_DEPTH, 2 * MAX_DEPTH, np.nan]]))[0].tolist()
    assert near[0] > 150 > near[2]
    assert far[2] > 150 > far[0]
    assert beyond == _depth_colours(np.array([[MAX_DEPTH]]))[0, 0].tolist()
    assert nothing == [0, 0, 0]
