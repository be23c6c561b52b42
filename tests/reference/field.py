"""The field in float64, point by point, from its definition; weights by the names of a state dict."""

import numpy as np


def lookup(volume, index):
    """Trilinear feature [C] of a volume [C, Z, Y, X] at a continuous index (x, y, z); the border's value beyond it."""
    feature = np.zeros(volume.shape[0])
    cells, shares = [], []
    for axis, size in enumerate(volume.shape[:0:-1]):
        at = min(max(float(index[axis]), 0.0), size - 1.0)
        low = int(np.floor(at))
        cells.append((low, min(low + 1, size - 1)))
        shares.append((1 - (at - low), at - low))
    for k in range(2):
        for j in range(2):
            for i in range(2):
                share = shares[0][i] * shares[1][j] * shares[2][k]
                feature += share * volume[:, cells[2][k], cells[1][j], cells[0][i]]
    return feature


def softplus(x, beta):
    """log(1 + exp(beta x)) / beta, written so that nothing overflows."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(beta * x))) / beta


def mlp(weights, prefix, point, feature, activation):
    """An MLP of a point whose every layer adds its own linear map of the feature."""

    def linear(name, x):
        return weights[f"{prefix}.{name}.weight"] @ x + weights[f"{prefix}.{name}.bias"]

    hidden = weights[f"{prefix}.point.weight"].shape[0]
    maps = linear("feature", feature)
    x = linear("point", point) + maps[:hidden]
    block = 0
    while f"{prefix}.layers.{block}.weight" in weights:
        block += 1
        x = activation(linear(f"layers.{block - 1}", x)) + maps[block * hidden : (block + 1) * hidden]
    return linear("last", x)


def distance(weights, volume, low, voxel, scale, point):
    """Signed distance in scene units and geometry feature at a point in metres."""
    feature = lookup(volume, (point - low) / voxel - 0.5)
    out = mlp(weights, "sdf", point / scale, feature, lambda x: softplus(x, 100.0))
    return out[0], out[1:], feature


def evaluate(weights, volume, low, voxel, scale, point, direction, h=1e-7):
    """Signed distance, its gradient by the scaled position (central differences) and colour."""
    sdf, geometry, feature = distance(weights, volume, low, voxel, scale, point)
    normal = np.zeros(3)
    for axis in range(3):
        nudge = np.zeros(3)
        nudge[axis] = h * scale
        ahead = distance(weights, volume, low, voxel, scale, point + nudge)[0]
        behind = distance(weights, volume, low, voxel, scale, point - nudge)[0]
        normal[axis] = (ahead - behind) / (2 * h)
    facing = normal / np.sqrt((normal**2).sum() + 1e-4)
    seen = np.concatenate([direction, feature, facing, geometry])
    logits = mlp(weights, "rgb", point / scale, seen, lambda x: np.maximum(x, 0))
    return sdf, normal, 1 / (1 + np.exp(-logits))
