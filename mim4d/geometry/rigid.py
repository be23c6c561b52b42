"""Rigid transforms as 4x4 matrices ``a_from_b``."""

import torch
from torch import Tensor

from .precision import exact


def make_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    """Combine a rotation and a translation into one transform.

    Args:
        rotation: [..., 3, 3]; its columns are the axes of frame b in frame a.
        translation: [..., 3], the origin of frame b in frame a, metres.

    Returns:
        ``a_from_b`` [..., 4, 4], in the dtype of the rotation.

    >>> make_pose(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0., 0., 1.],
            [0., 1., 0., 2.],
            [0., 0., 1., 3.],
            [0., 0., 0., 1.]])
    """
    pose = rotation.new_zeros(*rotation.shape[:-2], 4, 4)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3].fill_(1)  # `pose[..., 3, 3] = 1` would copy the number from the host, which waits for a GPU
    return pose


@exact
def invert(a_from_b: Tensor) -> Tensor:
    """Invert a rigid transform: the rotation becomes its transpose Rᵀ, the translation -Rᵀ t.

    Unlike ``torch.linalg.inv``, this copies the numbers of the rotation without rounding.

    Args:
        a_from_b: [..., 4, 4], rigid.

    Returns:
        ``b_from_a`` [..., 4, 4].

    >>> a_from_b = make_pose(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    >>> invert(a_from_b)[:3, 3]
    tensor([-1., -2., -3.])
    """
    b_rotation_a = a_from_b[..., :3, :3].mT
    translation = -(b_rotation_a @ a_from_b[..., :3, 3:]).squeeze(-1)  # [..., 3]
    return make_pose(b_rotation_a, translation)


@exact
def transform(a_from_b: Tensor, points_b: Tensor) -> Tensor:
    """Map points from frame b to frame a.

    Args:
        a_from_b: [..., 4, 4].
        points_b: [..., P, 3] in metres; the leading dimensions broadcast against those of the transform.

    Returns:
        Points in frame a, [..., P, 3].

    A quarter turn to the left, then 10 m along x:

    >>> quarter_turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> a_from_b = make_pose(quarter_turn, torch.tensor([10.0, 0.0, 0.0]))
    >>> transform(a_from_b, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    tensor([[10.,  1.,  0.],
            [ 9.,  0.,  0.]])
    """
    return points_b @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Convert quaternions to rotation matrices.

    Args:
        quaternion: [..., 4] in the order of nuScenes, (w, x, y, z), of any length but 0.

    Returns:
        [..., 3, 3].

    Half a turn about z:

    >>> rotation_from_quaternion(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    tensor([[-1.,  0.,  0.],
            [ 0., -1.,  0.],
            [ 0.,  0.,  1.]])
    """
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 3, 3]
