"""Strength that differs between known groups, with partial pooling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Distribution, HalfNormal, Normal
from pyro.nn import PyroSample
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution

from pluralpref.errors import ConfigError, DataError
from pluralpref.models.contextual import ContextualStrength, for_pairs
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel

#: Scale of the default half-normal prior of the spread between groups, a standard deviation of log(beta).
PRIOR_SCALE = 1.0

_Labels = Sequence[str | int] | int


@register_family
class GroupStrength(ContextualStrength):
    r"""Groups of people differ in the level of their strength, and people differ within each group.

    .. math:: \beta = e^{\tau z_g}\, b, \qquad z_g \sim \mathrm{Normal}(0, 1), \qquad b \sim \text{strength} .

    Partial pooling: the spread :math:`\tau` between groups is learned, so that groups with few pairs lean on the others.
    ``effect`` (the :math:`z_g`, non-centred) has its prior by construction; the trainer and SVI learn a guide for it. The
    law without a context is that of a group with effect 0.

    Groups of several columns are crossed, each column with a spread of its own:

    .. math:: \beta = \exp\Big(\sum_c \tau_c z_{c, g_c}\Big)\, b .

    Shapes, for one column of G groups: ``scale`` (), ``effect`` (G,), the context (pairs,), integer codes 0, …, G - 1. For
    C >= 2 columns: ``scale`` (C,); ``effect`` (sum of the G_c,), the columns' effects one after the other; the context
    (pairs, C). Where ``strength`` reads columns itself, a context is the tuple of that and the context of ``strength``.

    :param groups: the labels of the groups, or their number (labels 0, 1, …); or, by column, the labels of each:
        ``{"country": ["DE", "FR"], "age": ["young", "old"]}``.
    :param strength: the law within a group with effect 0, default ``LogNormalStrength()``. It may read other columns, as
        :class:`CovariateStrength`.
    :param scale: :math:`\tau > 0` at the start, default 0.5. A number is learned, a Pyro distribution is a prior. For
        several columns one number for each of them, as many in their order, a mapping by column, or a prior with event
        shape (C,).
    :param column: the column of a data set that holds the labels, default ``"group"``; for groups given without columns.
    :raises ConfigError: for fewer than two groups, repeated labels, a scale that is out of range or doesn't fit the
        columns, a ``column`` besides a mapping, or a column that ``strength`` reads as well.

    References: A. Gelman and J. Hill, *Data Analysis Using Regression and Multilevel/Hierarchical Models*, 2007, ch. 12
    (partial pooling) and section 13.5 (non-nested groups); O. Papaspiliopoulos, G. Roberts and M. Sköld, "A general
    framework for the parametrization of hierarchical models", Statistical Science 22 (2007) (non-centred).
    """

    scale: Tensor
    effect: Tensor

    def __init__(
        self,
        groups: _Labels | Mapping[str, _Labels],
        strength: StrengthModel | None = None,
        scale: Any = 0.5,
        column: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(groups, Mapping):
            if column is not None:
                raise ConfigError(
                    f"GroupStrength: column={column!r} has no effect on groups by column: leave it out, or give the "
                    "labels alone"
                )
            if not groups or not all(isinstance(name, str) for name in groups):
                raise ConfigError(
                    f"GroupStrength: groups={groups!r} must name at least one column of labels, by its name as text"
                )
            self._labels = {name: _as_labels(labels, f" of column {name!r}") for name, labels in groups.items()}
        else:
            self._labels = {"group" if column is None else column: _as_labels(groups, "")}
        self._take_part(tuple(self._labels), strength)
        self._declare("scale", _check_scale(scale, tuple(self._labels)))
        count = sum(map(len, self._labels.values()))
        self.effect = PyroSample(Normal(torch.zeros(count, dtype=torch.float64), 1.0).to_event(1))

    @property
    def groups(self) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
        """The labels in the order of their codes; by column if there are several."""
        (first, *others) = self._labels.values()
        return dict(self._labels) if others else first

    def own_default_priors(self) -> dict[str, Distribution]:
        r""":math:`\tau_c \sim \mathrm{HalfNormal}(1)`, wherever training ended; no spread at all isn't ruled out.

        A group one standard deviation above the others with :math:`\tau = 1` has 2.7 times their strength.

        Reference: A. Gelman, "Prior distributions for variance parameters in hierarchical models", Bayesian Analysis 1
        (2006), for priors of a scale that don't vanish at 0.
        """
        count = len(self._labels)
        width = torch.full((count,) if count > 1 else (), PRIOR_SCALE, dtype=torch.float64)
        return {"scale": HalfNormal(width).to_event(1) if count > 1 else HalfNormal(width)}

    def own_parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """The groups' labels, under the column's name; of several columns ``column=label``, and the columns."""
        if len(self._labels) == 1:
            return {"effect": {column: list(labels) for column, labels in self._labels.items()}}
        names = [f"{column}={label}" for column, labels in self._labels.items() for label in labels]
        return {"scale": {"group_column": list(self._labels)}, "effect": {"group_effect": names}}

    def own_part(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """The groups' codes of a batch from its columns of labels, (pairs,); (pairs, C) for C >= 2 columns.

        :raises DataError: naming the column and the first row whose label isn't one of the groups.
        """
        codes = []
        for column, given in columns.items():
            labels = self._labels[column]
            code_of = {label: code for code, label in enumerate(labels)}
            unknown = [row for row, label in enumerate(given) if str(label) not in code_of]
            if unknown:
                raise DataError(
                    f"column {column!r}: row {unknown[0]} of a batch has the label {str(given[unknown[0]])!r}, which is "
                    f"none of the groups {', '.join(labels)}"
                )
            codes.append(torch.tensor([code_of[str(label)] for label in given], dtype=torch.int64))
        return codes[0] if len(codes) == 1 else torch.stack(codes, -1)

    def log_factor(self, context: Any) -> Tensor:
        r""":math:`\sum_c \tau_c z_{c, g_c}`, shape (pairs,); with draws of the parameters, (draws, pairs).

        :param context: the group's code of each pair, (pairs,), integers; (pairs, C) for C >= 2 columns.
        :raises DataError: for another number of columns, or codes out of range.
        """
        scale, effect = self.scale, self.effect
        codes, shape = self._check_codes(torch.as_tensor(context, device=effect.device))
        sizes = [len(labels) for labels in self._labels.values()]
        if len(sizes) == 1:
            scaled = scale.unsqueeze(-1) * effect
        else:
            column_of_effect = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(effect.device)
            scaled = scale[..., column_of_effect] * effect
        first = torch.tensor([sum(sizes[:c]) for c in range(len(sizes))], device=effect.device)
        return for_pairs(scaled[..., codes + first].sum(-1), shape)

    def _check_codes(self, codes: Tensor) -> tuple[Tensor, torch.Size]:
        """(Codes as (n, C), the shape of the n pairs)."""
        count = len(self._labels)
        if count > 1 and (codes.dim() < 1 or codes.shape[-1] != count):
            raise DataError(
                f"GroupStrength needs a context of shape (pairs, {count}), one column of codes for each of "
                f"{', '.join(self._labels)}; got {tuple(codes.shape)}"
            )
        shape = codes.shape if count == 1 else codes.shape[:-1]
        codes = codes.reshape(-1, count)
        sizes = torch.tensor([len(labels) for labels in self._labels.values()], device=codes.device)
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        wrong = (codes < 0) | (codes >= sizes) if whole else torch.ones_like(codes, dtype=torch.bool)
        if bool(wrong.any()) or not whole:
            row, c = wrong.nonzero()[0].tolist() if bool(wrong.any()) else (0, 0)
            column = list(self._labels)[c]
            found = f"row {row} is {codes[row, c].item()}" if len(codes) else f"its dtype is {codes.dtype}"
            raise DataError(
                f"GroupStrength: for column {column!r} the context must hold integer codes from 0 to "
                f"{len(self._labels[column]) - 1}, but {found}: make_context makes them from labels"
            )
        return codes, shape


def _as_labels(groups: Any, of_column: str) -> tuple[str, ...]:
    several = isinstance(groups, Iterable) and not isinstance(groups, str | Mapping)
    labels = list(range(groups)) if isinstance(groups, int) else list(groups) if several else []
    if len(labels) < 2 or len({str(label) for label in labels}) < len(labels):
        raise ConfigError(f"GroupStrength: groups={groups!r}{of_column} must be two or more labels, all different")
    return tuple(str(label) for label in labels)


def _check_scale(scale: Any, columns: tuple[str, ...]) -> Any:
    """``scale`` as one number for each column, or a prior of as many.

    :raises ConfigError: if it's of another shape or names other columns.
    """
    count = len(columns)
    shape = (count,) if count > 1 else ()
    if isinstance(scale, TorchDistribution):
        if tuple(scale.event_shape) != shape or scale.batch_shape:
            raise ConfigError(
                f"GroupStrength: scale={scale!r} has batch shape {tuple(scale.batch_shape)} and event shape "
                f"{tuple(scale.event_shape)}; a prior for {', '.join(columns)} needs () and {shape}"
                + (": .expand([" + str(count) + "]).to_event(1) makes one of a prior of a number" if shape else "")
            )
        return scale
    if isinstance(scale, Mapping):
        if set(scale) != set(columns):
            raise ConfigError(f"GroupStrength: scale={scale!r} must have a number for each of {', '.join(columns)}")
        scale = [scale[name] for name in columns]
        return scale if shape else scale[0]
    if hasattr(scale, "tolist"):  # tensors and arrays
        scale = scale.tolist()
    if isinstance(scale, list | tuple):
        if not shape or len(scale) != count or any(isinstance(value, list | tuple) for value in scale):
            raise ConfigError(
                f"GroupStrength: scale={scale!r} must be one number"
                + (f", or {count} of them for {', '.join(columns)}" if shape else f" for the column {columns[0]}")
            )
        return scale
    return [scale] * count if shape else scale
