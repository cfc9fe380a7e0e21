"""Quantiles of a one-dimensional distribution, whatever it offers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma

from pluralpref.errors import ConfigError

#: Draws used when a distribution has neither quantile function nor cdf.
SAMPLE_SIZE = 100_000


def quantile(law: Distribution, q: float | Tensor) -> Tensor:
    r"""The value below which :math:`\beta` falls with probability ``q``; no gradient.

    By the distribution's ``icdf`` where it has one, SciPy's inverse incomplete gamma function for Gamma, and
    otherwise from 100,000 draws made with a seed of their own, which leaves the global generator as it was.

    :param law: distribution with event shape ``()``.
    :param q: level(s) in (0, 1), broadcast against the batch shape.
    :raises ConfigError: if a level is outside (0, 1).
    """
    level = torch.as_tensor(q, dtype=torch.float64)
    if not ((level > 0) & (level < 1)).all():
        raise ConfigError(f"quantile level {q}: must lie strictly between 0 and 1")
    with torch.no_grad():
        if isinstance(law, Gamma):
            from scipy.special import gammaincinv

            shape, rate = law.concentration.double().cpu(), law.rate.double().cpu()
            return torch.as_tensor(gammaincinv(shape.numpy(), level.cpu().numpy())) / rate
        try:
            return law.icdf(level.to(law.mean.device)).double()
        except NotImplementedError:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                draws = law.sample(torch.Size([SAMPLE_SIZE])).double()
            return torch.quantile(draws, level.to(draws.device), dim=0)
