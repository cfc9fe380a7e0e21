"""Whether viewpoints predict ratings that weren't used to find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pluralpref.data.bridging.factorization import best_minimum
from pluralpref.data.bridging.ratings import Ratings
from pluralpref.errors import ConfigError


@dataclass(frozen=True)
class HeldOutError:
    """Mean squared errors of held-out ratings, weighted.

    :param ratings: how many were held out and could be predicted: their person and item have other ratings.
    :param with_factors: of the whole model.
    :param without_factors: of its intercepts alone, fitted by themselves.
    """

    ratings: int
    with_factors: float
    without_factors: float


def held_out_error(
    ratings: Ratings, *, num_factors: int, fraction: float = 0.1, seed: int = 0, **options: Any
) -> HeldOutError | None:
    """Fit with and without factors to a part of the ratings and predict the others.

    With few ratings of each item, factors explain much of the ratings' variance even where people choose at random;
    they are viewpoints only if they predict. All that a person said of the answers to one prompt is held out
    together: of a comparison, one rating gives the other away.

    :param num_factors: at least 1.
    :param fraction: of what each person said of each prompt, between 0 and 1.
    :param seed: of the draw and of the starts.
    :param options: of :func:`factorize`.
    :returns: ``None`` if no held-out rating can be predicted.
    :raises ConfigError: for numbers out of range.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction}: expected a number between 0 and 1, exclusive")
    if num_factors < 1:
        raise ConfigError(f"num_factors={num_factors}: without factors there is nothing to compare")
    said = ratings.prompt_of_item()[ratings.item] * len(ratings.annotators) + ratings.rater
    each, position = np.unique(said, return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(each)) < round(fraction * len(each))
    out = chosen[position]
    known_rater = np.isin(ratings.rater, ratings.rater[~out])
    known_item = np.isin(ratings.item, ratings.item[~out])
    test = np.flatnonzero(out & known_rater & known_item)
    if not len(test) or out.all():
        return None
    rest = ratings.take(np.flatnonzero(~out))
    held_out = _in_terms_of(ratings, test, out)
    errors = []
    for factors in (num_factors, 0):
        _, parameters, _, _ = best_minimum(rest, num_factors=factors, seed=seed, **options)
        errors.append(float(np.average((held_out.value - parameters.predict(held_out)) ** 2, weights=held_out.weight)))
    return HeldOutError(len(test), errors[0], errors[1])


def _in_terms_of(ratings: Ratings, rows: np.ndarray, out: np.ndarray) -> Ratings:
    """The rows with people and items numbered as in what is left without ``out``."""
    raters, items = np.unique(ratings.rater[~out]), np.unique(ratings.item[~out])
    return Ratings(
        np.searchsorted(raters, ratings.rater[rows]),
        np.searchsorted(items, ratings.item[rows]),
        ratings.value[rows],
        ratings.weight[rows],
        tuple(ratings.annotators[i] for i in raters),
        tuple(ratings.items[i] for i in items),
    )
