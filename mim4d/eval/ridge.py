"""Ridge regression from sums over samples, and scores of what it predicts. It is solved, not trained."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""Penalties that :func:`fit` chooses from, relative to standardised features."""


class Gram:
    """Means of features and targets over rows, and sums of products about them; memory does not grow with the rows.

    All are float64. Products about zero would lose the digits of a feature whose mean is far above its spread.
    """

    def __init__(self, features: int, targets: int, device: torch.device | str = "cpu") -> None:
        """Start with no rows.

        Args:
            features: Number of features, C.
            targets: Number of targets, K.
            device: Of the sums.
        """
        self.features = features
        self.rows = 0
        """Number of rows."""
        size = features + targets
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        """[C+K]: the mean of (features, targets)."""
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)
        """[C+K, C+K]: the sum over rows of the outer product of (features, targets) - mean with itself."""

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add rows: ``features`` [rows, C] and ``targets`` [rows, K]."""
        if not len(features):
            return
        rows = torch.cat([features.to(self.mean), targets.to(self.mean)], dim=1)  # [rows, C+K]
        mean = rows.mean(0)
        rows -= mean
        self._join(len(rows), mean, rows.T @ rows)

    def __add__(self, other: "Gram") -> "Gram":
        joined = Gram(self.features, self.targets, self.products.device)
        for part in (self, other):
            joined._join(part.rows, part.mean, part.products)
        return joined

    def _join(self, rows: int, mean: Tensor, products: Tensor) -> None:
        """Take in other rows: their number, mean [C+K] and products about it [C+K, C+K].

        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        if not rows:
            return
        total, difference = self.rows + rows, mean - self.mean
        self.products += products + torch.outer(difference, difference) * (self.rows * rows / total)
        self.mean += difference * (rows / total)
        self.rows = total

    @property
    def targets(self) -> int:
        """Number of targets, K."""
        return len(self.mean) - self.features


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
    x, y = gram.mean[: gram.features][columns], gram.mean[gram.features :]  # [c], [K]
    rows = gram.products[: gram.features][columns] / gram.rows  # [c, C+K]
    covariance, with_targets = rows[:, : gram.features][:, columns], rows[:, gram.features :]  # [c, c], [c, K]
    variance = covariance.diagonal()
    varies = variance > 1e-24 * (x.square() + variance.mean())  # what is below is rounding
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
    """Return the mean squared error [K] of a linear function on the rows of ``gram``, from its sums only."""
    residual = gram.products.new_zeros(len(gram.mean), gram.targets)  # the error as a function of (features, targets)
    residual[: gram.features][columns] = -linear.weight
    residual[gram.features :].fill_diagonal_(1)
    spread = ((gram.products @ residual) * residual).sum(0).clamp(min=0) / max(gram.rows, 1)
    return spread + (gram.mean @ residual - linear.bias).square()


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
    """Return the function whose target k is that of solution k."""
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
