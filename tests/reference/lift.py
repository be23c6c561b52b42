"""Lift and splat (arXiv 2008.05711, section 3) per pixel and depth bin, in float64."""

import math

import torch


def bin_centers(near, far, step):
    """Depths of the bins' middles."""
    depths, edge = [], near
    while edge < far - step / 2:
        depths.append(edge + step / 2)
        edge += step
    return depths


def voxel_of(point, ranges, sizes):
    """Integer (k, j, i) of the voxel whose half-open box [low, high) holds the point (x, y, z), or None."""
    index = []
    for value, (low, high), size in zip(point, ranges, sizes, strict=True):
        if not low <= value < high:
            return None
        index.append(min(math.floor((value - low) / size), round((high - low) / size) - 1))
    return tuple(reversed(index))


def point_of(column, row, depth, intrinsics, ego_from_camera, stride):
    """The centre of a feature's cell at a depth along the optical axis, in the ego frame: (x, y, z) floats."""
    u, v = (column + 0.5) * stride, (row + 0.5) * stride
    camera_y = (v - float(intrinsics[1, 2])) / float(intrinsics[1, 1])
    camera_x = (u - float(intrinsics[0, 2]) - float(intrinsics[0, 1]) * camera_y) / float(intrinsics[0, 0])
    camera = (camera_x * depth, camera_y * depth, depth)
    pose = ego_from_camera.tolist()
    return tuple(sum(pose[a][b] * camera[b] for b in range(3)) + pose[a][3] for a in range(3))


def voxels(intrinsics, ego_from_camera, depths, size, stride, ranges, sizes):
    """The voxel of each depth bin of each feature of one camera: {(bin, row, column): (k, j, i) or None}."""
    return {
        (d, row, column): voxel_of(point_of(column, row, depth, intrinsics, ego_from_camera, stride), ranges, sizes)
        for d, depth in enumerate(depths)
        for row in range(size[0])
        for column in range(size[1])
    }


def is_in_view(point, intrinsics, ego_from_camera, size, near, far):
    """Whether a point (x, y, z) of the ego frame falls on an image of (H, W) pixels, near <= depth < far."""
    pose = ego_from_camera.tolist()
    away = [point[a] - pose[a][3] for a in range(3)]
    x, y, z = (sum(pose[b][a] * away[b] for b in range(3)) for a in range(3))
    if not near <= z < far:
        return False
    k = intrinsics.tolist()
    return 0 <= (k[0][0] * x + k[0][1] * y) / z + k[0][2] < size[1] and 0 <= k[1][1] * y / z + k[1][2] < size[0]


def splat(shares, context, cameras, shape):
    """One frame's volume.

    Args:
        shares: [V, D, h, w], how much of each pixel is in each bin.
        context: [V, C, h, w].
        cameras: V dictionaries from :func:`voxels`.
        shape: (Z, Y, X).

    Returns:
        [C, Z, Y, X].
    """
    zero = context.new_zeros(context.shape[1])
    sums = {}
    for v, camera in enumerate(cameras):
        for (d, row, column), voxel in camera.items():
            if voxel is not None:
                sums[voxel] = sums.get(voxel, zero) + shares[v, d, row, column] * context[v, :, row, column]
    places = [(k, j, i) for k in range(shape[0]) for j in range(shape[1]) for i in range(shape[2])]
    return torch.stack([sums.get(place, zero) for place in places], dim=1).view(-1, *shape)
