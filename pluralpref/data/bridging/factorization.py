"""Bridging by matrix factorisation: what is left of an answer's ratings once viewpoints are taken out."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np

from pluralpref.data.bridging.least_squares import LeastSquares
from pluralpref.data.bridging.parameters import Parameters, identified
from pluralpref.data.bridging.ratings import Ratings
from pluralpref.errors import ConfigError, DataError, IdentificationWarning, InferenceError

#: Community Notes' penalties.
LAMBDA_INTERCEPT, LAMBDA_FACTOR = 0.15, 0.03
#: Starts whose objectives differ by less than this share of it found the same minimum.
_SAME = 1e-5
#: How far all starts are followed; the best one goes on.
_ROUGH = 1e-5


@dataclass(frozen=True)
class Factorization:
    """The best of the minima that were found, with what is known of the others.

    :param ratings: what was fitted.
    :param parameters: see :class:`Parameters`; the item's intercept is its bridging score.
    :param problem: the objective.
    :param history: the objective after each sweep of the best start.
    :param starts: the objective at which each start was compared with the others.
    :param num_components: of the graph of people and items; intercepts of different ones aren't comparable.
    :param rater_component: (annotators,).
    :param item_component: (items,).
    """

    ratings: Ratings
    parameters: Parameters
    problem: LeastSquares
    history: tuple[float, ...]
    starts: tuple[float, ...]
    num_components: int
    rater_component: np.ndarray
    item_component: np.ndarray

    @property
    def objective(self) -> float:
        """The lowest value that was found."""
        return self.history[-1]

    @property
    def starts_at_best(self) -> int:
        """How many starts ended at the same value, within what shows before they are followed to their ends."""
        return sum(value <= min(self.starts) * (1 + _SAME) for value in self.starts)

    def explained(self) -> float:
        r"""The share of the ratings' variance that the model explains.

        :returns: :math:`1 - \sum w (r - \hat{r})^2 / \sum w (r - \bar{r})^2`, NaN if all ratings are the same.
        """
        weight, value = self.ratings.weight, self.ratings.value
        spread = float(weight @ (value - np.average(value, weights=weight)) ** 2)
        if spread == 0:
            return float("nan")
        return 1 - float(weight @ (value - self.parameters.predict(self.ratings)) ** 2) / spread

    def without_factors(self) -> Factorization:
        """The same ratings and penalty with intercepts alone, fitted by themselves."""
        problem, parameters, history, ends = best_minimum(
            self.ratings,
            num_factors=0,
            lambda_intercept=self.problem.lambda_intercept,
            lambda_factor=self.problem.lambda_factor,
        )
        return replace(self, parameters=parameters, problem=problem, history=history, starts=ends)


def factorize(
    ratings: Ratings,
    *,
    num_factors: int = 1,
    lambda_intercept: float = LAMBDA_INTERCEPT,
    lambda_factor: float = LAMBDA_FACTOR,
    num_starts: int = 5,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_sweeps: int = 20_000,
) -> Factorization:
    r"""Community Notes' matrix factorisation, :math:`r_{un} \approx \mu + i_u + i_n + f_u \cdot f_n`.

    Intercepts cost five times what factors do, so that what people's viewpoints :math:`f_u` can explain isn't put into
    the item's intercept :math:`i_n`: it is high if people of opposite viewpoints rate the item highly. The penalties
    are means over people and over items beside the mean squared error, as in the authors' code (the formula is in
    ``least_squares.py``); the formula of their documentation leaves open what they are sums of.

    Minimised by alternating least squares in float64 from several random starts, of which the best is kept. The
    factors are those of :func:`identified`.

    :param num_factors: dimensions of a viewpoint; 0 for intercepts alone.
    :param lambda_intercept: of :math:`\mu, i_u, i_n`, greater than 0.
    :param lambda_factor: of :math:`f_u, f_n`, greater than 0.
    :param num_starts: at least 1; more than one have no effect without factors.
    :param seed: of the starts; the result depends on nothing else, the order of the rows included.
    :param tolerance: a start has converged when no number moves by more than this in a sweep.
    :param max_sweeps: after which a start is given up.
    :raises DataError: without ratings.
    :raises ConfigError: for numbers out of range.
    :raises InferenceError: if the best start hasn't converged.

    Warns with :class:`~pluralpref.errors.IdentificationWarning` if people and items fall into several components.

    Sources: S. Wojcik et al., arXiv:2210.15723; code and documentation of github.com/twitter/communitynotes.
    """
    problem, parameters, history, ends = best_minimum(
        ratings,
        num_factors=num_factors,
        lambda_intercept=lambda_intercept,
        lambda_factor=lambda_factor,
        num_starts=num_starts,
        seed=seed,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
    )
    count, rater_component, item_component = ratings.components()
    if count > 1:
        warnings.warn(
            f"people and answers fall into {count} groups without a rating between them: intercepts and factors of "
            "different groups can't be compared",
            IdentificationWarning,
            stacklevel=2,
        )
    parameters = identified(parameters, rater_component, item_component)
    return Factorization(ratings, parameters, problem, history, ends, count, rater_component, item_component)


def best_minimum(
    ratings: Ratings,
    *,
    num_factors: int,
    lambda_intercept: float = LAMBDA_INTERCEPT,
    lambda_factor: float = LAMBDA_FACTOR,
    num_starts: int = 5,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_sweeps: int = 20_000,
) -> tuple[LeastSquares, Parameters, tuple[float, ...], tuple[float, ...]]:
    """The problem, its lowest minimum with factors as they come, the objective after each sweep, and the starts' ends.

    Arguments and errors as those of :func:`factorize`.
    """
    _check_counts(num_factors=(num_factors, 0), num_starts=(num_starts, 1), seed=(seed, 0), max_sweeps=(max_sweeps, 1))
    _check_positive(lambda_intercept=lambda_intercept, lambda_factor=lambda_factor, tolerance=tolerance)
    if not len(ratings):
        raise DataError("there are no ratings to factorise")
    problem = LeastSquares(ratings, lambda_intercept, lambda_factor)
    generator = np.random.default_rng(seed)
    starts = [random_start(ratings, num_factors, generator) for _ in range(num_starts if num_factors else 1)]
    # Which start is the best shows long before it has converged.
    found = [descend(problem, start, max(tolerance, _ROUGH), max_sweeps) for start in starts]
    parameters, history, _ = min(found, key=lambda each: each[1][-1])
    parameters, more, converged = descend(problem, parameters, tolerance, max_sweeps)
    if not converged:
        raise InferenceError(
            f"the factorisation still moved by more than {tolerance:g} after {max_sweeps} sweeps: raise max_sweeps, or "
            "lambda_intercept and lambda_factor"
        )
    return problem, parameters, (*history, *more), tuple(each[1][-1] for each in found)


def random_start(ratings: Ratings, num_factors: int, generator: np.random.Generator) -> Parameters:
    """Standard normal factors of the people; the first sweep needs nothing else."""
    people, items = len(ratings.annotators), len(ratings.items)
    factor = generator.standard_normal((people, num_factors))
    return Parameters(0.0, np.zeros(people), np.zeros(items), factor, np.zeros((items, num_factors)))


def descend(
    problem: LeastSquares, start: Parameters, tolerance: float, max_sweeps: int
) -> tuple[Parameters, list[float], bool]:
    """Sweep until nothing moves: where that ends, the objective after each sweep, and whether it converged."""
    history = []
    for _ in range(max_sweeps):
        parameters = problem.sweep(start)
        history.append(problem.objective(parameters))
        if parameters.largest_step(start) <= tolerance:
            return parameters, history, True
        start = parameters
    return start, history, False


def _check_counts(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise ConfigError(f"{name}={number}: must be at least {least}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        # Without a penalty the intercepts aren't determined: a constant may move from one to the other.
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value}: must be greater than 0 and finite")
