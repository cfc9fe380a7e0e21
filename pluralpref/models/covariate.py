"""Strength that depends on features of the pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pluralpref.errors import ConfigError, DataError
from pluralpref.models.contextual import ContextualStrength, for_pairs
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class CovariateStrength(ContextualStrength):
    r"""The log-mean of :math:`\beta` is a function of features :math:`x` of the pair or the person.

    .. math:: \beta = e^{f(x)}\, b, \qquad b \sim \text{strength}, \qquad f(x) = w^\top x \ \text{ or } \
              v^\top (\tanh(Wx + c) - \tanh(c)) ,

    linear, or a small network (``hidden`` units). In both, f(0) = 0: with standardised features, ``strength`` is the law
    of the average pair, and the law without a context. The coefficient of variation is the same for all.

    f starts at 0. Its parameters are learned together with those of ``strength`` (whose names follow ``strength.``):
    ``weight`` w, (features,), or v, (units,); of a network also ``inner`` W, (units, features), and ``offset`` c, (units,).

    The context is (pairs, features); where ``strength`` reads columns itself, the tuple of that and the context of
    ``strength``.

    :param features: the names of the columns, or their number.
    :param strength: the law of b, default ``LogNormalStrength()``. It may read other columns, as :class:`GroupStrength`.
    :param hidden: units of the network; default: linear.
    :raises ConfigError: for no features, fewer than one unit, or a column that ``strength`` reads as well.

    Reference: W. Greene, D. Hensher and J. Rose, "Accounting for heterogeneity in the variance of unobserved effects in
    mixed logit models", Transportation Research B 40 (2006).
    """

    weight: Tensor
    inner: Tensor
    offset: Tensor

    def __init__(
        self, features: Sequence[str] | int, strength: StrengthModel | None = None, hidden: int | None = None
    ) -> None:
        super().__init__()
        names = [f"feature_{i}" for i in range(features)] if isinstance(features, int) else list(features)
        if not names or isinstance(features, str) or len(set(names)) < len(names):
            raise ConfigError(
                f"CovariateStrength: features={features!r} must be column names, all different, or their number"
            )
        if hidden is not None and hidden < 1:
            raise ConfigError(f"CovariateStrength: hidden={hidden} must be at least 1, or None for a linear function")
        self._take_part(names, strength)
        count, width = len(names), len(names) if hidden is None else hidden
        self.hidden = hidden
        if hidden is not None:
            # Units that differ from the start, the same ones whatever the global generator's state.
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(width, count, generator=generator, dtype=torch.float64) / math.sqrt(count)
            offset = torch.randn(width, generator=generator, dtype=torch.float64)
            self._declare("inner", start, constraints.real)
            self._declare("offset", offset, constraints.real)
        self._declare("weight", torch.zeros(width), constraints.real)

    def own_parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """The features' names; a network's units by number."""
        features = {"feature": list(self.own_context_columns)}
        if self.hidden is None:
            return {"weight": features}
        units = {"unit": [str(unit) for unit in range(self.hidden)]}
        return {"inner": {**units, **features}, "offset": units, "weight": units}

    def own_part(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """The features of a batch from its columns, (pairs, features).

        :raises DataError: naming the column and the first row, if a value isn't a finite number.
        """
        values: list[Tensor] = []
        for name, given in columns.items():
            try:
                column = torch.as_tensor([float(v) for v in given], dtype=torch.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"column {name!r} must hold numbers, one for each pair: {error}") from error
            if not bool(torch.isfinite(column).all()):
                row = int((~torch.isfinite(column)).nonzero()[0])
                raise DataError(f"column {name!r}: row {row} of a batch is {column[row].item()}, not a finite number")
            values.append(column)
        return torch.stack(values, -1)

    def log_factor(self, context: Tensor) -> Tensor:
        """f(x), shape (pairs,); with draws of the parameters, (draws, pairs).

        :param context: (pairs, features).
        :raises DataError: for another number of features.
        """
        if not isinstance(context, Tensor) or context.dim() < 1 or context.shape[-1] != len(self.own_context_columns):
            found = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise DataError(
                f"CovariateStrength needs a context of shape (pairs, {len(self.own_context_columns)}), one column for each "
                f"of {', '.join(self.own_context_columns)}; got {found}"
            )
        x = context.to(self.weight).reshape(-1, context.shape[-1])
        if self.hidden is not None:
            offset = self.offset.unsqueeze(-2)
            x = torch.tanh(x @ self.inner.mT + offset) - torch.tanh(offset)
        return for_pairs((x @ self.weight.unsqueeze(-1)).squeeze(-1), context.shape[:-1])
