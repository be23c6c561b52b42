"""The demo world goes through the same reader as real data."""

import pytest
import torch

from mim4d.data import DataConfig, NuScenesClips
from mim4d.geometry import transform


@pytest.fixture
def dataset(tiny_world):
    return NuScenesClips(
        DataConfig(dataroot=str(tiny_world), version="v1.0-mini", split="mini_train", frames=3, image_size=(96, 192))
    )


def test_every_clip_is_valid(dataset):
    assert len(dataset) == 4  # two scenes of four key frames
    for clip in dataset:
        clip.validate()
        assert (clip.num_points > 1000).all()


def test_held_out_split(dataset, tiny_world):
    config = DataConfig(
        dataroot=str(tiny_world), version="v1.0-mini", split="mini_val", frames=3, image_size=(96, 192), lidar=False
    )
    held_out = NuScenesClips(config)
    assert held_out.name(0).startswith("scene-0103")
    assert held_out[0].num_points.sum() == 0


def test_what_stands_still_stays_where_it_is(dataset):
    """Above all traffic, what the LiDAR met half a second ago lies on what it meets now once the car's motion is
    undone, and not before."""

    def off(points, now):
        high = points[(points[:, 2] > 4.5) & (points[:, :2].norm(dim=1) < 40)]
        return torch.cdist(high, now).amin(1)

    undone, as_it_is = [], []
    for clip in dataset:
        past, now = (clip.points[0, t, : clip.num_points[0, t]] for t in (-2, -1))
        undone.append(off(transform(clip.current_from_ego[0, -2], past), now))
        as_it_is.append(off(past, now))
    assert torch.cat(as_it_is).median() > 1, "the car must move for this to say anything"
    assert torch.cat(undone).median() < 0.4
