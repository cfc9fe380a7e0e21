"""Finitely many classes of people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Categorical, Delta, Distribution
from torch import Tensor
from torch.distributions import constraints
from torch.special import ndtri

from pluralpref.distributions import MixtureGeneral
from pluralpref.errors import ConfigError
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel, as_number


@register_family
class LatentClassStrength(StrengthModel):
    r"""K classes of people, with one strength in each: :math:`P(\beta = b_k) = w_k`, :math:`0 < b_1 < \dots < b_K`.

    The strengths are :math:`b_k = b_1 \prod_{j<k} (1 + r_j)` with positive ``lowest`` :math:`b_1` and ``increase``
    :math:`r_j`, so that classes can't change places. The marginal is a sum, exact.

    :param mean: :math:`E[\beta] > 0` at the start, default 0.1.
    :param cv: the coefficient of variation at the start, default 0.5; below :math:`\sqrt{K-1}`.
    :param num_classes: K >= 2. At the start the classes have equal shares and strengths at the quantiles of a
        log-normal law.
    :param values: the K strengths at the start, positive and increasing, instead of ``mean`` and ``cv``.
    :param shares: the K shares at the start, positive, sum 1; with ``values``.
    :raises ConfigError: for values out of range, or a mixture of the two ways.

    Reference: K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, section 14.2 (latent class logit).
    """

    lowest: Tensor
    increase: Tensor
    shares: Tensor

    def __init__(
        self,
        mean: float | None = None,
        cv: float | None = None,
        num_classes: int | None = None,
        *,
        values: Sequence[float] | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if values is None:
            if shares is not None:
                raise ConfigError("LatentClassStrength: shares were given without values")
            start = _spread_values(
                0.1 if mean is None else mean, 0.5 if cv is None else cv, 2 if num_classes is None else num_classes
            )
        else:
            if mean is not None or cv is not None or num_classes is not None:
                raise ConfigError("LatentClassStrength: give mean, cv and num_classes, or values, not both")
            start = as_number("values", values, constraints.positive)
            if start.dim() != 1 or start.shape[0] < 2 or bool((start.diff() <= 0).any()):
                raise ConfigError(f"LatentClassStrength: values={values} must be 2 or more increasing numbers")
        weights = [1.0 / start.shape[0]] * start.shape[0] if shares is None else list(shares)
        if len(weights) != start.shape[0] or min(weights) <= 0 or abs(math.fsum(weights) - 1) > 1e-6:
            raise ConfigError(
                f"LatentClassStrength: shares={shares} must be {start.shape[0]} positive numbers that add up to 1"
            )
        self.num_classes = start.shape[0]
        self._declare("lowest", start[0])
        self._declare("increase", start[1:] / start[:-1] - 1)
        self._declare("shares", weights, constraints.simplex)

    def own_parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """The classes by number, from 0 for the lowest; an increase has that of the class that it leads to."""
        classes = [str(k) for k in range(self.num_classes)]
        return {"increase": {"higher_class": classes[1:]}, "shares": {"class": classes}}

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.MixtureGeneral` of K point masses, batch shape ``()``."""
        lowest = self.lowest.unsqueeze(-1)
        values = torch.cat([lowest, lowest * (1 + self.increase).cumprod(-1)], -1)
        return MixtureGeneral(Categorical(self.shares), [Delta(v) for v in values.unbind(-1)])


def _spread_values(mean: float, cv: float, count: int) -> Tensor:
    """Values with this mean and cv at equal shares: quantiles of a log-normal law, its spread found by bisection."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ConfigError(f"LatentClassStrength: num_classes={count!r} must be an integer of at least 2")
    centre = as_number("mean", mean, constraints.positive)
    spread = float(as_number("cv", cv, constraints.positive))
    if spread >= 0.999 * math.sqrt(count - 1):
        raise ConfigError(
            f"LatentClassStrength: cv={cv} is out of reach for {count} classes of equal shares, whose cv is below "
            f"sqrt({count - 1}) = {math.sqrt(count - 1):.3g}; give values and shares, or more classes"
        )
    normal = ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        values = torch.softmax(middle * normal, 0) * count
        low, high = (middle, high) if float(values.std(correction=0)) < spread else (low, middle)
    return centre * torch.softmax(high * normal, 0) * count
