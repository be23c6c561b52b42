"""The lift: features land in the voxels that contain the points they show."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, make_pose, rotation_from_quaternion, transform, unproject
from mim4d.method.lift import Lift, LiftConfig, Reach, reach, reach_line, splat
from tests.reference import lift as slow
from tests.toy import FORWARD, toy_clip

# No two counts alike, and no two sizes: an axis mistaken for another shows.
GRID = VoxelGrid(x=(-8, 8.8), y=(-6, 6), z=(-2, 4), voxel=(1.2, 1.5, 2))
RANGES, SIZES = (GRID.x, GRID.y, GRID.z), GRID.voxel
STRIDE = 16
CONFIG = LiftConfig(depth_range=(1, 9), depth_step=0.8, depth_channels=16, channels=3)
BINS = slow.bin_centers(1, 9, 0.8)


def random_clip(clips=1, frames=1, cameras=2, size=(32, 64), seed=0) -> Clip:
    """A toy clip with cameras of any pose, in float64 so that rounding moves no point to another voxel."""
    generator = torch.Generator().manual_seed(seed)
    rotation = rotation_from_quaternion(
        torch.randn(clips, frames, cameras, 4, generator=generator, dtype=torch.float64)
    )
    position = torch.randn(clips, frames, cameras, 3, generator=generator, dtype=torch.float64)
    clip = toy_clip(clips, frames, cameras, size, seed=seed)
    intrinsics = clip.intrinsics.double() + torch.rand(clip.intrinsics.shape, generator=generator).double().triu() * 3
    intrinsics[..., 2, 2] = 1
    return replace(clip, intrinsics=intrinsics, ego_from_camera=make_pose(rotation, position))


def make(seed=0) -> Lift:
    torch.manual_seed(seed)
    return Lift(CONFIG, in_channels=8, stride=STRIDE, grid=GRID)


def slow_voxels(clip, b, t):
    """One dictionary per camera."""
    size = (clip.image_size[0] // STRIDE, clip.image_size[1] // STRIDE)
    return [
        slow.voxels(clip.intrinsics[b, t, v], clip.ego_from_camera[b, t, v], BINS, size, STRIDE, RANGES, SIZES)
        for v in range(clip.num_cameras)
    ]


def test_bins():
    assert len(BINS) == CONFIG.num_bins == 10
    assert LiftConfig().num_bins == 118  # as published: 1 to 60 m, 0.5 m


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), clips=st.integers(1, 2), frames=st.integers(1, 3), cameras=st.sampled_from([1, 2, 6])
)
def test_voxels_against_loops(seed, clips, frames, cameras):
    clip = random_clip(clips, frames, cameras, seed=seed)
    voxels = make().voxels(clip, (2, 4))
    assert voxels.shape == (clips * frames, cameras, 10, 8)
    _, count_y, count_x = GRID.shape
    for b in range(clips):
        for t in range(frames):
            for v, camera in enumerate(slow_voxels(clip, b, t)):
                for (d, row, column), voxel in camera.items():
                    expected = -1 if voxel is None else (voxel[0] * count_y + voxel[1]) * count_x + voxel[2]
                    assert voxels[b * frames + t, v, d, row * 4 + column] == expected


@pytest.mark.parametrize(("frames", "cameras"), [(1, 1), (2, 3), (1, 6)])
def test_splat_against_loops_with_gradients(frames, cameras):
    clip = random_clip(1, frames, cameras, seed=frames)
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(frames * cameras, 10, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    context = torch.randn(frames * cameras, 3, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    volume = splat(shares, context, make().voxels(clip, (2, 4)), frames, GRID)
    expected = torch.stack(
        [
            slow.splat(s, c, slow_voxels(clip, 0, t), GRID.shape)
            for t, (s, c) in enumerate(zip(shares.split(cameras), context.split(cameras), strict=True))
        ]
    )
    assert volume.shape == (frames, 3, *GRID.shape)
    assert volume.ne(0).any()
    torch.testing.assert_close(volume, expected)

    weights = torch.randn(volume.shape, generator=generator, dtype=torch.float64)
    fast = torch.autograd.grad((volume * weights).sum(), (shares, context))
    by_hand = torch.autograd.grad((expected * weights).sum(), (shares, context))
    torch.testing.assert_close(fast, by_hand)


def test_a_point_seen_at_a_known_depth_lands_in_the_voxel_that_contains_it():
    """The camera is placed such that the point is at the centre of a feature's cell and the middle of a depth bin."""
    lift, generator = make(), torch.Generator().manual_seed(2)
    for _ in range(30):
        i, j, k = (int(torch.randint(n, (), generator=generator)) for n in GRID.shape[::-1])
        corner = torch.tensor([RANGES[a][0] + n * SIZES[a] for a, n in enumerate((i, j, k))])
        point = corner + (0.01 + 0.98 * torch.rand(3, generator=generator)) * torch.tensor(SIZES)
        row, column, bin_ = 1, 2, 7
        clip = toy_clip(1, 1, 1, (32, 64))
        u, v, depth = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE, BINS[bin_]
        f, cx, cy = clip.intrinsics[0, 0, 0, 0, 0], clip.intrinsics[0, 0, 0, 0, 2], clip.intrinsics[0, 0, 0, 1, 2]
        camera = torch.stack([(u - cx) / f * depth, (v - cy) / f * depth, torch.tensor(depth)])
        rotation = rotation_from_quaternion(torch.randn(4, generator=generator))
        clip = replace(clip, ego_from_camera=make_pose(rotation, point - rotation @ camera)[None, None, None])

        shares, context = torch.zeros(1, 10, 2, 4), torch.zeros(1, 3, 2, 4)
        shares[0, bin_, row, column] = 1
        context[0, :, row, column] = torch.tensor([1.0, 2, 3])
        volume = splat(shares, context, lift.voxels(clip, (2, 4)), 1, GRID)
        assert volume[0, :, k, j, i].tolist() == [1, 2, 3]
        assert volume.ne(0).sum() == 3


