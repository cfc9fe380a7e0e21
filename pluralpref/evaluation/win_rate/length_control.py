"""The win rate if both policies' answers were equally long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

#: Precision of the Gaussian prior of both coefficients: a standard deviation of 10 on the scale of log-odds.
RIDGE = 0.01

Array = NDArray[np.float64]


def length_feature(difference: Array, scale: float | None = None) -> Array:
    r""":math:`x_i = \tanh(\Delta_i / s)` with the differences of length Δ and s their standard deviation.

    :param difference: (pairs,), policy minus baseline, in characters.
    :param scale: s; by default that of these differences. Where it is 0 so are all x.
    """
    s = float(np.std(difference)) if scale is None else scale
    return np.tanh(difference / s) if s > 0 else np.zeros_like(difference)


def fit_length_control(x: Array, score: Array, weight: Array | None = None, start: Array | None = None) -> Array:
    r"""Coefficients (θ, φ) of the logistic regression of preference on length.

    .. math:: \min_{θ, φ} -\sum_i w_i [y_i \log σ(θ + φ x_i) + (1 - y_i) \log σ(-θ - φ x_i)] + \tfrac{λ}{2} (θ^2 + φ^2)

    with the score y of a pair, 1 a win, 0 a loss, fractions for ties and orders that disagree, x of
    :func:`length_feature` and λ = :data:`RIDGE`. The ridge keeps the coefficients finite where length or policy
    separate wins from losses; it moves estimates by about λ over the number of pairs.

    σ(θ) is the length-controlled win rate. From the model of Dubois et al. 2024 (arXiv:2404.04475, equation 2) the
    terms of the policies and of length are kept; that of the instruction's difficulty is left out, which their tool
    estimates from the verdicts on many policies.

    :param x: (pairs,).
    :param score: (pairs,) in [0, 1].
    :param weight: (pairs,) >= 0.
    :param start: where to begin.
    :returns: (2,).
    """
    w = np.ones_like(score) if weight is None else weight

    def objective(c: Array) -> tuple[float, Array]:
        z = c[0] + c[1] * x
        loss = np.sum(w * (np.logaddexp(0.0, z) - score * z)) + 0.5 * RIDGE * float(c @ c)
        residual = w * (expit(z) - score)
        return float(loss), np.array([residual.sum(), residual @ x]) + RIDGE * c

    def curvature(c: Array) -> Array:
        p = expit(c[0] + c[1] * x)
        v = w * p * (1 - p)
        cross = float(v @ x)
        return np.array([[v.sum() + RIDGE, cross], [cross, v @ (x * x) + RIDGE]])

    first = np.zeros(2) if start is None else start
    found = minimize(
        objective, first, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8 * max(1.0, w.sum())}
    )
    return np.asarray(found.x, dtype=np.float64)
