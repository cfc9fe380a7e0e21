"""Every built-in family through the conformance kit that users run on their own, from one table."""

import torch

from pluralpref.models import (
    CovariateStrength,
    ExponentialStrength,
    FixedStrength,
    GammaStrength,
    GroupStrength,
    HalfNormalStrength,
    InverseGammaStrength,
    LatentClassStrength,
    LogLogisticStrength,
    LogNormalStrength,
    MixtureStrength,
    NormalStrength,
    OpposedStrength,
    TruncatedNormalStrength,
    WeibullStrength,
    ZeroInflatedStrength,
)
from pluralpref.testing import StrengthModelTests

FAMILIES = {
    "Fixed": lambda: FixedStrength(0.2),
    "FixedLearned": lambda: FixedStrength(0.2, learned=True),
    "LogNormal": lambda: LogNormalStrength(0.2, 0.8),
    "LogNormalOwn": lambda: LogNormalStrength(loc=-2.0, scale=1.5),
    "Gamma": lambda: GammaStrength(0.2, 1.5),
    "GammaOwn": lambda: GammaStrength(concentration=2.0, rate=10.0),
    "Weibull": lambda: WeibullStrength(0.2, 0.8),
    "WeibullOwn": lambda: WeibullStrength(concentration=0.9, scale=0.3),
    "InverseGamma": lambda: InverseGammaStrength(0.2, 0.4),
    "InverseGammaOwn": lambda: InverseGammaStrength(concentration=5.0, rate=1.0),
    "HalfNormal": lambda: HalfNormalStrength(0.2),
    "HalfNormalOwn": lambda: HalfNormalStrength(scale=0.4),
    "Exponential": lambda: ExponentialStrength(0.2),
    "ExponentialOwn": lambda: ExponentialStrength(rate=4.0),
    "LogLogistic": lambda: LogLogisticStrength(0.2, 0.4),
    "LogLogisticOwn": lambda: LogLogisticStrength(scale=0.2, concentration=6.0),
    "TruncatedNormal": lambda: TruncatedNormalStrength(0.2, 0.8),
    "TruncatedNormalOwn": lambda: TruncatedNormalStrength(loc=-0.1, scale=0.3),
    "Normal": lambda: NormalStrength(0.2, 1.2),
    "NormalOwn": lambda: NormalStrength(loc=-0.1, scale=0.3),
    "LatentClass": lambda: LatentClassStrength(0.2, 0.9, num_classes=3),
    "LatentClassOwn": lambda: LatentClassStrength(values=[0.05, 0.6], shares=[0.3, 0.7]),
    "Mixture": lambda: MixtureStrength([GammaStrength(0.1, 0.5), LogNormalStrength(0.5, 0.3)], [0.4, 0.6]),
    "ZeroInflated": lambda: ZeroInflatedStrength(GammaStrength(0.2, 0.5), 0.3),
    "Opposed": lambda: OpposedStrength(LogNormalStrength(0.2, 0.5), 0.3),
    "OpposedFixed": lambda: OpposedStrength(FixedStrength(0.2), 0.2),
    "ZeroInflatedNormal": lambda: ZeroInflatedStrength(NormalStrength(0.2, 0.8), 0.2),
}

for _name, _make in FAMILIES.items():
    _members = {"make_strength": lambda self, make=_make: make()}
    globals()[f"Test{_name}"] = type(f"Test{_name}", (StrengthModelTests,), _members)


def _features():
    return torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)


def _codes(groups=3):
    return torch.arange(8) % groups


def _crossed_codes():
    return torch.stack([_codes(3), _codes(2)], -1)


def _with_weights(strength, *weights):
    with torch.no_grad():
        strength.weight_unconstrained.copy_(torch.tensor(weights))
    return strength


CROSSED = {"region": ["north", "south", "west"], "age": ["young", "old"]}

# How a family is made whose law differs from pair to pair, and its context.
BY_PAIR = {
    "Covariate": (lambda: _with_weights(CovariateStrength(2, GammaStrength(0.2, 0.5)), 0.5, -0.3), _features),
    "CovariateNetwork": (
        lambda: _with_weights(
            CovariateStrength(["length", "difficulty"], LogNormalStrength(0.2, 0.5), hidden=3), 0.5, -0.3, 0.2
        ),
        _features,
    ),
    "Group": (lambda: GroupStrength(["north", "south", "west"], LogNormalStrength(0.2, 0.5)), _codes),
    "ZeroInflatedGroup": (lambda: ZeroInflatedStrength(GroupStrength(3, GammaStrength(0.2, 0.5)), 0.1), _codes),
    "CrossedGroups": (lambda: GroupStrength(CROSSED, GammaStrength(0.2, 0.5), scale=[0.7, 0.3]), _crossed_codes),
    "OpposedCrossedGroups": (
        lambda: OpposedStrength(GroupStrength(CROSSED, LogNormalStrength(0.2, 0.5)), 0.2),
        _crossed_codes,
    ),
    "CovariateOfGroups": (
        lambda: _with_weights(CovariateStrength(2, GroupStrength(CROSSED, LogNormalStrength(0.2, 0.5))), 0.5, -0.3),
        lambda: (_features(), _crossed_codes()),
    ),
    "GroupOfCovariates": (
        lambda: GroupStrength(3, _with_weights(CovariateStrength(2, GammaStrength(0.2, 0.5)), 0.5, -0.3)),
        lambda: (_codes(), _features()),
    ),
    "GroupOfZeroInflatedCovariates": (
        lambda: GroupStrength(
            3, ZeroInflatedStrength(_with_weights(CovariateStrength(2, WeibullStrength(0.2, 0.8)), 0.5, -0.3), 0.2)
        ),
        lambda: (_codes(), _features()),
    ),
}

for _name, (_make, _context) in BY_PAIR.items():
    _members = {
        "make_strength": lambda self, make=_make: make(),
        "make_context": lambda self, make=_context: make(),
    }
    globals()[f"Test{_name}"] = type(f"Test{_name}", (StrengthModelTests,), _members)


def test_a_quantile_at_an_atom_inside_of_a_mixture_of_mixtures():
    strength = OpposedStrength(ZeroInflatedStrength(GammaStrength(0.2, 0.5), 0.5), 0.1)
    assert strength.quantile(0.3).item() == 0.0
    assert strength.quantile(0.02).item() < 0 < strength.quantile(0.9).item()
