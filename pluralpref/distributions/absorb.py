"""A scaled law as a law of its own family, where the family has a scale."""

from __future__ import annotations

import torch
from pyro.distributions import Delta, Exponential, Gamma, LogNormal
from torch.distributions import Distribution, TransformedDistribution

from pluralpref.distributions.mixture import MixtureGeneral
from pluralpref.distributions.scaled import Scaled
from pluralpref.distributions.structure import factor_of


def absorbed(law: Distribution) -> Distribution:
    """An equal law without an outer factor: c X of a log-normal, gamma, exponential X or of a point mass is one again.

    The factor of a mixture goes to its components. Other laws are returned as they are, and so are negative factors of
    laws on the half line.
    """
    if not isinstance(law, TransformedDistribution) or (scale := factor_of(law)) is None:
        return law
    base, factor = (
        absorbed(law.base_dist),
        scale if isinstance(scale, torch.Tensor) else torch.tensor(scale, dtype=torch.float64),
    )
    if isinstance(base, Delta):
        return Delta(base.v * factor, base.log_density)
    if isinstance(base, MixtureGeneral):
        parts = [absorbed(Scaled(c, factor)) for c in base.component_distributions]
        return MixtureGeneral(base.mixing_distribution, parts)
    if bool((factor <= 0).any()):
        return law
    if isinstance(base, torch.distributions.LogNormal):
        return LogNormal(base.loc + factor.log(), base.scale)
    if isinstance(base, torch.distributions.Gamma):
        return Gamma(base.concentration, base.rate / factor)
    if isinstance(base, torch.distributions.Exponential):
        return Exponential(base.rate / factor)
    return law
