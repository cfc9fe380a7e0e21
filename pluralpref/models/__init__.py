"""Pyro models of preference strength, and the generative model of a choice."""

from pluralpref.models.factory import FAMILIES, make_strength
from pluralpref.models.fixed import FixedStrength
from pluralpref.models.gamma import GammaStrength
from pluralpref.models.lognormal import LogNormalStrength
from pluralpref.models.preference import ChoiceData, PreferenceModel
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel
from pluralpref.models.two_site import TwoSiteModel

__all__ = [
    "FAMILIES",
    "ChoiceData",
    "FixedStrength",
    "GammaStrength",
    "LogNormalStrength",
    "PreferenceModel",
    "StrengthModel",
    "TwoSiteModel",
    "make_strength",
    "register_family",
]
