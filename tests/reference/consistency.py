"""Photometric consistency in float64, pixel by pixel, from its definition."""

import math

import numpy as np


def resized(image, scale):
    """Mean of blocks of an image [3, H, W]."""
    channels, height, width = image.shape
    return image.reshape(channels, height // scale, scale, width // scale, scale).mean((2, 4))


def bilinear(image, u, v):
    """Value [C] of an image [C, H, W] at a continuous pixel; the border's value beyond it."""
    channels, height, width = image.shape
    x, y = min(max(u - 0.5, 0), width - 1), min(max(v - 0.5, 0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    value = np.zeros(channels)
    for row, row_share in ((y0, 1 - (y - y0)), (min(y0 + 1, height - 1), y - y0)):
        for column, share in ((x0, 1 - (x - x0)), (min(x0 + 1, width - 1), x - x0)):
            value += row_share * share * image[:, row, column]
    return value


def error_at(a, b, row, column):
    """Photometric error of two images [3, H, W] at one pixel, which is not on the border."""
    total = 0.0
    for channel in range(3):
        x, y = (image[channel, row - 1 : row + 2, column - 1 : column + 2].flatten() for image in (a, b))
        mean_x, mean_y = x.mean(), y.mean()
        covariance = ((x - mean_x) * (y - mean_y)).mean()
        top = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
        ssim = top / ((mean_x**2 + mean_y**2 + 0.01**2) * (x.var() + y.var() + 0.03**2))
        total += 0.85 * min(max((1 - ssim) / 2, 0), 1) + 0.15 * abs(a[channel, row, column] - b[channel, row, column])
    return total / 3


def consistency(log_depth, images, intrinsics, current_from_camera, chosen):
    """Loss of one clip.

    Args:
        log_depth: [T, V, h, w].
        images: [T, V, 3, H, W], 0 to 1.
        intrinsics: [T, V, 3, 3].
        current_from_camera: [T, V, 4, 4].
        chosen: The frames whose depth counts.
    """
    frames, cameras = log_depth.shape[:2]
    losses = []
    for scale in (2, 4):
        total, count = 0.0, 0
        for t in chosen:
            for v in range(cameras):
                axis = current_from_camera[t, v, :3, 2]
                others = sorted(
                    (u for u in range(cameras) if u != v), key=lambda u: -axis @ current_from_camera[t, u, :3, 2]
                )
                sources = [(s, v) for s in range(frames) if s != t] + [(t, u) for u in others[:2]]
                sources = [s for s in sources if distance(current_from_camera[s], current_from_camera[t, v]) >= 0.2]
                values, counted = _image(
                    log_depth[t, v], images, intrinsics, current_from_camera, (t, v), sources, scale
                )
                total, count = total + values, count + counted
        losses.append(total / max(count, 1))
    return np.mean(losses) + 0.02 * roughness(log_depth[chosen], images[chosen])


def distance(a, b):
    """Metres between the origins of two poses."""
    return np.linalg.norm(a[:3, 3] - b[:3, 3])


def _image(log_depth, images, intrinsics, current_from_camera, target, sources, scale):
    image = resized(images[target], scale)
    _, height, width = image.shape
    shrink = np.diag([1 / scale, 1 / scale, 1])
    warped, inside = [], []
    for source in sources:
        source_from_target = np.linalg.inv(current_from_camera[source]) @ current_from_camera[target]
        other = resized(images[source], scale)
        picture, mask = np.zeros_like(image), np.zeros((height, width), bool)
        for row in range(height):
            for column in range(width):
                pixel = np.array([column + 0.5, row + 0.5, 1])
                place = (column + 0.5) * log_depth.shape[1] / width, (row + 0.5) * log_depth.shape[0] / height
                depth = math.exp(bilinear(log_depth[None], *place)[0])
                point = depth * (np.linalg.inv(shrink @ intrinsics[target]) @ pixel)
                point = source_from_target[:3, :3] @ point + source_from_target[:3, 3]
                x, y, z = shrink @ intrinsics[source] @ point
                mask[row, column] = z > 0.1 and 0 <= x / z < width and 0 <= y / z < height
                picture[:, row, column] = bilinear(other, x / z, y / z)
        warped.append(picture)
        inside.append(mask)
    total, count = 0.0, 0
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            rows, columns = slice(row - 1, row + 2), slice(column - 1, column + 2)
            errors = [
                error_at(picture, image, row, column)
                for picture, mask in zip(warped, inside, strict=True)
                if mask[rows, columns].all()
            ]
            if errors:
                still = [
                    error_at(resized(images[s, v], scale), image, row, column)
                    for s, v in sources
                    if s != target[0]
                ]  # fmt: skip
                total, count = total + min(errors + still), count + 1
    return total, count


def roughness(log_depth, images):
    """Mean change of log depth [T, V, h, w] where the images [T, V, 3, H, W] do not change."""
    frames, cameras, height, width = log_depth.shape
    steps = {"down": [], "right": []}
    for t in range(frames):
        for v in range(cameras):
            image = images[t, v].reshape(3, height, images.shape[3] // height, width, -1).mean((2, 4))
            for row in range(height):
                for column in range(width):
                    for name, (r, c) in {"down": (row + 1, column), "right": (row, column + 1)}.items():
                        if r < height and c < width:
                            edge = abs(image[:, r, c] - image[:, row, column]).mean()
                            change = abs(log_depth[t, v, r, c] - log_depth[t, v, row, column])
                            steps[name].append(change * math.exp(-edge))
    return np.mean(steps["down"]) + np.mean(steps["right"])


def against_lidar(log_depth, points, intrinsics, ego_from_camera, size, depth_range):
    """Mean |log error|, |error|, |error| / depth and share within 1.25 over the points [T][P, 3] of one clip."""
    frames, cameras, height, width = log_depth.shape
    rows = []
    for t in range(frames):
        for v in range(cameras):
            for point in points[t]:
                x, y, z = intrinsics[t, v] @ (np.linalg.inv(ego_from_camera[t, v]) @ [*point, 1])[:3]
                if not depth_range[0] <= z < depth_range[1]:
                    continue
                x, y = x / z, y / z
                if 0 <= x < size[1] and 0 <= y < size[0]:
                    at = bilinear(log_depth[t, v][None], x * width / size[1], y * height / size[0])[0]
                    metres = abs(math.exp(at) - z)
                    log_error = abs(at - math.log(z))
                    rows.append((log_error, metres, metres / z, log_error < math.log(1.25)))
    return np.mean(rows, axis=0)
