"""What the factorisation estimates, and the one of its equivalent forms that is reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pluralpref.data.bridging.ratings import Ratings


@dataclass(frozen=True)
class Parameters:
    r""":math:`\hat{r}_{un} = \mu + i_u + i_n + f_u \cdot f_n`.

    :param mu: the global intercept.
    :param rater_intercept: (annotators,).
    :param item_intercept: (items,).
    :param rater_factor: (annotators, factors).
    :param item_factor: (items, factors).
    """

    mu: float
    rater_intercept: np.ndarray
    item_intercept: np.ndarray
    rater_factor: np.ndarray
    item_factor: np.ndarray

    def predict(self, ratings: Ratings) -> np.ndarray:
        """The ratings that are expected, (ratings,); they may lie outside [0, 1]."""
        u, n = ratings.rater, ratings.item
        affinity = np.einsum("rk,rk->r", self.rater_factor[u], self.item_factor[n])
        return self.mu + self.rater_intercept[u] + self.item_intercept[n] + affinity

    def largest_step(self, other: Parameters) -> float:
        """The largest difference between any two of the numbers."""
        pairs = (
            (self.rater_intercept, other.rater_intercept),
            (self.item_intercept, other.item_intercept),
            (self.rater_factor, other.rater_factor),
            (self.item_factor, other.item_factor),
        )
        return max(abs(self.mu - other.mu), *(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs))


def identified(parameters: Parameters, rater_component: np.ndarray, item_component: np.ndarray) -> Parameters:
    """Turn the factors to their principal axes, with the larger group of people on the negative side.

    The objective doesn't change when the factors of everybody in a connected component are rotated or reflected
    together. Here each component's axes are those in which its items differ most, in decreasing order; the
    sign is Community Notes': most people have a negative factor, and if as many have a positive one, their sum is
    negative.

    :param rater_component: (annotators,), see :meth:`~pluralpref.data.bridging.Ratings.components`.
    :param item_component: (items,).
    """
    rater, item = parameters.rater_factor, parameters.item_factor
    count = int(item_component.max()) + 1
    if item.shape[1] > 1:
        gram = np.zeros((count, item.shape[1], item.shape[1]))
        np.add.at(gram, item_component, item[:, :, None] * item[:, None, :])
        axes = np.linalg.eigh(gram)[1][:, :, ::-1]
        rater = np.einsum("uk,ukl->ul", rater, axes[rater_component])
        item = np.einsum("nk,nkl->nl", item, axes[item_component])
    majority, total = np.zeros((2, count, item.shape[1]))
    np.add.at(majority, rater_component, np.sign(rater))
    np.add.at(total, rater_component, rater)
    flip = np.where((majority > 0) | ((majority == 0) & (total > 0)), -1.0, 1.0)
    return Parameters(
        parameters.mu,
        parameters.rater_intercept,
        parameters.item_intercept,
        rater * flip[rater_component],
        item * flip[item_component],
    )
