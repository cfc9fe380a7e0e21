"""Pyro models of preference strength, and the generative model of a choice."""

from pluralpref.models.covariate import CovariateStrength
from pluralpref.models.exponential import ExponentialStrength
from pluralpref.models.factory import FAMILIES, make_strength
from pluralpref.models.fixed import FixedStrength
from pluralpref.models.gamma import GammaStrength
from pluralpref.models.group import GroupStrength
from pluralpref.models.half_normal import HalfNormalStrength
from pluralpref.models.inverse_gamma import InverseGammaStrength
from pluralpref.models.latent_class import LatentClassStrength
from pluralpref.models.log_logistic import LogLogisticStrength
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.mixture import MixtureStrength
from pluralpref.models.normal import NormalStrength
from pluralpref.models.opposed import OpposedStrength
from pluralpref.models.preference import ChoiceData, PreferenceModel
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel
from pluralpref.models.truncated_normal import TruncatedNormalStrength
from pluralpref.models.two_site import TwoSiteModel
from pluralpref.models.weibull import WeibullStrength
from pluralpref.models.zero_inflated import ZeroInflatedStrength

__all__ = [
    "FAMILIES",
    "ChoiceData",
    "CovariateStrength",
    "ExponentialStrength",
    "FixedStrength",
    "GammaStrength",
    "GroupStrength",
    "HalfNormalStrength",
    "InverseGammaStrength",
    "LatentClassStrength",
    "LogLogisticStrength",
    "LogNormalStrength",
    "MixtureStrength",
    "NormalStrength",
    "OpposedStrength",
    "PreferenceModel",
    "StrengthModel",
    "TruncatedNormalStrength",
    "TwoSiteModel",
    "WeibullStrength",
    "ZeroInflatedStrength",
    "make_strength",
    "register_family",
]
