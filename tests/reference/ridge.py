"""Ridge regression by loops over its definition."""

import numpy as np


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights [C] and bias that minimise mean((y - x w - b)^2) + penalty * |weights of the standardised features|^2.

    Solved as least squares on the standardised rows with one further row per feature, which is the penalty's.
    """
    rows, features = x.shape
    means = [sum(x[i, j] for i in range(rows)) / rows for j in range(features)]
    spreads = [(sum((x[i, j] - means[j]) ** 2 for i in range(rows)) / rows) ** 0.5 for j in range(features)]
    matrix, right = [], []
    for i in range(rows):
        standard = [(x[i, j] - means[j]) / spreads[j] if spreads[j] > 0 else 0.0 for j in range(features)]
        matrix.append([value / rows**0.5 for value in [*standard, 1.0]])
        right.append(y[i] / rows**0.5)
    for j in range(features):
        matrix.append([penalty**0.5 * (k == j) for k in range(features + 1)])
        right.append(0.0)
    *standard, bias = np.linalg.lstsq(np.array(matrix), np.array(right), rcond=None)[0]
    weights = [w / s if s > 0 else 0.0 for w, s in zip(standard, spreads, strict=True)]
    return np.array(weights), float(bias - sum(w * m for w, m in zip(weights, means, strict=True)))
