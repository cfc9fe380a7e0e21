"""Strength models by name, for configuration files and command lines."""

from __future__ import annotations

from pluralpref.errors import ConfigError
from pluralpref.models.fixed import FixedStrength
from pluralpref.models.gamma import GammaStrength
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.strength import StrengthModel

#: The names that :func:`make_strength` knows.
FAMILIES = ("fixed", "fixed_learned", "lognormal", "gamma")


def make_strength(family: str, mean: float = 0.1, cv: float | None = None) -> StrengthModel:
    r"""A built-in strength model from its name, :math:`E[\beta]` and coefficient of variation.

    :param family: ``"fixed"`` (plain DPO at a constant :math:`\beta`), ``"fixed_learned"`` (one learned
        :math:`\beta`), ``"lognormal"`` or ``"gamma"``.
    :param mean: :math:`E[\beta] > 0` at the start.
    :param cv: the coefficient of variation at the start, default 0.5 where the family has one.
    :raises ConfigError: for an unknown family, a value out of range, or a cv for a fixed strength.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown strength family {family!r}: choose one of {', '.join(FAMILIES)}")
    if family in ("fixed", "fixed_learned"):
        if cv:
            raise ConfigError(f"cv={cv} has no effect on a fixed strength: leave it out or choose another family")
        return FixedStrength(mean, learned=family == "fixed_learned")
    if cv is not None and cv < 0:
        raise ConfigError(f"cv={cv}: a coefficient of variation is greater than 0")
    return (LogNormalStrength if family == "lognormal" else GammaStrength)(mean=mean, cv=cv)
