"""A population made of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyro.distributions import Categorical, Distribution
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import constraints

from pluralpref.distributions import MixtureGeneral
from pluralpref.errors import ConfigError
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class MixtureStrength(StrengthModel):
    r"""A finite mixture of strength models: :math:`p(\beta) = \sum_k w_k\, p_k(\beta)`, families as you like.

    Integrated as exactly as its components are. Their parameters keep their names after ``component_0.``,
    ``component_1.``, ….

    :param components: two or more strength models. They become parts of this one and are learned with it.
    :param shares: :math:`w_k` at the start, positive, sum 1; default equal. Learned; a Dirichlet is a prior.
    :raises ConfigError: for fewer than two components or shares that don't fit.

    Reference: G. McLachlan and D. Peel, *Finite Mixture Models*, 2000, chapter 1.
    """

    shares: Tensor

    def __init__(self, components: Sequence[StrengthModel], shares: Any = None) -> None:
        super().__init__()
        if len(components) < 2 or not all(isinstance(c, StrengthModel) for c in components):
            raise ConfigError(f"MixtureStrength: components={components!r} must be two or more strength models")
        if len({id(c) for c in components}) < len(components):
            raise ConfigError("MixtureStrength: the same strength model is given twice, so both would stay the same")
        if shares is None:
            shares = [1 / len(components)] * len(components)
        if isinstance(shares, Tensor):
            shares = shares.tolist()
        fits = (
            shares.event_shape == (len(components),)
            if isinstance(shares, TorchDistribution)
            else isinstance(shares, Sequence)
            and len(shares) == len(components)
            and min(shares) > 0
            and abs(math.fsum(shares) - 1) <= 1e-6
        )
        if not fits:
            raise ConfigError(
                f"MixtureStrength: shares={shares} must be {len(components)} positive numbers that add up to 1, or a "
                "prior of as many"
            )
        self.num_components = len(components)
        for k, component in enumerate(components):
            setattr(self, f"component_{k}", component)
        self._declare("shares", shares, constraints.simplex)

    def own_parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """The components by number, as in the names of their parameters."""
        return {"shares": {"component": [str(k) for k in range(self.num_components)]}}

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.MixtureGeneral` of the components' laws."""
        laws = [getattr(self, f"component_{k}")(context) for k in range(self.num_components)]
        return MixtureGeneral(Categorical(self.shares), laws)


def part_of(family: str, strength: StrengthModel) -> StrengthModel:
    """``strength``, which ``family`` is made of.

    :raises ConfigError: if it isn't a strength model.
    """
    if not isinstance(strength, StrengthModel):
        raise ConfigError(f"{family}: strength={strength!r} must be a strength model, such as LogNormalStrength()")
    return strength


def share_of(family: str, share: Any) -> Any:
    """``share``, a number between 0 and 1 or a prior.

    :raises ConfigError: for 0 and 1 too, from where nothing could be learned.
    """
    if isinstance(share, int | float | Tensor) and not 0 < float(share) < 1:
        raise ConfigError(f"{family}: share={share} must lie between 0 and 1")
    return share
