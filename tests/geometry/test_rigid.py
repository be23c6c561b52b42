import numpy as np
import torch
from hypothesis import given, settings
from pyquaternion import Quaternion

from mim4d.geometry import invert, make_pose, rotation_from_quaternion, transform
from tests.geometry.strategies import quaternions, seeds
from tests.reference import rigid


@given(quaternions(), seeds())
def test_pose_agrees_with_the_definition(quaternion, generator):
    translation = 3000 * torch.randn(3, generator=generator, dtype=torch.float64)
    pose = make_pose(rotation_from_quaternion(quaternion), translation)
    np.testing.assert_allclose(pose, rigid.pose(quaternion.tolist(), translation.numpy()), atol=1e-12)


@given(quaternions())
def test_rotation_agrees_with_pyquaternion(quaternion):
    expected = Quaternion(quaternion.tolist()).rotation_matrix
    np.testing.assert_allclose(rotation_from_quaternion(quaternion), expected, atol=1e-12)


def test_quarter_turn_to_the_left():
    half = 2**-0.5
    pose = make_pose(rotation_from_quaternion(torch.tensor([half, 0.0, 0.0, half])), torch.tensor([10.0, 0.0, 0.0]))
    ahead = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(transform(pose, ahead), torch.tensor([[10.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


@given(quaternions(), quaternions(), seeds())
def test_transform_invert_and_compose_agree_with_loops(first, second, generator):
    points = 50 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    translations = 1000 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
    global_from_a = make_pose(rotation_from_quaternion(first), translations[0])
    global_from_b = make_pose(rotation_from_quaternion(second), translations[1])

    expected = rigid.transform(np.linalg.inv(global_from_b.numpy()) @ global_from_a.numpy(), points.numpy())
    b_from_a = invert(global_from_b) @ global_from_a
    np.testing.assert_allclose(transform(b_from_a, points), expected, atol=1e-8)


@settings(deadline=None)
@given(quaternions(), seeds())
def test_invert_gives_the_inverse(quaternion, generator):
    pose = make_pose(rotation_from_quaternion(quaternion), torch.randn(3, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(invert(pose) @ pose, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_leading_dimensions_broadcast():
    generator = torch.Generator().manual_seed(0)
    rotation = rotation_from_quaternion(torch.randn(2, 3, 4, generator=generator))
    poses = make_pose(rotation, torch.randn(2, 3, 3, generator=generator))
    points = torch.randn(2, 1, 5, 3, generator=generator)
    together = transform(poses, points)
    assert together.shape == (2, 3, 5, 3)
    torch.testing.assert_close(together[1, 2], transform(poses[1, 2], points[1, 0]))
