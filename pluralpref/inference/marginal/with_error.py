"""A marginal together with what is known about its error."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pluralpref.distributions.structure import factor_of, parts_of
from pluralpref.errors import ConfigError
from pluralpref.inference.marginal.any_density import density_with_error, has_density
from pluralpref.inference.marginal.dispatch import (
    MonteCarlo,
    Quadrature,
    available_methods,
    check_margins,
    log_marginal,
    unwrap_law,
)
from pluralpref.inference.marginal.mixture import mixed
from pluralpref.inference.marginal.quadrature import has_log_family, quadrature_with_error
from pluralpref.inference.marginal.safe_math import log1mexp, promote, working_dtype


def log_marginal_with_error(
    law: Distribution, margins: Tensor, method: Quadrature | MonteCarlo | None = None, *, replicates: int = 8
) -> tuple[Tensor, Tensor]:
    r"""The value of log E[sigmoid(beta h)], and an estimate of its error.

    By quadrature, the estimate bounds the error of the rule. By Monte Carlo, R independent replicates of K draws are
    averaged, and the estimate is the standard error of log of that average by the delta method,

    .. math:: s = \frac{1}{\bar p}\sqrt{\frac{1}{R(R-1)} \sum_r (\hat p_r - \bar p)^2},

    so that an interval of :math:`\pm t_{R-1} s` covers the exact value at its nominal rate where the estimates are
    near normal. Unlike quadrature's, it holds for every design of draws.

    :param law: the distribution of beta; by quadrature one with a density.
    :param margins: h, finite, nats.
    :param method: the tolerance and node limit, or the number and design of draws; by default quadrature.
    :param replicates: R, for Monte Carlo.
    :returns: (value, error), both of shape ``broadcast(law.batch_shape, margins.shape)``. The error is absolute in
        the value, that is relative in the probability.
    :raises UnsupportedError: if the family has no such method.
    :raises DataError: if a margin is NaN.
    :raises ConfigError: for fewer than two replicates, or for another kind of method.
    """
    margins = check_margins(margins)
    if method is None or isinstance(method, Quadrature):
        return _by_quadrature(unwrap_law(law), margins, method or Quadrature())
    if not isinstance(method, MonteCarlo):
        raise ConfigError(f"an error is estimated by Quadrature or MonteCarlo, not by {method!r}")
    if method.bias_correction:
        raise ConfigError(
            "bias_correction has no place here: the probabilities of the replicates are averaged, and those are unbiased"
        )
    if replicates < 2:
        raise ConfigError(f"replicates={replicates}: a standard error needs at least 2")
    runs = []
    for r in range(replicates):
        # Replicates with one seed would be copies of each other.
        own = method if method.seed is None else replace(method, seed=method.seed + r)
        runs.append(log_marginal(law, margins, own))
    values = torch.stack(runs)
    mean = torch.logsumexp(values, 0) - math.log(replicates)
    with torch.no_grad():
        error = torch.exp(values - mean).std(0) / math.sqrt(replicates)
    return mean, error


def _by_quadrature(law: Distribution, margins: Tensor, method: Quadrature) -> tuple[Tensor, Tensor]:
    if has_log_family(law):
        return quadrature_with_error(law, margins, method)
    if (parts := parts_of(law)) is not None:
        return _of_mixture(*parts, margins, method)
    if (factor := factor_of(law)) is not None:
        assert isinstance(law, TransformedDistribution)
        return _by_quadrature(law.base_dist, margins * factor, method)
    if has_density(law):
        return density_with_error(law, margins, method)
    if "closed_form" in available_methods(law):
        value = log_marginal(law, margins, "closed_form")
        return value, torch.finfo(value.dtype).eps * (1 + value.detach().abs())
    return quadrature_with_error(law, margins, method)  # which says what is missing


def _of_mixture(
    weights: list[Tensor], components: list[Distribution], margins: Tensor, method: Quadrature
) -> tuple[Tensor, Tensor]:
    """The errors of the components' probabilities, weighted as the probabilities are.

    Of the improbable side, since the other one is its complement.
    """
    h = margins.to(working_dtype(margins.device))
    sides = []
    for x in (h, -h):
        results = [_by_quadrature(c, x, method) for c in components]
        value = mixed(weights, [v for v, _ in results])
        with torch.no_grad():
            shares = [torch.exp(w + v - value) * e for w, (v, e) in zip(weights, results, strict=True)]
            sides.append((value, torch.stack(shares).sum(0)))
    (value, error), (other, other_error) = sides
    likely = value > other
    total = torch.where(likely, log1mexp(torch.where(likely, other, value)), value)
    with torch.no_grad():
        error = torch.where(likely, torch.exp(other - value) * other_error, error)
        error = error + torch.finfo(total.dtype).eps * (1 + total.abs())
    dtype = promote(margins.dtype, weights[0].dtype)
    return total.to(dtype), error.to(dtype)
