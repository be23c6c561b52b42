"""Rigid transforms as 4x4 matrices ``a_from_b``."""

import torch
from torch import Tensor

from .precision import exact


def make_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    """Put a rotation and a translation into one transform.

    Args:
        rotation: [..., 3, 3], the axes of b written in a.
        translation: [..., 3], the origin of b in a, metres.

    Returns:
        ``a_from_b`` [..., 4, 4], of the rotation's dtype.
    """
    pose = rotation.new_zeros(*rotation.shape[:-2], 4, 4)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3].fill_(1)  # assigning the number would make a tensor of it on the host first
    return pose


@exact
def invert(a_from_b: Tensor) -> Tensor:
    """``b_from_a`` of a rigid ``a_from_b`` [..., 4, 4]: the rotation transposed, so exact where ``inverse`` is not."""
    b_rotation_a = a_from_b[..., :3, :3].mT
    translation = -(b_rotation_a @ a_from_b[..., :3, 3:]).squeeze(-1)
    return make_pose(b_rotation_a, translation)


@exact
def transform(a_from_b: Tensor, points_b: Tensor) -> Tensor:
    """Take points from frame b to frame a.

    Args:
        a_from_b: [..., 4, 4].
        points_b: [..., N, 3] in metres; the leading dimensions broadcast against the transform's.

    Returns:
        Points in a, [..., N, 3].
    """
    return points_b @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of a quaternion [..., 4] in nuScenes' order (w, x, y, z), normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
