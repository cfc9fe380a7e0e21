"""The likelihood of every person under any law of beta that's made of positive parts, from one table.

The table (:mod:`~pluralpref.inference.interpolated_panels`) holds what a strength makes of each person's choices. The
engine's families have a rule of their own on it. A law with a density on positive numbers is integrated by the general
rule, whose nodes look their likelihoods up; a point mass looks up one; mixtures are sums, and a negated law sees every
choice the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pluralpref.distributions.absorb import absorbed
from pluralpref.distributions.mixture import is_nonnegative
from pluralpref.distributions.structure import factor_of, parts_of
from pluralpref.inference.interpolated_panels import InterpolatedPanels
from pluralpref.inference.marginal.any_density import has_density, make_rule
from pluralpref.inference.marginal.dispatch import Quadrature, unwrap_law
from pluralpref.inference.marginal.mixture import mixed
from pluralpref.inference.marginal.quadrature import has_log_family

#: Relative error of a probability by the general rule: far below a sampler's own error.
GENERAL_TOLERANCE = 1e-7
#: People by whose likelihoods the rule's range and nodes are chosen, from the most to the least agreeing.
_TESTS = 6


def can_tabulate(law: Distribution) -> bool:
    """Whether :func:`tabulated_log_marginal` knows what to do with a law."""
    law = absorbed(unwrap_law(law))
    if isinstance(law, Delta):
        return True
    if has_log_family(law):
        return True
    if (parts := parts_of(law)) is not None:
        return all(map(can_tabulate, parts[1]))
    if is_negated(law):
        return can_tabulate(law.base_dist)  # type: ignore[attr-defined]
    return has_density(law) and is_nonnegative(law)


def is_negated(law: Distribution) -> bool:
    """Whether a law is that of -X, with X from ``law.base_dist``."""
    if not isinstance(law, TransformedDistribution):
        return False
    factor = factor_of(law)
    return factor is not None and bool((torch.as_tensor(factor) == -1).all())


def tabulated_log_marginal(table: InterpolatedPanels, law: Distribution) -> Tensor:
    """Log E_beta[prod_j P(y_j | beta)] of every person, nats, once differentiable in the law's parameters.

    :param table: made from the choices.
    :param law: one law for all, of batch shape () or with one element; see :func:`can_tabulate`.
    :returns: (annotators,).
    """
    law = absorbed(unwrap_law(law))
    if has_log_family(law):
        return table.log_marginal(law)
    if isinstance(law, Delta):
        return _point_mass(table, law.v)
    if (parts := parts_of(law)) is not None:
        values = [tabulated_log_marginal(table, component) for component in parts[1]]
        return mixed([weight.reshape(1) for weight in parts[0]], values)
    if is_negated(law):
        base: Any = law
        return tabulated_log_marginal(table.opposed(), base.base_dist)
    return _density(table, law)


def _point_mass(table: InterpolatedPanels, value: Tensor) -> Tensor:
    if bool((value.detach() < 0).all()):
        return _point_mass(table.opposed(), -value)
    strength = value.reshape(1).double()
    with torch.no_grad():
        likelihood, slope = table.at(strength)
    # Linear in the value: what a sampler's gradient needs.
    return likelihood[0] + slope[0] * (strength - strength.detach())


def _density(table: InterpolatedPanels, law: Distribution) -> Tensor:
    ones = (1,) * len(law.batch_shape)
    people = table.typical(_TESTS)

    def likelihood(strength: Tensor, rows: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            value, _ = table.at(strength.reshape(-1), rows)
        return value.reshape(*value.shape, *ones)

    def tests(strength: Tensor) -> Tensor:
        value = likelihood(strength, people)
        return torch.cat([value, torch.zeros_like(value[:, :1])], 1)

    rule = make_rule(law, tests, Quadrature(GENERAL_TOLERANCE), table.steepest)
    return rule.log_average(likelihood(rule.strength)).reshape(-1)
