"""A new person's weights from a few choices, with everything else as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.inference.marginal.dispatch import unwrap_law
from pluralpref.inference.pal.data import PalPairs
from pluralpref.inference.pal.model import Pal

#: Where the prior's logarithm isn't finite, weights stay this far away from 0.
_LEAST = 1e-9
_Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def fit_person(pal: Pal, pairs: PalPairs, *, prior_strength: float = 0.0) -> Tensor:
    r"""Weights of one person from some choices, by maximum likelihood or the mode of a posterior.

    Minimised over the simplex is :math:`\sum_j \omega_j \ell_j(w) - s \sum_k \bar w_k \log w_k`: the losses of the choices with
    their weights :math:`\omega_j`, and the prior Dirichlet(:math:`1 + s \bar w`) around the training people's mean weights
    :math:`\bar w`. The paper has no prior, s = 0; then the result is often a corner where choices are few.

    With one strength for all and margins that are linear in w (PAL-B, and PAL-A with a linear f) the problem is convex and
    solved from one start; otherwise the best of K + 2 starts is taken: the mean weights, equal ones, and near each prototype.
    Choices without weight tell nothing, and the mean weights are returned. No random numbers are drawn.

    :param pal: fitted; left as it is.
    :param pairs: of one person; the name doesn't matter.
    :param prior_strength: s, as many choices as the prior is worth.
    :returns: (K,) float64, at least 0, with sum 1.
    :raises DataError: for choices of several people, or embeddings of another model.
    :raises ConfigError: for a prior strength below 0.
    :raises InferenceError: if no start leads to a finite loss.
    """
    if not 0 <= prior_strength < math.inf:
        raise ConfigError(f"prior_strength={prior_strength}: must be a number of at least 0")
    if pairs.annotator is not None and len(set(pairs.annotator.tolist())) > 1:
        raise DataError("these are choices of several people: fit the weights of one person at a time")
    k = pal.num_prototypes
    mean = pal.weights.double().mean(0).numpy()
    if not bool((pairs.weight > 0).any()):
        return torch.from_numpy(mean)
    objective = _objective(pal, pairs, prior_strength, mean)
    starts = [mean]
    if not (pal.reward.is_linear and _is_point(pal.strength.law())):
        starts += [np.full(k, 1 / k), *(0.9 * np.eye(k) + 0.1 / k)]
    least = _LEAST if prior_strength else 0.0
    found: list[tuple[float, np.ndarray]] = []
    for start in starts:
        result = minimize(
            objective,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(least, 1.0)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        for point in (start, result.x):
            w = np.clip(point, least, None)
            w = w / w.sum()
            value = objective(w)[0] if np.isfinite(w).all() else math.inf
            found.append((value, w))
    value, best = min(found, key=lambda each: each[0])
    if not math.isfinite(value):
        raise InferenceError("the choices have no finite likelihood under any weights: look at their embeddings")
    return torch.from_numpy(best)


def _objective(pal: Pal, pairs: PalPairs, prior_strength: float, mean: np.ndarray) -> _Objective:
    margins = _margins(pal, pairs)
    total = pairs.weight.sum()
    prior = torch.from_numpy(prior_strength * mean)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = (pairs.weight * pal.pair_losses(margins(w), pairs.preferred)).sum()
        if prior_strength:
            value = value - (prior * w.log()).sum()
        value = value / total
        if not bool(torch.isfinite(value)):
            return math.inf, np.zeros_like(point)
        (gradient,) = torch.autograd.grad(value, w)
        return float(value.detach()), gradient.numpy()

    return objective


def _margins(pal: Pal, pairs: PalPairs) -> Callable[[Tensor], Tensor]:
    """Margins (pairs,) as a function of the weights, in float64."""
    reward: Any = pal.reward
    if not reward.is_linear:
        reward = copy.deepcopy(reward).double()
    with torch.no_grad():
        represented = tuple(part.double() for part in reward.represent(_as(pairs, reward)))
        if reward.is_linear:
            # Linear on the simplex: what the corners give decides all.
            corners = torch.eye(pal.num_prototypes, dtype=next(reward.parameters()).dtype)
            columns = reward.per_person(tuple(part.to(corners.dtype) for part in represented), corners).T.double()
            return lambda w: columns @ w
    return lambda w: reward.per_person(represented, w.unsqueeze(0))[0]


def _as(pairs: PalPairs, reward: Any) -> PalPairs:
    dtype = next(reward.parameters()).dtype
    prompt = None if pairs.prompt is None else pairs.prompt.to(dtype)
    return replace(pairs, chosen=pairs.chosen.to(dtype), rejected=pairs.rejected.to(dtype), prompt=prompt)


def _is_point(law: Distribution) -> bool:
    return isinstance(unwrap_law(law), Delta)
