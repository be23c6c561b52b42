"""Rays: their pixels, their LiDAR points, and the observations along them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, make_pose, project, transform
from mim4d.method.rays import Rays, choose_rays, transform_rays, with_depth_of_lift
from tests.reference import lidar_rays as reference
from tests.street import WALL, street, texture
from tests.toy import toy_clip, toy_grid

GRID = toy_grid()
FIELDS = ("origins", "directions", "rgb", "depth", "valid", "has_depth")


def targets_of(clip: Clip, *frames: int) -> torch.Tensor:
    return torch.tensor([frames] * clip.batch_size)


def seen_by_loops(clip: Clip, b: int, t: int, v: int) -> dict:
    like = torch.zeros((), dtype=torch.float64)
    return reference.seen_points(
        clip.points[b, t, : clip.num_points[b, t]].double().numpy(),
        clip.intrinsics[b, t, v].double().numpy(),
        clip.ego_from_camera[b, t, v].double().numpy(),
        clip.image_size,
        GRID.low(like).numpy(),
        GRID.high(like).numpy(),
    )


def view(rays: Rays, clip: Clip, g: int, v: int) -> dict[str, torch.Tensor]:
    """The rays of one image."""
    per_view = rays.valid.shape[1] // clip.num_cameras
    return {name: getattr(rays, name)[g, v * per_view : (v + 1) * per_view] for name in FIELDS}


# LiDAR pixels


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("per_view", [5, 40, 400])
def test_every_valid_ray_passes_through_its_lidar_point(per_view, seed):
    clip = toy_clip(points=300, seed=seed)
    clip.num_points[1, 2] = 100
    frames = [2, 0]
    rays = choose_rays(clip, targets_of(clip, *frames), per_view, GRID, "rgbd")
    for b in range(2):
        for k, t in enumerate(frames):
            for v in range(2):
                seen = seen_by_loops(clip, b, t, v)
                mine = view(rays, clip, b * 2 + k, v)
                assert mine["valid"].sum() == min(per_view, len(seen))
                left = set(seen)
                for i in torch.nonzero(mine["valid"])[:, 0]:
                    origin, direction = mine["origins"][i].double().numpy(), mine["directions"][i].double().numpy()
                    point = origin + mine["depth"][i].item() * direction
                    points = {n: clip.points[b, t, n].double().numpy() for n in left}
                    number = min(points, key=lambda n, points=points, p=point: np.abs(points[n] - p).max())
                    left.remove(number)  # no point twice
                    assert np.abs(points[number] - point).max() < 1e-3
                    assert reference.distance_to_ray(points[number], origin, direction) < 1e-3
                    (x, y), depth = seen[number]
                    assert mine["depth"][i].item() == pytest.approx(depth, abs=1e-3)
                    assert any(
                        np.allclose(mine["rgb"][i] * 255, clip.images[b, t, v, :, int(y + dy), int(x + dx)], atol=1e-3)
                        for dx in (0, 1e-3, -1e-3)  # a point on the line between two pixels may fall to either
                        for dy in (0, 1e-3, -1e-3)
                        if 0 <= int(y + dy) < 64 and 0 <= int(x + dx) < 96
                    )
    assert torch.equal(rays.has_depth, rays.valid)


def test_rays_are_unit_length_and_start_at_the_camera():
    clip = toy_clip()
    rays = choose_rays(clip, targets_of(clip, 2), 50, GRID, "rgbd")
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2, 100))
    for v in range(2):
        centre = clip.ego_from_camera[:, 2, v, :3, 3]
        torch.testing.assert_close(view(rays, clip, 0, v)["origins"], centre[:1].expand(50, 3))


def test_fewer_points_than_rays_leave_rays_that_are_not_valid():
    clip = toy_clip(points=20)
    rays = choose_rays(clip, targets_of(clip, 2), 64, GRID, "rgbd")
    counts = [view(rays, clip, b, v)["valid"].sum().item() for b in range(2) for v in range(2)]
    assert counts == [len(seen_by_loops(clip, b, 2, v)) for b in range(2) for v in range(2)]
    assert 0 < sum(counts) < 80
    assert all(getattr(rays, name).isfinite().all() for name in FIELDS)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2, 128))


@pytest.mark.parametrize("points", [0, 30])
def test_no_lidar_at_all(points):
    clip = toy_clip(points=points)
    clip = replace(clip, num_points=torch.zeros_like(clip.num_points))
    rays = choose_rays(clip, targets_of(clip, 2, 0), 16, GRID, "rgbd")
    assert rays.valid.shape == (4, 32)
    assert not rays.valid.any()
    assert not rays.has_depth.any()
    assert all(getattr(rays, name).isfinite().all() for name in FIELDS)


def one_point(*point: float) -> Clip:
    """A clip of a single LiDAR point, and one camera that looks forward from (0, 0, 1.6)."""
    clip = toy_clip(clips=1, frames=1, cameras=1, points=1)
    clip.points[0, 0, 0] = torch.tensor(point)
    return clip


@pytest.mark.parametrize(
    ("point", "seen"),
    [
        ((10.0, 0.0, 1.6), True),
        ((-10.0, 0.0, 1.6), False),  # behind
        ((10.0, 6.2, 1.6), True),  # 0.625 of the depth to the side: the left edge of the image
        ((10.0, 6.3, 1.6), False),
        ((10.0, 0.0, 4.9), True),
        ((10.0, 0.0, 5.1), False),  # over the volume
        ((23.9, 0.0, 1.6), True),
        ((24.1, 0.0, 1.6), False),  # before its end
        ((0.2, 0.0, 1.6), True),
    ],
    ids=str,
)
def test_which_points_are_used(point, seen):
    clip = one_point(*point)
    rays = choose_rays(clip, targets_of(clip, 0), 4, GRID, "rgbd")
    assert rays.valid.sum() == int(seen)


def test_padded_and_nan_points_have_no_influence_on_the_depth():
    """The padding of ``points`` may hold anything, and real sweeps hold NaNs."""
    clip = toy_clip(points=40)
    clip.num_points[:] = 20
    clip.points[:, :, 20:] = float("nan")
    clip.points[:, :, 5] = float("nan")
    clip.points[:, :, 6] = float("inf")
    rays = choose_rays(clip, targets_of(clip, 2), 64, GRID, "rgbd")
    assert rays.valid.any()
    assert all(getattr(rays, name).isfinite().all() for name in FIELDS)


def test_colour_is_that_of_the_pixel_with_rows_counted_downwards():
    """The colour of a pixel encodes its row and column; both are low for a point up and to the left."""
    clip = one_point(10.0, 4.0, 4.0)  # left of and above the camera
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    clip.images[0, 0, 0] = torch.stack([rows, columns, torch.zeros_like(rows)]).byte()
    rays = choose_rays(clip, targets_of(clip, 0), 1, GRID, "rgbd")
    row, column, _ = (rays.rgb[0, 0] * 255).round().tolist()
    focal = 0.8 * 96
    assert column == int(48 - focal * 4.0 / 10)
    assert row == int(32 - focal * 2.4 / 10)


def test_each_view_and_frame_uses_its_own_camera_and_sweep():
    """Frames and cameras differ in everything, and each ray must agree with its own."""
    clip = toy_clip(clips=2, frames=3, cameras=3, points=200)
    clip.intrinsics[:, :, 1, 0, 2] += 7  # a camera of its own
    clip.ego_from_camera[1, 0, 2] = make_pose(clip.ego_from_camera[1, 0, 2, :3, :3], torch.tensor([1.0, -2.0, 2.0]))
    targets = torch.tensor([[2, 1], [2, 0]])
    rays = choose_rays(clip, targets, 30, GRID, "rgbd")
    for b in range(2):
        for k in range(2):
            t = targets[b, k]
            for v in range(3):
                mine = view(rays, clip, b * 2 + k, v)
                seen = seen_by_loops(clip, b, int(t), v)
                depths = np.array([depth for _, depth in seen.values()])
                assert mine["valid"].sum() == min(30, len(seen))
                for depth in mine["depth"][mine["valid"]]:
                    assert np.abs(depths - depth.item()).min() < 1e-3


# Randomness


def test_rays_do_not_depend_on_the_batch_or_on_padding():
    clip = toy_clip(clips=2, points=200)
    clip.num_points[0] = 150
    targets = targets_of(clip, 2, 1)
    together = choose_rays(clip, targets, 50, GRID, "rgbd")
    for b in range(2):
        alone = Clip(
            **{name: value[b : b + 1] for name, value in clip._tensors().items()},
            names=clip.names[b : b + 1],
            cameras=clip.cameras,
        )
        longest = int(alone.num_points.max())
        cut = replace(alone, points=alone.points[:, :, :longest])
        padded = replace(alone, points=torch.nn.functional.pad(alone.points, (0, 0, 0, 123)))
        for one in (alone, cut, padded):
            rays = choose_rays(one, targets[b : b + 1], 50, GRID, "rgbd")
            for name in ("valid", "has_depth"):
                assert torch.equal(getattr(rays, name), getattr(together, name)[2 * b : 2 * b + 2])
            for name in ("origins", "directions", "rgb", "depth"):
                mine, theirs = getattr(rays, name), getattr(together, name)[2 * b : 2 * b + 2]
                torch.testing.assert_close(mine[rays.valid], theirs[rays.valid], atol=0, rtol=0)


def test_another_seed_draws_other_rays():
    clip = toy_clip(points=300)
    draws = [
        choose_rays(replace(clip, seeds=clip.seeds + shift), targets_of(clip, 2), 10, GRID, "rgbd").depth
        for shift in (0, 0, 5)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_every_point_is_drawn_equally_often():
    clip = toy_clip(clips=1, frames=1, cameras=1, points=100)
    seen = seen_by_loops(clip, 0, 0, 0)
    depths = np.array([depth for _, depth in seen.values()])
    counts = np.zeros(len(depths))
    per_view, draws = 5, 400
    for seed in range(draws):
        rays = choose_rays(replace(clip, seeds=torch.tensor([seed])), targets_of(clip, 0), per_view, GRID, "rgbd")
        for depth in rays.depth[0].tolist():
            counts[np.abs(depths - depth).argmin()] += 1
    expected = per_view * draws / len(depths)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


# Any pixels


def test_rgb_rays_cover_the_image_evenly_and_have_no_depth():
    clip = toy_clip(clips=1, frames=1, cameras=2, points=0)
    rays = choose_rays(clip, targets_of(clip, 0), 8000, GRID, "rgb")
    assert rays.valid.all()
    assert not rays.has_depth.any()
    for v in range(2):
        mine = view(rays, clip, 0, v)
        points = mine["origins"] + 5 * mine["directions"]
        pixels, depth = project(
            clip.intrinsics[0, 0, v], transform(torch.linalg.inv(clip.ego_from_camera[0, 0, v]), points)
        )
        assert (depth > 0).all()
        assert ((pixels > -1e-3) & (pixels < torch.tensor([96.0, 64.0]) + 1e-3)).all()
        counts, _, _ = np.histogram2d(pixels[:, 0], pixels[:, 1], bins=(12, 8), range=((0, 96), (0, 64)))
        expected = 8000 / 96
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < 150  # 95 degrees of freedom: one chance in thousands
        column, row = (pixels + 1e-4).long().clamp(min=0).unbind(-1)
        colours = clip.images[0, 0, v, :, row.clamp(max=63), column.clamp(max=95)].T.float() / 255
        assert ((colours - mine["rgb"]).abs().amax(1) < 1e-3).float().mean() > 0.99


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(-(2**63), 2**63 - 1), height=st.integers(1, 3), width=st.integers(1, 3))
def test_rgb_pixels_never_leave_the_image(seed, height, width):
    clip = toy_clip(clips=1, frames=1, cameras=1, size=(32 * height, 32 * width), points=0)
    clip = replace(clip, seeds=torch.tensor([seed]))
    rays = choose_rays(clip, targets_of(clip, 0), 500, GRID, "rgb")  # an index out of range would raise
    assert ((rays.rgb >= 0) & (rays.rgb <= 1)).all()


def test_shapes():
    clip = toy_clip(clips=2, frames=3, cameras=2)
    for supervision in ("rgb", "rgbd"):
        rays = choose_rays(clip, targets_of(clip, 2, 1), 7, VoxelGrid(), supervision)
        assert rays.origins.shape == rays.directions.shape == rays.rgb.shape == (4, 14, 3)
        assert rays.depth.shape == rays.valid.shape == rays.has_depth.shape == (4, 14)


# The lift's depth in the place of LiDAR


def test_a_ray_ends_where_the_lift_has_its_depth_along_the_optical_axis():
    clip = toy_clip()
    targets = targets_of(clip, 2, 0)
    generator = torch.Generator().manual_seed(0)
    log_depth = 1 + 2 * torch.rand(2, 3, 2, 8, 12, generator=generator)  # 2.7 to 20 m; a site has 8 pixels
    rays = with_depth_of_lift(choose_rays(clip, targets, 16, GRID, "rgb"), log_depth, clip, targets, GRID)
    ends = rays.origins + rays.depth[..., None] * rays.directions  # [G, R, 3]
    for g in range(4):
        for r in range(32):
            b, t, v = g // 2, [2, 0][g % 2], r // 16
            z = transform(clip.ego_from_camera[b, t, v].inverse(), ends[g, r][None])[0, 2].item()
            x, y = (rays.pixels[g, r] / 8 - 0.5).tolist()
            x, y = min(max(x, 0), 11), min(max(y, 0), 7)
            c, d = min(int(x), 10), min(int(y), 6)
            patch = log_depth[b, t, v, d : d + 2, c : c + 2].double().numpy()
            wanted = np.array([1 - (y - d), y - d]) @ patch @ np.array([1 - (x - c), x - c])
            assert z == pytest.approx(np.exp(wanted), rel=1e-4)
            assert rays.has_depth[g, r] == GRID.contains(ends[g, r])


def test_the_lift_learns_nothing_from_its_own_depth():
    clip = toy_clip()
    targets = targets_of(clip, 1)
    log_depth = torch.full((2, 3, 2, 8, 12), 2.0, requires_grad=True)
    rays = with_depth_of_lift(choose_rays(clip, targets, 4, GRID, "rgb"), log_depth, clip, targets, GRID)
    assert not rays.depth.requires_grad


# Rays of another frame


def moved(rays: Rays, clip: Clip, frames: torch.Tensor, targets: torch.Tensor, grid: VoxelGrid = GRID) -> Rays:
    return transform_rays(rays, clip.source_from_target(frames, targets[..., None]).flatten(0, 2), grid)


@pytest.mark.parametrize("supervision", ["rgb", "rgbd"])
def test_rays_of_another_frame_against_loops(supervision):
    """Ray by ray, in float64 through the current frame; LiDAR points count where both volumes contain them."""
    clip = toy_clip(points=300, turn=0.4)
    frames, targets = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[2, 0], [2, 1]])
    own = choose_rays(clip, frames, 40, GRID, supervision)
    rays = moved(own, clip, frames, targets)
    low, high = (x.numpy() for x in (GRID.low(own.origins), GRID.high(own.origins)))
    lost = 0
    for g in range(4):
        current_from_frame, current_from_target = (
            clip.current_from_ego[g // 2, int(x[g // 2, g % 2])].double().numpy() for x in (frames, targets)
        )
        pose = np.linalg.inv(current_from_target) @ current_from_frame
        for r in range(80):
            origin, direction = own.origins[g, r].double().numpy(), own.directions[g, r].double().numpy()
            start, end = (pose @ [*point, 1] for point in (origin, origin + own.depth[g, r].item() * direction))
            np.testing.assert_allclose(rays.origins[g, r], start[:3], atol=1e-4)
            np.testing.assert_allclose(rays.directions[g, r], pose[:3, :3] @ direction, atol=1e-5)
            if supervision == "rgb":
                assert rays.valid[g, r]
                assert not rays.has_depth[g, r]
            else:
                inside = bool(((end[:3] >= low) & (end[:3] < high)).all())
                assert rays.valid[g, r] == rays.has_depth[g, r] == (own.valid[g, r] and inside)
                lost += bool(own.valid[g, r]) and not inside
    assert (lost > 0) == (supervision == "rgbd")
    for name in ("rgb", "depth", "pixels"):
        assert torch.equal(getattr(rays, name), getattr(own, name))


def test_rays_to_the_own_frame_stay_as_they_are():
    clip = toy_clip(points=300)
    frames = targets_of(clip, 2, 0)
    own = choose_rays(clip, frames, 40, GRID, "rgbd")
    rays = moved(own, clip, frames, frames)
    for name in FIELDS:
        torch.testing.assert_close(getattr(rays, name), getattr(own, name))


def test_rays_of_another_frame_meet_the_same_street():
    """In the current ego frame, rays of earlier frames end on the ground and the wall, in the colours seen there."""
    clip, depth = street(cameras=2)
    for frame in (0, 1):
        frames, current = torch.tensor([[frame]]), torch.tensor([[2]])
        own = with_depth_of_lift(choose_rays(clip, frames, 200, GRID, "rgb"), depth.log(), clip, frames, GRID)
        rays = moved(own, clip, frames, current)
        assert rays.has_depth.float().mean() > 0.5
        ends = (rays.origins + rays.depth[..., None] * rays.directions)[rays.has_depth]
        off = torch.minimum(ends[:, 2].abs(), (ends[:, 0] - WALL).abs())
        assert off.quantile(0.9) < 0.05  # the depth is interpolated between pixels: not at edges
        assert off.median() < 0.005
        unmoved = (own.origins + own.depth[..., None] * own.directions)[rays.has_depth]
        error, without = ((texture(x) - rays.rgb[rays.has_depth]).abs().mean(-1).median() for x in (ends, unmoved))
        assert error < 0.2 * without  # the colour is that of the whole pixel
