"""Distributions of preference strength that Pyro doesn't have."""

from pluralpref.distributions.log_logistic import LogLogistic
from pluralpref.distributions.mixture import MixtureGeneral
from pluralpref.distributions.scaled import Scaled, negate
from pluralpref.distributions.truncated_normal import PositiveNormal

__all__ = ["LogLogistic", "MixtureGeneral", "PositiveNormal", "Scaled", "negate"]
