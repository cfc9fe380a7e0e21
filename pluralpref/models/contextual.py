"""Strength whose level depends on columns of a data set: what covariates and groups share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.distributions import Distribution
from torch import Size, Tensor

from pluralpref.distributions import Scaled
from pluralpref.errors import ConfigError, DataError
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import part_of
from pluralpref.models.strength import StrengthModel


class ContextualStrength(StrengthModel):
    r"""A law times a factor that depends on columns.

    .. math:: \beta = e^{f(c)}\, b, \qquad b \sim \text{strength}.

    Without a context the law is that of b. Where ``strength`` has context columns itself, ``context_columns`` are the own
    ones followed by those, and a context is the tuple (own, strength's), either of which may be ``None``.

    Subclasses call :meth:`_take_part` in their constructor and define :meth:`own_part` and :meth:`log_factor`.
    """

    strength: StrengthModel

    def _take_part(self, columns: Sequence[str], strength: StrengthModel | None) -> None:
        """Set the own columns and the law of b.

        :raises ConfigError: if ``strength`` is no strength model, or reads one of ``columns`` as well.
        """
        family = type(self).__name__
        part = LogNormalStrength() if strength is None else part_of(family, strength)
        twice = [name for name in columns if name in part.context_columns]
        if twice:
            raise ConfigError(
                f"{family}: the column {twice[0]!r} is used by the {type(part).__name__} within it as well, so its two "
                "effects couldn't be told apart: leave it out of one of them"
            )
        self.own_context_columns = tuple(columns)
        self.strength = part

    def own_part(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """What :meth:`log_factor` gets for a batch.

        :param columns: the values of ``own_context_columns``, equally many of each.
        """
        raise NotImplementedError(f"{type(self).__name__} must define own_part(columns)")

    def log_factor(self, context: Tensor) -> Tensor:
        """f(c), shape (pairs,); with draws of the parameters, (draws, pairs).

        :param context: as :meth:`own_part` makes it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_factor(context)")

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The own columns, then those of ``strength``."""
        return (*self.own_context_columns, *self.strength.context_columns)

    def make_context(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """The context of a batch, as :meth:`own_context` makes it."""
        return self.own_context(columns)

    def own_context(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """The context of a batch from columns of a data set; with a ``strength`` that has columns itself, (own, its).

        :param columns: the values of each of ``context_columns``, one for each pair.
        :raises DataError: for a column that is missing or longer than another, and for values that can't be used, naming
            the column and the row.
        """
        own: dict[str, Sequence[Any]] = {}
        for name in self.own_context_columns:
            if name not in columns:
                raise DataError(
                    f"there is no column {name!r}, which {type(self).__name__} needs; there are {', '.join(columns)}"
                )
            own[name] = columns[name]
        first = self.own_context_columns[0]
        for name in self.context_columns[1:]:
            if name in columns and len(columns[name]) != len(own[first]):
                raise DataError(
                    f"column {name!r} has {len(columns[name])} values, but {first!r} has {len(own[first])}: a batch "
                    "needs one of each for each pair"
                )
        made = self.own_part(own)
        return (made, self.strength.make_context(columns)) if self.strength.context_columns else made

    def forward(self, context: Any = None) -> Distribution:
        """The law of b times exp(f(c)), batch shape (pairs,); without a context the law of b.

        Draws of the parameters may have the leading dimensions (draws, 1), as Pyro lays them out with the pairs on the
        right; the batch shape is (draws, pairs) then.

        :param context: see :meth:`log_factor`; where ``strength`` has a context too, the tuple (own, strength's).
        :raises DataError: for a context of another form.
        """
        own, inner = self._split(context)
        # All are read in any case, so that a guide that's made without a context knows all sites.
        for name in (*self._pyro_params, *self.__dict__["_pyro_samples"]):
            getattr(self, name)
        law = self.strength(inner)
        return law if own is None else Scaled(law, self.log_factor(own).exp())

    def _split(self, context: Any) -> tuple[Any, Any]:
        inner = self.strength.context_columns
        if context is None or not inner:
            return context, None
        if not isinstance(context, tuple) or len(context) != 2:
            found = f"a tuple of {len(context)}" if isinstance(context, tuple) else type(context).__name__
            raise DataError(
                f"{type(self).__name__}: the context must be a tuple of two, for {', '.join(self.own_context_columns)} and "
                f"for {', '.join(inner)} of its strength, as make_context returns it; got {found}"
            )
        return context


def for_pairs(value: Tensor, shape: Size) -> Tensor:
    """(draws..., n) as (draws..., *shape), where ``shape`` holds n pairs.

    Draws with leading dimensions (draws, 1) keep the 1 free for the pairs, so here these take its place.
    """
    if value.dim() > 2 and value.shape[-2] == 1:
        value = value.squeeze(-2)
    return value.reshape(*value.shape[:-1], *shape)