def looking_forward(position, dtype=torch.float32) -> Clip:
    """One camera whose one feature looks along +x, at depths 1.5, 2.5, ..., from ``position``."""
    clip = toy_clip(1, 1, 1, (32, 32))
    pose = make_pose(FORWARD, torch.tensor(position))
    return replace(clip, ego_from_camera=pose[None, None, None].to(dtype), intrinsics=clip.intrinsics.to(dtype))


def test_a_voxel_includes_its_low_faces():
    """A point exactly between two voxels belongs to the upper one, as in ``VoxelGrid.contains``."""
    grid = VoxelGrid(x=(0.5, 10.5), y=(-1, 1), z=(-2, 2), voxel=(1, 1, 1))
    lift = Lift(LiftConfig(depth_range=(0, 12), depth_step=1, depth_channels=16, channels=3), 8, 32, grid)
    voxels = lift.voxels(looking_forward([0.0, 0.0, 0.0]), (1, 1)).flatten()
    own = [(2 * 2 + 1) * 10 + i for i in range(10)]  # x = 0.5, 1.5, ...; y = 0 and z = 0 between voxels
    assert voxels.tolist() == [*own, -1, -1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_point_just_inside_the_box_stays_in_its_row(axis):
    """Rounding in float32 must not carry it past the last voxel, into the next row, layer or volume."""
    grid = VoxelGrid(x=(-54, 54), y=(-54, 54), z=(-54, 54), voxel=(0.6, 0.6, 0.6))
    lift = Lift(LiftConfig(depth_range=(1, 2), depth_step=1, depth_channels=16, channels=3), 8, 32, grid)
    inside = torch.nextafter(torch.tensor(54.0), torch.tensor(0.0))
    position = torch.tensor([32.5, 34.0, 34.0])
    position[axis] = inside - torch.tensor([1.5, 0, 0])[axis]
    assert (position + torch.tensor([1.5, 0, 0]))[axis] == inside
    index = [146, 146, 146]  # of x = y = z = 34 m
    index[axis] = 179
    last = (index[2] * 180 + index[1]) * 180 + index[0]
    assert int(lift.voxels(looking_forward(position.tolist()), (1, 1))) in (last, -1)


def test_a_grid_that_contains_all_points_sums_all_features():
    grid = VoxelGrid(x=(-100, 100), y=(-100, 100), z=(-100, 100), voxel=(10, 20, 25))
    lift = Lift(CONFIG, 8, STRIDE, grid)
    clip = random_clip(1, 2, 3, seed=5)
    shares = torch.rand(6, 10, 2, 4).softmax(1)
    context = torch.randn(6, 3, 2, 4)
    volume = splat(shares, context, lift.voxels(clip, (2, 4)), 2, grid)
    expected = context.view(2, 3, 3, 8).sum((1, 3))
    torch.testing.assert_close(volume.sum((2, 3, 4)), expected, rtol=1e-4, atol=1e-4)


def test_the_whole_lift_against_loops():
    lift, clip = make(), random_clip(2, 2, 3, seed=6)
    features = torch.randn(2, 2, 3, 8, 2, 4, generator=torch.Generator().manual_seed(7))
    volumes = lift(features, lift.depth(features, clip), clip)
    assert volumes.shape == (2, 2, 3, *GRID.shape)
    with torch.no_grad():
        for b in range(2):
            for t in range(2):
                seen = torch.cat([features[b, t], lift.view(clip, (2, 4))[b, t].float()], dim=1)
                shares = lift.depth_net(seen).double().softmax(1)
                summed = slow.splat(shares, lift.context(features[b, t]).double(), slow_voxels(clip, b, t), GRID.shape)
                torch.testing.assert_close(volumes[b, t], lift.refine(summed.float()[None])[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_depth_network_sees_the_camera_and_the_ray_of_every_pixel(seed):
    """Each ray by hand: two points that project to the pixel's centre, in the camera frame and in the ego frame."""
    clip = random_clip(1, 2, 2, seed=seed)
    view = make().view(clip, (2, 4))
    assert view.shape == (1, 2, 2, 4, 2, 4)
    for t, v, row, column in itertools.product(range(2), range(2), range(2), range(4)):
        pixel = torch.tensor([(column + 0.5) * STRIDE, (row + 0.5) * STRIDE, 1.0], dtype=torch.float64)
        ray = torch.linalg.solve(clip.intrinsics[0, t, v], pixel)  # its depth is 1
        near, far = (clip.ego_from_camera[0, t, v] @ torch.cat([d * ray, torch.ones(1)]) for d in (0.0, 1.0))
        focal = math.log(clip.intrinsics[0, t, v, 0, 0] / 64)
        expected = torch.stack([ray[0], far[2] - near[2], near[2], torch.tensor(focal)])
        torch.testing.assert_close(view[0, t, v, :, row, column], expected, check_dtype=False)


def test_the_flat_ground_is_at_the_camera_s_height_divided_by_the_slope_downwards():
    clip = random_clip(1, 1, 2, seed=3)
    up, height = make().view(clip, (2, 4))[0, 0, :, 1:3].unbind(1)  # [V, h, w]
    depth = -height / up
    pixels = make()._pixels(clip.intrinsics, (2, 4))
    points = unproject(clip.intrinsics[0, 0], pixels, depth.flatten(1))
    ground = transform(clip.ego_from_camera[0, 0], points)
    torch.testing.assert_close(ground[..., 2], torch.zeros(2, 8), check_dtype=False)


def test_a_batch_equals_its_clips_one_by_one():
    lift, clips = make(), [random_clip(1, 2, 2, seed=s) for s in range(3)]
    features = torch.randn(3, 2, 2, 8, 2, 4, generator=torch.Generator().manual_seed(8))
    joined = Clip.collate(clips)
    together = lift(features, lift.depth(features, joined), joined)
    for i, clip in enumerate(clips):
        own = features[i : i + 1]
        torch.testing.assert_close(together[i : i + 1], lift(own, lift.depth(own, clip), clip), rtol=1e-5, atol=1e-6)


def test_cameras_add_up_before_the_convolution():
    """The volume of six cameras is the sum of their volumes, because no camera has parameters of its own."""
    lift, clip = make(), random_clip(1, 1, 6, seed=9)
    lift.refine = torch.nn.Identity()
    features = torch.randn(1, 1, 6, 8, 2, 4)
    together = lift(features, lift.depth(features, clip), clip)
    apart = []
    for v in range(6):
        one = slice(v, v + 1)
        poses, intrinsics = clip.ego_from_camera[:, :, one], clip.intrinsics[:, :, one]
        seen = replace(clip, ego_from_camera=poses, intrinsics=intrinsics)
        apart.append(lift(features[:, :, one], lift.depth(features[:, :, one], seen), seen))
    torch.testing.assert_close(together, sum(apart), rtol=1e-5, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    lift, clip = make(), random_clip(1, 2, 2)
    features = torch.randn(1, 2, 2, 8, 2, 4)
    lift(features, lift.depth(features, clip), clip).square().sum().backward()
    for name, parameter in lift.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


def test_bf16_autocast_puts_features_into_the_same_voxels():
    lift, clip = make(), toy_clip(1, 1, 6, (64, 96))
    expected = lift.voxels(clip, (4, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lift.voxels(clip, (4, 6)), expected)


def test_bf16_autocast_splats_in_float32():
    """Values and gradients equal those of float32, up to the rounding of convolutions."""
    lift, clip = make(), random_clip(1, 1, 2)
    features = torch.randn(1, 1, 2, 8, 2, 4, generator=torch.Generator().manual_seed(3))
    weights = {name: p for name, p in lift.named_parameters() if p.dim() > 1}
    volumes, gradients = [], []
    for bf16 in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            volumes.append(lift(features, lift.depth(features, clip), clip).float())
        gradients.append(torch.autograd.grad(volumes[-1].square().sum(), list(weights.values())))
    torch.testing.assert_close(volumes[1], volumes[0], rtol=0.05, atol=0.1)
    for name, exact, rough in zip(weights, *gradients, strict=True):
        assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.95, name


def reach_by_loops(clip, edges):
    """(low, high, in view, reached) of each band, for the current frame of the first clip."""
    t = clip.num_frames - 1
    filled = {voxel for camera in slow_voxels(clip, 0, t) for voxel in camera.values()}
    counts = {band: [0, 0] for band in pairwise((0.0, *edges, math.inf))}
    for k, j, i in itertools.product(*map(range, GRID.shape)):
        center = [low + (n + 0.5) * size for (low, _), n, size in zip(RANGES, (i, j, k), SIZES, strict=True)]
        if any(
            slow.is_in_view(center, clip.intrinsics[0, t, v], clip.ego_from_camera[0, t, v], clip.image_size, 1, 9)
            for v in range(clip.num_cameras)
        ):
            band = next(band for band in counts if band[0] <= math.hypot(*center[:2]) < band[1])
            counts[band][0] += 1
            counts[band][1] += (k, j, i) in filled
    return [(*band, *count) for band, count in counts.items() if count[0]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("edges", [(3.0, 6.0), (20.0, 35.0)])
def test_reach_against_loops(seed, edges):
    clip = random_clip(clips=2, frames=2, seed=seed)
    expected = reach_by_loops(clip, edges)
    assert reach(make(), clip, edges) == expected
    assert len(expected) > 1 or edges == (20.0, 35.0)


def test_no_voxel_is_in_view_of_cameras_that_look_away():
    clip = random_clip()
    clip.ego_from_camera[..., :3, 3] += 1000
    assert reach(make(), clip) == []
    assert "check the calibration" in reach_line([])


def test_a_finer_stride_reaches_more():
    shares = []
    for stride in (32, 16):
        lift = Lift(LiftConfig(depth_channels=16), in_channels=8, stride=stride, grid=VoxelGrid())
        shares.append([band.reached / band.in_view for band in reach(lift, toy_clip(1, 1, 2, (256, 704)))])
    assert len(shares[0]) == 3
    assert all(fine > coarse for coarse, fine in zip(*shares, strict=True))


def test_reach_line():
    bands = [Reach(0.0, 20.0, 200, 199), Reach(20.0, 35.0, 3, 1), Reach(35.0, math.inf, 4, 0)]
    line = "lift: voxels in view that are reached: 100 % within 20 m, 33 % from 20 to 35 m, 0 % beyond 35 m"
    assert reach_line(bands).startswith(line)
