"""The warp: a static world looks the same from every pose."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.geometry import VoxelGrid, invert, make_pose, rotation_from_quaternion, transform
from mim4d.method.warp import warp
from tests.reference.warp import warp_matrix
from tests.toy import yaw

SMALL = VoxelGrid(x=(-3, 3), y=(-2, 4.4), z=(-1, 3.8), voxel=(1, 0.8, 1.6))
STREET = VoxelGrid(x=(-12, 12), y=(-9, 9), z=(-3.2, 4.8), voxel=(0.6, 0.6, 1.6))
PUBLISHED = VoxelGrid()


def pose(angle=0.0, x=0.0, y=0.0, z=0.0):
    """source_from_target [1, 1, 4, 4]: a yaw in radians and a move in metres."""
    return make_pose(yaw(angle), torch.tensor([x, y, z]))[None, None]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- against loops ---------------------------------------------------------------------------------------------------

numbers = st.floats(-2, 2, width=32)


@settings(max_examples=25, deadline=None)
@given(
    quaternion=st.tuples(numbers, numbers, numbers, numbers).filter(lambda q: sum(x * x for x in q) > 0.1),
    move=st.tuples(numbers, numbers, numbers),
)
def test_values_and_gradients_against_loops(quaternion, move):
    source_from_target = make_pose(rotation_from_quaternion(torch.tensor(quaternion)), torch.tensor(move))
    volume = noise(1, 1, 2, *SMALL.shape).requires_grad_()
    matrix = torch.from_numpy(
        warp_matrix(source_from_target.double().numpy(), (SMALL.x, SMALL.y, SMALL.z), SMALL.voxel)
    )
    warped = warp(volume, source_from_target[None, None], SMALL)
    expected = volume.detach().double().flatten(3) @ matrix.T
    torch.testing.assert_close(warped.detach().double().flatten(3), expected, rtol=1e-4, atol=1e-4)

    weights = noise(*warped.shape, seed=1)
    (warped * weights).sum().backward()
    by_hand = weights.double().flatten(3) @ matrix
    torch.testing.assert_close(volume.grad.double().flatten(3), by_hand, rtol=1e-4, atol=1e-4)


def test_each_volume_has_its_own_pose():
    poses = torch.stack([torch.stack([pose(0.1 * b, x=s, y=0.3)[0, 0] for s in range(3)]) for b in range(2)])
    volumes = noise(2, 3, 4, *SMALL.shape)
    warped = warp(volumes, poses, SMALL)
    assert warped.shape == volumes.shape
    for b in range(2):
        for s in range(3):
            alone = warp(volumes[b : b + 1, s : s + 1], poses[b : b + 1, s : s + 1], SMALL)
            torch.testing.assert_close(warped[b, s], alone[0, 0])


# --- answers known by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [SMALL, STREET, PUBLISHED])
def test_the_identity_changes_nothing(grid):
    volume = noise(1, 1, 1, *grid.shape)
    torch.testing.assert_close(warp(volume, pose(), grid), volume, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("move", "axis"), [(dict(x=1.0), -1), (dict(y=0.8), -2), (dict(z=1.6), -3)], ids=["forward", "left", "up"]
)
def test_one_voxel_ahead(move, axis):
    """The target is one voxel ahead: it sees everything one voxel nearer, and zeros in the last row."""
    volume = noise(1, 1, 2, *SMALL.shape)
    expected = volume.roll(-1, dims=axis)
    expected.select(axis, -1).zero_()
    torch.testing.assert_close(warp(volume, pose(**move), SMALL), expected, rtol=0, atol=1e-5)


def test_a_quarter_turn():
    """The target faces the source's left: an object to the left of the source is ahead of the target."""
    square = VoxelGrid(x=(-4, 4), y=(-4, 4), z=(0, 2), voxel=(1, 1, 1))
    volume = noise(1, 1, 1, *square.shape)
    expected = volume.transpose(-1, -2).flip(-2)  # target (x, y) is source (-y, x)
    torch.testing.assert_close(warp(volume, pose(math.pi / 2), square), expected, rtol=0, atol=1e-5)


def test_points_outside_the_source_are_zero():
    volume = torch.ones(1, 1, 1, *STREET.shape)
    assert warp(volume, pose(x=30.0), STREET).eq(0).all()
    half = warp(volume, pose(x=12.0), STREET)  # the source's front edge is at the target's origin
    x = STREET.centers(volume)[..., 0]
    torch.testing.assert_close(half[0, 0, 0], (x < 0).float(), rtol=0, atol=1e-5)


def test_warping_there_and_back():
    there = pose(0.2, x=1.0, y=-0.5)
    volume = world(STREET, torch.eye(4))[None, None]
    back = warp(warp(volume, there, STREET), invert(there), STREET)
    middle = (slice(None), slice(None), slice(None), slice(1, -1), slice(8, -8), slice(10, -10))
    assert (back - volume)[middle].abs().max() < 2 * interpolation_error(STREET)


