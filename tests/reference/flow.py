"""The loss of the BEV flow in float64, pixel by pixel, from its definition."""

import math

import numpy as np

from tests.reference.consistency import bilinear, error_at, resized
from tests.reference.temporal import bilinear as cells_at


def flow_loss(flow, log_depth, images, intrinsics, ego_from_camera, current_from_ego, times, low, cell):
    """Loss of one clip.

    Args:
        flow: [T, 2, Y, X], m/s.
        log_depth: [T, V, h, w].
        images: [T, V, 3, H, W], 0 to 1.
        intrinsics: [T, V, 3, 3].
        ego_from_camera: [T, V, 4, 4].
        current_from_ego: [T, 4, 4].
        times: [T], seconds.
        low: (x, y) of the grid's low corner, metres.
        cell: (x, y) of a cell, metres.
    """
    frames, cameras = log_depth.shape[:2]
    losses = []
    for scale in (4, 8):
        total, count = 0.0, 0
        shrink = np.diag([1 / scale, 1 / scale, 1])
        for t in range(frames):
            for v in range(cameras):
                image = resized(images[t, v], scale)
                _, height, width = image.shape
                speeds = np.zeros((height, width))
                others = [s for s in range(frames) if s != t]
                pictures = {s: np.zeros_like(image) for s in others}
                inside = {s: np.zeros((height, width), bool) for s in others}
                for row in range(height):
                    for column in range(width):
                        place = (
                            (column + 0.5) * log_depth.shape[3] / width,
                            (row + 0.5) * log_depth.shape[2] / height,
                        )
                        depth = math.exp(bilinear(log_depth[t, v][None], *place)[0])
                        point = depth * (np.linalg.inv(shrink @ intrinsics[t, v]) @ [column + 0.5, row + 0.5, 1])
                        point = (ego_from_camera[t, v] @ [*point, 1])[:3]
                        index = (point[:2] - low) / cell - 0.5
                        velocity = cells_at(flow[t].transpose(1, 2, 0), *index)
                        speeds[row, column] = math.hypot(*velocity)
                        for s in others:
                            moved = point + np.array([*velocity, 0]) * (times[s] - times[t])
                            in_source = np.linalg.inv(current_from_ego[s] @ ego_from_camera[s, v]) @ (
                                current_from_ego[t] @ [*moved, 1]
                            )
                            x, y, z = shrink @ intrinsics[s, v] @ in_source[:3]
                            inside[s][row, column] = z > 0.1 and 0 <= x / z < width and 0 <= y / z < height
                            pictures[s][:, row, column] = bilinear(resized(images[s, v], scale), x / z, y / z)
                for row in range(1, height - 1):
                    for column in range(1, width - 1):
                        window = slice(row - 1, row + 2), slice(column - 1, column + 2)
                        errors = [error_at(pictures[s], image, row, column) for s in others if inside[s][window].all()]
                        if errors:
                            total, count = total + min(errors) + 0.001 * speeds[row, column], count + 1
        losses.append(total / max(count, 1))
    return np.mean(losses)
