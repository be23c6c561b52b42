"""Which LiDAR points a camera can be asked about, and what it saw there: in float64, a point at a time."""

import numpy as np


def seen_points(points, intrinsics, ego_from_camera, size, low, high):
    """Points an image shows.

    Args:
        points: [P, 3], the real ones, in ego.
        intrinsics: [3, 3].
        ego_from_camera: [4, 4].
        size: (H, W) of the image.
        low: The volume's low corner (x, y, z).
        high: Its high corner.

    Returns:
        By point number: its continuous pixel (u, v) and its distance from the camera's centre, metres.
    """
    camera_from_ego = np.linalg.inv(ego_from_camera)
    centre = ego_from_camera[:3, 3]
    seen = {}
    for number, point in enumerate(points):
        if not all(low[axis] <= point[axis] < high[axis] for axis in range(3)):
            continue
        x, y, z = camera_from_ego[:3, :3] @ point + camera_from_ego[:3, 3]
        if z <= 0.1:
            continue
        u, v, w = intrinsics @ np.array([x, y, z])
        if 0 <= u / w < size[1] and 0 <= v / w < size[0]:
            seen[number] = (u / w, v / w), np.sqrt(((point - centre) ** 2).sum())
    return seen


def distance_to_ray(point, origin, direction):
    """How far a point lies from a ray, metres."""
    along = (point - origin) @ direction
    return np.sqrt(((point - origin - along * direction) ** 2).sum())