# --- a static world seen from two places -----------------------------------------------------------------------------

WAVES = (11.0, 9.0, 14.0)
"""Wavelengths of the world along global x, y, z, metres: long against a voxel."""


def world(grid, global_from_ego):
    """A smooth function of *global* position at the voxel centres of an ego frame: [1, Z, Y, X], within -1 .. 1."""
    points = transform(global_from_ego, grid.centers(global_from_ego).flatten(0, 2))
    phases = [2 * math.pi * points[:, axis] / wave for axis, wave in enumerate(WAVES)]
    values = (phases[0].sin() + (phases[1] + 1).sin() + (phases[2] + 2).sin()) / 3
    return values.view(1, *grid.shape)


def interpolation_error(grid):
    """Bound on the error of linear interpolation: h^2 / 8 times the largest second derivative, summed over the axes."""
    bend = (2 * math.pi / min(WAVES)) ** 2 / 3
    return sum(size**2 / 8 * bend for size in grid.voxel[:2])


def check_static_world(warp_function, angle, x, y, grid=STREET):
    """The warped volume of one pose equals the volume of the other, wherever the first one reaches."""
    global_from_source = make_pose(yaw(0.4), torch.tensor([3.0, -2.0, 0.1]))
    source_from_target = pose(angle, x=x, y=y)[0, 0]
    source = world(grid, global_from_source)
    target = world(grid, global_from_source @ source_from_target)
    warped = warp_function(source[None, None], source_from_target[None, None], grid)[0, 0]

    index = grid.index_of(transform(source_from_target, grid.centers(source).flatten(0, 2)))
    top = torch.tensor(grid.shape[::-1]) - 1
    reached = ((index > -1e-3) & (index < top + 1e-3)).all(-1).view(grid.shape)
    assert reached.float().mean() > 0.5
    off = (warped - target)[0][reached].abs().max()
    assert off < 1.5 * interpolation_error(grid), f"off by {off:.3f}"


def warp_of_indices(volumes, source_from_target, grid):
    """A wrong warp, as in the official release: it applies a transform in metres to voxel *indices*."""
    counts = torch.tensor(grid.shape[::-1])
    axes = [torch.arange(n, dtype=torch.float32) for n in grid.shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    index = transform(source_from_target[0, 0], torch.stack([x, y, z], dim=-1).flatten(0, 2))
    where = ((index + 0.5) / counts * 2 - 1).view(1, *grid.shape, 3)
    return F.grid_sample(volumes.flatten(0, 1), where, align_corners=False)[None]


MOVES = [(0.0, 1.5, 0.0), (math.radians(1), 0.0, 0.0), (0.1, 2.0, -0.7), (-0.3, -1.0, 2.5), (0.5, 0.0, 0.0)]


@pytest.mark.parametrize(("angle", "x", "y"), MOVES)
def test_a_static_world_stands_still(angle, x, y):
    check_static_world(warp, angle, x, y)


@pytest.mark.parametrize(("angle", "x", "y"), MOVES)
def test_the_static_world_check_detects_indices_taken_for_metres(angle, x, y):
    with pytest.raises(AssertionError, match="off by"):
        check_static_world(warp_of_indices, angle, x, y)


def test_the_static_world_check_detects_the_inverse_pose():
    with pytest.raises(AssertionError, match="off by"):
        check_static_world(lambda v, p, g: warp(v, invert(p), g), 0.1, 2.0, -0.7)


def blob_after(warp_function, source_from_target):
    """Position (x, y) in the target's frame of a blob at the source's origin, metres, in the published grid."""
    centers = PUBLISHED.centers(source_from_target)
    volume = torch.exp(-(centers[..., :2] / 3).square().sum(-1))
    warped = warp_function(volume[None, None, None], source_from_target, PUBLISHED)[0, 0, 0]
    return ((warped[..., None] * centers).sum((0, 1, 2)) / warped.sum())[:2]


def test_translation_is_in_metres_and_rotation_is_about_the_car():
    """The release moves by 0.9 m for 1.5 m, and a rotation by one degree moves the car itself by 1.3 m."""
    moved, turned = pose(x=1.5), pose(math.radians(1))
    torch.testing.assert_close(blob_after(warp, moved), torch.tensor([-1.5, 0]), rtol=0, atol=0.01)
    torch.testing.assert_close(blob_after(warp, turned), torch.zeros(2), rtol=0, atol=0.01)
    torch.testing.assert_close(blob_after(warp_of_indices, moved), torch.tensor([-0.9, 0]), rtol=0, atol=0.01)
    assert blob_after(warp_of_indices, turned).norm() == pytest.approx(1.3, abs=0.05)


def test_bf16_volumes_are_warped_in_float32():
    volume = world(STREET, torch.eye(4))[None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(volume.bfloat16(), pose(0.1, x=1.0), STREET)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped, warp(volume, pose(0.1, x=1.0), STREET), rtol=0, atol=0.01)
