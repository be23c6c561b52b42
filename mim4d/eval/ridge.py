"""Ridge regression from sums over samples, and scores of what it predicts. It is solved, not trained."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""Penalties that :func:`fit` chooses from, relative to standardised features."""


class Gram:
    """Sums of the products of features and targets over rows, float64; memory does not grow with the rows."""

    def __init__(self, features: int, targets: int, device: torch.device | str = "cpu") -> None:
        """Start with no rows.

        Args:
            features: Number of features, C.
            targets: Number of targets, K.
            device: Of the sums.
        """
        self.features = features
        size = 1 + features + targets
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)
        """[1+C+K, 1+C+K]: the sum over rows of the outer product of (1, features, targets) with itself."""

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add rows: ``features`` [rows, C] and ``targets`` [rows, K]."""
        ones = torch.ones(len(features), 1, dtype=torch.float64, device=self.products.device)
        rows = torch.cat([ones, features.to(ones), targets.to(ones)], dim=1)  # [rows, 1+C+K]
        self.products.addmm_(rows.T, rows)

    def __add__(self, other: "Gram") -> "Gram":
        joined = Gram(self.features, self.targets, self.products.device)
        torch.add(self.products, other.products, out=joined.products)
        return joined

    @property
    def targets(self) -> int:
        """Number of targets, K."""
        return len(self.products) - 1 - self.features

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.products[0, 0])


class Linear(NamedTuple):
    """A linear function of some of the features."""

    weight: Tensor
    """[c, K] float64, of the chosen features."""
    bias: Tensor
    """[K] float64."""


def ridge(gram: Gram, columns: slice, penalties: Sequence[float]) -> list[Linear]:
    """Solve ridge regressions of all targets, one per penalty.

    Features are standardised first; a feature that does not vary gets weight 0. Over rows with standardised features x
    and targets y, the weights w and the bias b are those that minimise::

        mean((y - x w - b)^2) + penalty |w|^2

    They are returned for the features as they came.

    Args:
        gram: At least one row.
        columns: Which features to use, c of them.
        penalties: Each more than 0.

    Raises:
        ValueError: If there are no rows.
    """
    if not gram.rows:
        raise ValueError("a ridge regression needs at least one row")
    mean = gram.products[0] / gram.rows  # [1+C+K]
    x, y = mean[1 : 1 + gram.features][columns], mean[1 + gram.features :]  # [c], [K]
    rows = gram.products[1 : 1 + gram.features][columns] / gram.rows  # [c, 1+C+K]
    covariance = rows[:, 1 : 1 + gram.features][:, columns] - torch.outer(x, x)  # [c, c]
    with_targets = rows[:, 1 + gram.features :] - torch.outer(x, y)  # [c, K]
    variance = covariance.diagonal()
    varies = variance > 1e-12 * (x.square() + variance.clamp(min=0).mean())  # what is below is rounding
    scale = torch.where(varies, variance, 1).rsqrt() * varies  # [c], 0 for constants
    correlation = covariance * torch.outer(scale, scale)
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    solved = []
    for penalty in penalties:
        factor = torch.linalg.cholesky(correlation + penalty * identity)
        weight = torch.cholesky_solve(with_targets * scale[:, None], factor) * scale[:, None]  # [c, K]
        solved.append(Linear(weight, y - x @ weight))
    return solved


def squared_error(gram: Gram, columns: slice, linear: Linear) -> Tensor:
    """Return the mean squared error [K] of a linear function on the rows of ``gram``, from its sums alone."""
    size, targets = len(gram.products), gram.targets
    residual = gram.products.new_zeros(size, targets)  # the error as a function of (1, features, targets)
    residual[0] = -linear.bias
    residual[1 : 1 + gram.features][columns] = -linear.weight
    residual[1 + gram.features :].fill_diagonal_(1)
    return ((gram.products @ residual) * residual).sum(0).clamp(min=0) / max(gram.rows, 1)


def fit(train: Gram, held_back: Gram, columns: slice) -> tuple[Linear, Linear]:
    """Fit with the penalty of each target that has the smallest squared error on rows held back from the fit.

    Args:
        train: Rows to fit on.
        held_back: Rows to choose the penalty on.
        columns: Which features to use.

    Returns:
        The function fitted on all rows, and the one fitted on ``train`` alone with the same penalties.

    Raises:
        ValueError: If either has no rows.
    """
    if not held_back.rows:
        raise ValueError("a penalty cannot be chosen on no rows")
    trials = ridge(train, columns, PENALTIES)
    best = torch.stack([squared_error(held_back, columns, trial) for trial in trials]).argmin(0).tolist()  # [K]
    final = ridge(train + held_back, columns, [PENALTIES[number] for number in best])
    return _own(final), _own([trials[number] for number in best])


def _own(solved: Sequence[Linear]) -> Linear:
    """The function whose target k is that of solution k."""
    return Linear(
        torch.stack([linear.weight[:, k] for k, linear in enumerate(solved)], dim=1),
        torch.stack([linear.bias[k] for k, linear in enumerate(solved)]),
    )


def r_squared(predicted: Tensor, truth: Tensor) -> float:
    """Fraction of the variance of ``truth`` [rows] that is explained: 1 - mean((y - p)^2) / var(y), at least 0.

    >>> round(r_squared(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])), 4)
    0.7857
    """
    truth = truth.double()
    return max(0.0, float(1 - (truth - predicted).square().sum() / (truth - truth.mean()).square().sum()))


def _steps(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, falling, and how many rows have that score or more: true ones and all."""
    scores, order = scores.sort(descending=True)
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]  # rows of one score are found together
    found = truth[order].double().cumsum(0)[last]
    return scores[last], found, last.nonzero().squeeze(1).double() + 1


def average_precision(scores: Tensor, truth: Tensor) -> float | None:
    """Sum (recall - previous recall) * precision over all thresholds, the area under precision over recall.

    Args:
        scores: [rows].
        truth: [rows] bool.

    Returns:
        0 to 1; None if no row is true.

    >>> average_precision(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, False, True]))
    0.75
    """
    if not truth.any():
        return None
    _, found, seen = _steps(scores, truth)
    recall = torch.cat([found.new_zeros(1), found]) / found[-1]
    return float((recall.diff() * found / seen).sum())


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """Return the score from which on rows count as true such that their IoU with ``truth`` is largest.

    It is half-way between two scores that occur, so that it also separates other rows.

    Args:
        scores: [rows], at least one.
        truth: [rows] bool.

    >>> best_threshold(torch.tensor([0.75, 0.5, 0.25]), torch.tensor([True, True, False]))
    0.375
    """
    thresholds, found, seen = _steps(scores, truth)
    best = int((found / (seen + found[-1] - found)).argmax())
    return float(thresholds[best : best + 2].mean())


def intersection_over_union(chosen: Tensor, truth: Tensor) -> float | None:
    """IoU of two sets of rows [rows] bool; None if no row is true."""
    return float((chosen & truth).sum() / (chosen | truth).sum()) if truth.any() else None
