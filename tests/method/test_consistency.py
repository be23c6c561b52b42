"""Consistency of dense depth between images: a slow reference, and a scene whose depth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4d.clip import Clip
from mim4d.geometry import pixel_rays, transform
from mim4d.method import consistency as module
from mim4d.method.consistency import against_lidar, consistency, photometric_error, source_images
from tests.reference import consistency as reference
from tests.street import street
from tests.toy import toy_clip


def at_size(depth: Tensor, stride: int = 2) -> Tensor:
    """Log depth [B, T, V, h, w] at the middle of blocks of pixels."""
    return F.avg_pool2d(depth.flatten(0, 2).log()[:, None], stride)[:, 0].unflatten(0, depth.shape[:3])


@pytest.mark.parametrize(("frames", "cameras"), [(1, 3), (2, 1), (3, 2), (2, 4)])
def test_against_loops(frames, cameras):
    clip = toy_clip(1, frames, cameras, (16, 24), seed=frames)
    log_depth = torch.randn(1, frames, cameras, 4, 6, generator=torch.Generator().manual_seed(cameras)) * 0.5 + 2
    poses = (clip.current_from_ego[:, :, None] @ clip.ego_from_camera)[0].double().numpy()
    arguments = log_depth[0].double().numpy(), clip.images[0].double().numpy() / 255
    arguments = *arguments, clip.intrinsics[0].double().numpy(), poses
    expected = reference.consistency(*arguments, list(range(frames)))
    assert float(consistency(log_depth, clip)) == pytest.approx(expected, rel=1e-4)
    middle = slice(frames // 2, frames // 2 + 1)  # the depth of one frame, the images of all
    expected = reference.consistency(*arguments, [frames // 2])
    assert float(consistency(log_depth[:, middle], clip, middle)) == pytest.approx(expected, rel=1e-4)


def test_photometric_error_against_loops():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 6, 7, generator=generator), torch.rand(2, 3, 6, 7, generator=generator)
    expected = [
        [[reference.error_at(x, y, row, column) for column in range(1, 6)] for row in range(1, 5)]
        for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)
    ]
    torch.testing.assert_close(photometric_error(a, b).double(), torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cameras", [1, 2])
def test_the_true_depth_has_the_least_loss(cameras, monkeypatch):
    monkeypatch.setattr(module, "SMOOTHNESS", 0.0)
    clip, depth = street(cameras=cameras)
    losses = {factor: float(consistency(at_size(factor * depth), clip)) for factor in (0.5, 0.8, 0.9, 1, 1.1, 1.25, 2)}
    assert min(losses, key=losses.__getitem__) == 1, losses
    if cameras == 1:  # the camera at the back sees no wall but grazes the ground far away, finer than its pixels
        assert losses[1] < 0.5 * min(losses[0.5], losses[2])


def test_the_cameras_of_one_moment_are_enough(monkeypatch):
    """Two cameras 1 m apart that look the same way."""
    monkeypatch.setattr(module, "SMOOTHNESS", 0.0)
    clip, depth = street(frames=3)
    poses = clip.current_from_ego[:, :, None] @ clip.ego_from_camera  # [B, T, 1, 4, 4]

    def at_one_moment(x: Tensor) -> Tensor:  # [B, 3, 1, ...] -> [B, 1, 3, ...]
        return x.transpose(1, 2).contiguous()

    rig = replace(
        clip,
        images=at_one_moment(clip.images),
        intrinsics=at_one_moment(clip.intrinsics),
        ego_from_camera=at_one_moment(poses),
        **{name: getattr(clip, name)[:, -1:] for name in ("current_from_ego", "timestamps", "points", "num_points")},
        cameras=("A", "B", "C"),
    )
    depth = at_one_moment(depth)
    losses = {factor: float(consistency(at_size(factor * depth), rig)) for factor in (0.5, 0.8, 1, 1.25, 2)}
    assert min(losses, key=losses.__getitem__) == 1, losses


def test_descent_finds_the_depth():
    """From 5 m everywhere; pixels that no other frame sees are left out."""
    clip, depth = street()
    found = torch.full((1, 3, 1, 16, 24), 5.0).log().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        consistency(found, clip).sum().backward()
        optimizer.step()
    truth = at_size(depth, 4)
    close = ((found.detach() - truth).abs() < 0.22)[:, :, :, 6:, 4:-4]
    before = ((torch.tensor(5.0).log() - truth).abs() < 0.22)[:, :, :, 6:, 4:-4]
    assert close.float().mean() > 0.8
    assert before.float().mean() < 0.4


def test_a_car_that_stands_learns_from_its_other_cameras_alone():
    """Its images differ by noise, its poses by centimetres."""
    clip, _ = street(cameras=2)
    noise = torch.randint(0, 8, clip.images.shape, generator=torch.Generator().manual_seed(0))
    poses = torch.eye(4).expand(1, 3, 4, 4).clone()
    poses[0, :2, 0, 3] = torch.tensor([0.03, -0.02])
    still = replace(clip, images=(clip.images[:, :1] // 2 + noise).byte(), current_from_ego=poses)
    log_depth = torch.full((1, 3, 2, 16, 24), 2.0)

    def gradient(clip: Clip, depth: Tensor) -> Tensor:
        depth = depth.clone().requires_grad_()
        loss = consistency(depth, clip).sum()
        return torch.autograd.grad(loss, depth, allow_unused=True)[0]

    one_camera = replace(
        still,
        images=still.images[:, :, :1],
        intrinsics=still.intrinsics[:, :, :1],
        ego_from_camera=still.ego_from_camera[:, :, :1],
        cameras=still.cameras[:1],
    )
    assert gradient(one_camera, log_depth[:, :, :1]).abs().max() == 0
    one_moment = replace(
        still,
        **{name: getattr(still, name)[:, :1] for name in ("images", "intrinsics", "ego_from_camera", "points")},
        **{name: getattr(still, name)[:, -1:] for name in ("current_from_ego", "timestamps", "num_points")},
    )
    torch.testing.assert_close(3 * gradient(still, log_depth)[:, :1], gradient(one_moment, log_depth[:, :1]))


def test_what_moves_with_the_car_is_left_out(monkeypatch):
    """Rows 40 to 63 of every image are the same, such as the car's own bonnet; windows reach over its edge."""
    monkeypatch.setattr(module, "SMOOTHNESS", 0.0)
    clip, depth = street()
    images = clip.images.clone()
    images[..., 40:, :] = images[:, :1, ..., 40:, :]
    log_depth = at_size(depth).requires_grad_()
    consistency(log_depth, replace(clip, images=images)).sum().backward()
    assert log_depth.grad[..., 26:, :].abs().max() < 1e-6
    assert log_depth.grad[..., :16, :].abs().max() > 1e-6


