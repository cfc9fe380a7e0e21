"""A population with a share of people who have no preference at all."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Categorical, Delta, Distribution
from torch import Tensor
from torch.distributions import constraints

from pluralpref.distributions import MixtureGeneral
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import part_of, share_of
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class ZeroInflatedStrength(StrengthModel):
    r"""With probability :math:`s` a person is indifferent, :math:`\beta = 0`; else :math:`\beta` is from ``strength``.

    .. math:: E[\sigma(\beta h)] = s/2 + (1 - s)\, E_{\beta \mid \text{not } 0}[\sigma(\beta h)] .

    An indifferent person's choice is a coin's: for single choices this is the same likelihood as a share s/2 of flipped
    labels, which is why only repeated choices can tell the two apart.

    :param strength: the law of the others, default ``LogNormalStrength()``. Its parameters' names follow
        ``strength.``.
    :param share: s in (0, 1), default 0.1. A number is learned, a Pyro distribution is a prior.
    :raises ConfigError: if the share is out of range, or ``strength`` is no strength model.

    Reference: D. Lambert, "Zero-inflated Poisson regression", Technometrics 34 (1992), for the construction.
    """

    share: Tensor

    def __init__(self, strength: StrengthModel | None = None, share: Any = 0.1) -> None:
        super().__init__()
        self.strength = LogNormalStrength() if strength is None else part_of(type(self).__name__, strength)
        self._declare("share", share_of(type(self).__name__, share), constraints.unit_interval)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.MixtureGeneral` of a point mass at 0 and the others' law."""
        shares = torch.stack([self.share, 1 - self.share], -1)
        return MixtureGeneral(Categorical(shares), [Delta(torch.zeros_like(self.share)), self.strength(context)])
