"""Geometry keeps its precision inside a trainer's bf16 autocast."""

import pytest
import torch

from mim4d.geometry import exact, pixel_rays, project, transform, unproject
from tests.toy import toy_clip


def inputs():
    """A clip, and points as far away as LiDAR sees."""
    return toy_clip(turn=0.3), torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 100 - 50


GEOMETRY = {
    "transform": lambda clip, points: transform(clip.ego_from_camera[0, 0, 1], points),
    "project": lambda clip, points: project(clip.intrinsics[0, 0, 1], points)[0],
    "unproject": lambda clip, points: unproject(clip.intrinsics[0, 0, 1], points[:, :2], points[:, 2]),
    "pixel_rays": lambda clip, points: pixel_rays(
        points[:, :2], clip.intrinsics[0, 0, 1], clip.ego_from_camera[0, 0, 1]
    )[1],
    "source_from_target": lambda clip, points: clip.source_from_target(
        torch.tensor([[2], [1]]), torch.tensor([[[0, 1]], [[0, 2]]])
    ),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_autocast_does_not_touch_geometry(name):
    clip, points = inputs()
    expected = GEOMETRY[name](clip, points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GEOMETRY[name](clip, points), expected)


def test_exact_leaves_autocast_as_it_was():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert exact(torch.matmul)(a, other=a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    assert exact(torch.matmul)(a, other=a).dtype == torch.float32