def test_sources_are_other_frames_and_the_nearest_cameras():
    clip = toy_clip(1, 2, 4)  # cameras at 0, 90, 180 and 270 degrees
    sources = source_images(clip)[0]
    assert sources.shape == (2, 4, 3, 2)
    assert sources[0, 1, 0].tolist() == [1, 1]
    assert sorted(sources[0, 1, 1:].tolist()) == [[0, 0], [0, 2]]
    assert sorted(sources[1, 0, 1:].tolist()) == [[1, 1], [1, 3]]


def test_a_batch_is_its_clips_one_by_one():
    clips = [toy_clip(1, 3, 2, seed=seed) for seed in (1, 2)]
    log_depth = torch.randn(2, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0)) + 2
    together = consistency(log_depth, Clip.collate(clips))
    for i, clip in enumerate(clips):
        torch.testing.assert_close(together[i : i + 1], consistency(log_depth[i : i + 1], clip))


def test_gradients_are_finite_for_points_behind_a_camera():
    clip = toy_clip(1, 2, 1)
    log_depth = torch.full((1, 2, 1, 4, 6), -4.0, requires_grad=True)  # 2 cm: some lie in a source's camera plane
    consistency(log_depth, clip).sum().backward()
    assert log_depth.grad.isfinite().all()


def test_lidar_against_loops():
    clip = toy_clip(2, 2, 3, points=80)
    clip = replace(clip, num_points=torch.tensor([[50, 0], [0, 0]]))
    clip.points[0, 0, 60:] = torch.nan  # padding
    log_depth = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 2
    error, measures = against_lidar(log_depth, clip, (1.0, 15.0))
    points = [clip.points[0, t, : clip.num_points[0, t]].double().numpy() for t in range(2)]
    poses, intrinsics = clip.ego_from_camera[0].double().numpy(), clip.intrinsics[0].double().numpy()
    expected = reference.against_lidar(log_depth[0].double().numpy(), points, intrinsics, poses, (64, 96), (1.0, 15.0))
    found = [error[0], *(measures[name][0] for name in ("depth", "abs_rel", "delta"))]
    np.testing.assert_allclose([float(x) for x in found], expected, rtol=1e-4)
    assert error[1] == 0
    assert all(values[1].isnan() for values in measures.values())


def test_lidar_agrees_with_the_depth_of_the_scene():
    clip, depth = street()
    current_from_ego = clip.current_from_ego[0, -1]
    pixels = torch.tensor([[30.5, 60.5], [50.5, 20.5], [70.5, 33.5]])
    origins, directions = pixel_rays(pixels, clip.intrinsics[0, -1, 0], clip.ego_from_camera[0, -1, 0])
    axis = clip.ego_from_camera[0, -1, 0, :3, 2]
    z = depth[0, -1, 0][pixels[:, 1].long(), pixels[:, 0].long()]
    points = transform(current_from_ego, origins + directions * (z / (directions @ axis))[:, None])
    seen = replace(clip, points=points.expand(1, 3, 3, 3).clone(), num_points=torch.tensor([[0, 0, 3]]))
    error, measures = against_lidar(depth.log(), seen, (1.0, 60.0))
    assert float(error) < 1e-3
    assert float(measures["delta"]) == 1
