"""Strength models by name, for configuration files and command lines."""

from __future__ import annotations

from collections.abc import Callable

from pluralpref.errors import ConfigError
from pluralpref.models.exponential import ExponentialStrength
from pluralpref.models.fixed import FixedStrength
from pluralpref.models.gamma import GammaStrength
from pluralpref.models.half_normal import HalfNormalStrength
from pluralpref.models.inverse_gamma import InverseGammaStrength
from pluralpref.models.latent_class import LatentClassStrength
from pluralpref.models.log_logistic import LogLogisticStrength
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import MixtureStrength
from pluralpref.models.normal import NormalStrength
from pluralpref.models.opposed import OpposedStrength
from pluralpref.models.strength import StrengthModel
from pluralpref.models.truncated_normal import TruncatedNormalStrength
from pluralpref.models.weibull import WeibullStrength
from pluralpref.models.zero_inflated import ZeroInflatedStrength

# From the mean alone: there is no heterogeneity, or none to choose.
_BY_MEAN: dict[str, Callable[[float], StrengthModel]] = {
    "fixed": FixedStrength,
    "fixed_learned": lambda mean: FixedStrength(mean, learned=True),
    "exponential": ExponentialStrength,
    "half_normal": HalfNormalStrength,
}
_BY_MEAN_AND_CV: dict[str, Callable[[float, float], StrengthModel]] = {
    "lognormal": LogNormalStrength,
    "gamma": GammaStrength,
    "weibull": WeibullStrength,
    "inverse_gamma": InverseGammaStrength,
    "log_logistic": LogLogisticStrength,
    "truncated_normal": TruncatedNormalStrength,
    "normal": NormalStrength,
    "latent_class": LatentClassStrength,
    "mixture": lambda mean, cv: MixtureStrength([LogNormalStrength(mean / 2, cv), LogNormalStrength(1.5 * mean, cv)]),
    "zero_inflated": lambda mean, cv: ZeroInflatedStrength(LogNormalStrength(mean, cv)),
    "opposed": lambda mean, cv: OpposedStrength(LogNormalStrength(mean, cv)),
}

#: The names that :func:`make_strength` knows.
FAMILIES = ("fixed", "fixed_learned", *_BY_MEAN_AND_CV, "exponential", "half_normal")


def make_strength(family: str, mean: float = 0.1, cv: float | None = None) -> StrengthModel:
    r"""A built-in strength model from its name, :math:`E[\beta]` and coefficient of variation.

    :param family: one of :data:`FAMILIES`. ``"fixed"`` is plain DPO at a constant :math:`\beta`, ``"fixed_learned"`` one
        learned :math:`\beta`; ``"zero_inflated"`` and ``"opposed"`` are made of a log-normal law, whose mean and cv are
        given, and ``"mixture"`` of two, around half the mean and one and a half times the mean. Families that depend on
        columns (:class:`~pluralpref.models.CovariateStrength`, :class:`~pluralpref.models.GroupStrength`) are made by
        their classes.
    :param mean: :math:`E[\beta] > 0` at the start.
    :param cv: the coefficient of variation at the start, default 0.5 where the family has one.
    :raises ConfigError: for an unknown family, a value out of range, or a cv that has no effect.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown strength family {family!r}: choose one of {', '.join(FAMILIES)}")
    if family in _BY_MEAN:
        if cv:
            kind = "a fixed strength" if family.startswith("fixed") else f"{family!r}, whose cv is fixed"
            raise ConfigError(f"cv={cv} has no effect on {kind}: leave it out or choose another family")
        return _BY_MEAN[family](mean)
    if cv is not None and cv < 0:
        raise ConfigError(f"cv={cv}: a coefficient of variation is greater than 0")
    return _BY_MEAN_AND_CV[family](mean, 0.5 if cv is None else cv)
