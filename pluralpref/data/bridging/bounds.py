"""How far one more rating could move an item's intercept."""

from __future__ import annotations

from itertools import product

import numpy as np

from pluralpref.data.bridging.factorization import Factorization
from pluralpref.data.bridging.least_squares import solve_each


def intercept_bounds(fit: Factorization) -> tuple[np.ndarray, np.ndarray]:
    """Community Notes' pseudo-ratings: the lowest and the highest intercept that one extreme rating more leads to.

    Each item is given, in turn, a rating of 0 or of 1 by a made-up person with the lowest or the highest intercept
    of all people, and as factor either 0 or, along one axis, the lowest or the highest of all people. The item's own
    numbers are fitted again while the people's stand still; the rating counts as much as the mean rating. The range
    includes the intercept itself. It shows how much an intercept rests on few ratings; it isn't a confidence interval
    and has no level.

    :returns: lower and upper ends, (items,) each.
    """
    matrix, right = fit.problem.normal_equations_of_items(fit.parameters)
    intercepts, factors, mu = fit.parameters.rater_intercept, fit.parameters.rater_factor, fit.parameters.mu
    weight = fit.problem.total_weight / len(fit.ratings)
    low = high = fit.parameters.item_intercept
    for intercept, factor, value in product(
        (intercepts.min(), intercepts.max()), _extreme_factors(factors), (0.0, 1.0)
    ):
        x = np.concatenate([[1.0], factor])
        moved = solve_each(matrix + weight * np.outer(x, x), right + weight * (value - mu - intercept) * x)[:, 0]
        low, high = np.minimum(low, moved), np.maximum(high, moved)
    return low, high


def _extreme_factors(factors: np.ndarray) -> list[np.ndarray]:
    size = factors.shape[1]
    found = [np.zeros(size)]
    for axis, ends in enumerate(zip(factors.min(axis=0), factors.max(axis=0), strict=True)):
        for end in ends:
            found.append(np.where(np.arange(size) == axis, end, 0.0))
    return found
