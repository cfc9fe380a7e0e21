"""A population with a share of people who hold the opposite preference."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Categorical, Distribution
from torch import Tensor
from torch.distributions import constraints

from pluralpref.distributions import MixtureGeneral, negate
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import part_of, share_of
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class OpposedStrength(StrengthModel):
    r"""A share :math:`s` of the people prefers what the others reject: their :math:`-\beta` is from ``strength``.

    .. math:: E[\sigma(\beta h)] = (1 - s)\,E_b[\sigma(b h)] + s\,E_b[\sigma(-b h)] .

    With ``FixedStrength`` and single choices this is label noise with flip rate s.

    :param strength: the law of :math:`|\beta|`, default ``LogNormalStrength()``. Its parameters' names follow
        ``strength.``.
    :param share: s in (0, 1), default 0.1. A number is learned, a Pyro distribution is a prior.
    :raises ConfigError: if the share is out of range, or ``strength`` is no strength model.
    """

    share: Tensor

    def __init__(self, strength: StrengthModel | None = None, share: Any = 0.1) -> None:
        super().__init__()
        self.strength = LogNormalStrength() if strength is None else part_of(type(self).__name__, strength)
        self._declare("share", share_of(type(self).__name__, share), constraints.unit_interval)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.MixtureGeneral` of the law and its mirror image."""
        law = self.strength(context)
        shares = torch.stack([1 - self.share, self.share], -1)
        return MixtureGeneral(Categorical(shares), [law, negate(law)])
