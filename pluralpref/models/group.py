"""Strength that differs between known groups, with partial pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Distribution, Normal
from pyro.nn import PyroSample
from torch import Tensor

from pluralpref.distributions import Scaled
from pluralpref.errors import ConfigError, DataError
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import part_of
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class GroupStrength(StrengthModel):
    r"""Groups of people differ in the level of their strength, and people differ within each group.

    .. math:: \beta = e^{\tau z_g}\, b, \qquad z_g \sim \mathrm{Normal}(0, 1), \qquad b \sim \text{strength} .

    Partial pooling: the spread :math:`\tau` between groups is learned, so that groups with few pairs lean on the others.
    ``effect`` (the :math:`z_g`, non-centred) has its prior by construction; the trainer and SVI learn a guide for it. The
    law without a context is that of a group with effect 0.

    :param groups: the labels of the groups, or their number (labels 0, 1, …).
    :param strength: the law within a group with effect 0, default ``LogNormalStrength()``.
    :param scale: :math:`\tau > 0` at the start, default 0.5. A number is learned, a Pyro distribution is a prior.
    :param column: the column of a data set that holds the labels.
    :raises ConfigError: for fewer than two groups, repeated labels, or a scale out of range.

    Reference: A. Gelman and J. Hill, *Data Analysis Using Regression and Multilevel/Hierarchical Models*, 2007, ch. 12.
    """

    scale: Tensor
    effect: Tensor

    def __init__(
        self,
        groups: Sequence[str | int] | int,
        strength: StrengthModel | None = None,
        scale: Any = 0.5,
        column: str = "group",
    ) -> None:
        super().__init__()
        labels = list(range(groups)) if isinstance(groups, int) else list(groups)
        if isinstance(groups, str) or len(labels) < 2 or len({str(label) for label in labels}) < len(labels):
            raise ConfigError(f"GroupStrength: groups={groups!r} must be two or more labels, all different")
        self.own_context_columns = (column,)
        self.groups = tuple(str(label) for label in labels)
        self.strength = self._without_context(
            LogNormalStrength() if strength is None else part_of(type(self).__name__, strength)
        )
        self._declare("scale", scale)
        self.effect = PyroSample(Normal(torch.zeros(len(labels), dtype=torch.float64), 1.0).to_event(1))

    def own_context(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """The groups' codes of a batch from its column of labels, (pairs,).

        :raises DataError: naming the first row whose label isn't one of the groups.
        """
        (column,) = self.own_context_columns
        if column not in columns:
            raise DataError(f"there is no column {column!r}, which GroupStrength needs; there are {', '.join(columns)}")
        code_of = {label: code for code, label in enumerate(self.groups)}
        codes = []
        for row, label in enumerate(columns[column]):
            if str(label) not in code_of:
                raise DataError(
                    f"column {column!r}: row {row} of a batch has the label {str(label)!r}, which is none of the groups "
                    f"{', '.join(self.groups)}"
                )
            codes.append(code_of[str(label)])
        return torch.tensor(codes, dtype=torch.int64)

    def forward(self, context: Any = None) -> Distribution:
        """The law of b times exp(tau z_g), batch shape (pairs,).

        :param context: the group's code of each pair, (pairs,), integers; ``None``: a group with effect 0.
        :raises DataError: for codes out of range.
        """
        # Read in any case, so that a guide that's made without a context knows all sites.
        scale, effect, law = self.scale, self.effect, self.strength()
        if context is None:
            return law
        codes = torch.as_tensor(context, device=effect.device)
        if codes.is_floating_point() or bool(((codes < 0) | (codes >= len(self.groups))).any()):
            raise DataError(f"GroupStrength: the context must hold integer codes from 0 to {len(self.groups) - 1}")
        factor = torch.exp(scale.unsqueeze(-1) * effect)[..., codes]
        return Scaled(law, factor)
