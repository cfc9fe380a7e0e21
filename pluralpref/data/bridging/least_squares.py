r"""Alternating least squares of the regularised objective.

With W the sum of the weights, U people and N items,

.. math:: F = \frac{1}{W} \sum_{un} w_{un} (r_{un} - \hat{r}_{un})^2
    + \lambda_i \Big(\mu^2 + \frac{1}{U} \sum_u i_u^2 + \frac{1}{N} \sum_n i_n^2\Big)
    + \lambda_f \Big(\frac{1}{U} \sum_u \|f_u\|^2 + \frac{1}{N} \sum_n \|f_n\|^2\Big).

Each block (all items, all people, :math:`\mu`) is solved exactly while the others stand still, so F never rises.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from pluralpref.data.bridging.parameters import Parameters
from pluralpref.data.bridging.ratings import Ratings


class LeastSquares:
    """The objective of some ratings, and the exact minimum over one block of its parameters.

    :param ratings: the ratings.
    :param lambda_intercept: greater than 0.
    :param lambda_factor: greater than 0.
    """

    def __init__(self, ratings: Ratings, lambda_intercept: float, lambda_factor: float) -> None:
        self.ratings = ratings
        self.lambda_intercept = lambda_intercept
        self.lambda_factor = lambda_factor
        self.total_weight = float(ratings.weight.sum())
        size = (len(ratings.items), len(ratings.annotators))
        cells = (ratings.item, ratings.rater)
        # One row for each unit of the block that is solved, one column for each of the other side.
        self._of_items = (_table(ratings.weight, cells, size), _table(ratings.weight * ratings.value, cells, size))
        self._of_raters = tuple(table.T.tocsr() for table in self._of_items)

    def objective(self, parameters: Parameters) -> float:
        """F, see the module."""
        residual = self.ratings.value - parameters.predict(self.ratings)
        loss = float(self.ratings.weight @ residual**2) / self.total_weight
        intercepts = parameters.mu**2 + np.mean(parameters.rater_intercept**2) + np.mean(parameters.item_intercept**2)
        factors = np.sum(parameters.rater_factor**2) / len(parameters.rater_factor)
        factors += np.sum(parameters.item_factor**2) / len(parameters.item_factor)
        return loss + self.lambda_intercept * float(intercepts) + self.lambda_factor * float(factors)

    def sweep(self, parameters: Parameters) -> Parameters:
        """Solve the items, the people and the global intercept, one after the other."""
        intercept, factor = self.solve_items(parameters)
        parameters = replace(parameters, item_intercept=intercept, item_factor=factor)
        intercept, factor = _solve(
            *self._normal(self._of_raters, parameters.mu, parameters.item_intercept, parameters.item_factor)
        )
        parameters = replace(parameters, rater_intercept=intercept, rater_factor=factor)
        residual = self.ratings.value - parameters.predict(self.ratings)
        rest = float(self.ratings.weight @ residual) / self.total_weight + parameters.mu
        return replace(parameters, mu=rest / (1.0 + self.lambda_intercept))

    def solve_items(self, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts (items,) and factors (items, factors) that minimise F, the people as they are."""
        return _solve(*self.normal_equations_of_items(parameters))

    def normal_equations_of_items(self, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Matrices (items, 1 + factors, 1 + factors) and right-hand sides (items, 1 + factors) of the items."""
        return self._normal(self._of_items, parameters.mu, parameters.rater_intercept, parameters.rater_factor)

    def _normal(
        self, tables: tuple[csr_array, ...], mu: float, intercept: np.ndarray, factor: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        weight, weighted_rating = tables
        units, size = weight.shape[0], 1 + factor.shape[1]
        x = np.column_stack([np.ones(len(factor)), factor])
        products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        matrix = (weight @ products).reshape(units, size, size)
        # F times W, so that each rating counts with its own weight.
        penalty = np.full(size, self.lambda_factor)
        penalty[0] = self.lambda_intercept
        matrix[:, range(size), range(size)] += penalty * self.total_weight / units
        return matrix, weighted_rating @ x - weight @ (x * (mu + intercept)[:, None])


def _table(values: np.ndarray, cells: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> csr_array:
    return csr_array((values, cells), shape=shape)


def _solve(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    solution = solve_each(matrix, right)
    return solution[:, 0], solution[:, 1:]


def solve_each(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve small symmetric systems, (units, size, size) and (units, size)."""
    return np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
