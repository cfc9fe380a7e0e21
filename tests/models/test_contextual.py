"""Groups of several columns, and covariates and groups inside of each other: laws by hand, priors, names, files."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Independent

from pluralpref.distributions import Scaled
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import log_marginal, log_marginal_panel
from pluralpref.inference.marginal import available_methods
from pluralpref.inference.marginal.dispatch import available_panel_methods
from pluralpref.models import (
    CovariateStrength,
    FixedStrength,
    GammaStrength,
    GroupStrength,
    LatentClassStrength,
    LogNormalStrength,
    MixtureStrength,
    OpposedStrength,
    StrengthModel,
    ZeroInflatedStrength,
)

COUNTRIES, AGES = ["DE", "FR", "IT"], ["young", "old"]
CROSSED = {"country": COUNTRIES, "age": AGES}


def t(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


SCALE, EFFECT = t(0.7, 0.3), t(1.0, -2.0, 0.5, -0.4, 1.5)
CODES = torch.tensor([[2, 0], [0, 1], [1, 1], [0, 0]])
#: tau_country z_country + tau_age z_age of each of the four pairs, written out.
LOG_FACTOR = np.array([0.7 * 0.5 + 0.3 * -0.4, 0.7 * 1.0 + 0.3 * 1.5, 0.7 * -2.0 + 0.3 * 1.5, 0.7 * 1.0 + 0.3 * -0.4])
FEATURES = t([0.5, -1.0], [0.0, 0.0], [2.0, 1.0], [-1.0, 0.3])
WEIGHT = t(0.4, -0.25)
LINEAR = np.array([0.4 * 0.5 + 0.25, 0.0, 0.4 * 2 - 0.25, -0.4 - 0.25 * 0.3])
H = t(1.5, -2.0, 0.4, -30.0)


def crossed(strength=None):
    return GroupStrength(CROSSED, LogNormalStrength(0.2, 0.5) if strength is None else strength, scale=[0.7, 0.3])


def with_weight(strength, weight=WEIGHT):
    with torch.no_grad():
        strength.weight_unconstrained.copy_(weight)
    return strength


# -- groups of several columns ----------------------------------------------------------------------------------------


def test_each_column_has_a_spread_and_effects():
    strength = crossed()
    assert strength.scale.shape == (2,)
    assert strength.priors()["effect"].event_shape == (5,)
    law = strength.law(CODES, parameters={"effect": EFFECT})
    assert law.batch_shape == (4,)
    np.testing.assert_allclose(law.mean.detach(), 0.2 * np.exp(LOG_FACTOR), rtol=1e-13)
    np.testing.assert_allclose((law.stddev / law.mean).detach(), 0.5, rtol=1e-13)
    alone = [log_marginal(LogNormalStrength(0.2 * np.exp(f), 0.5).law(), h) for f, h in zip(LOG_FACTOR, H, strict=True)]
    np.testing.assert_allclose(log_marginal(law, H).detach(), torch.stack(alone).detach(), rtol=1e-12)
    # Without a context, and where every effect has its prior's mean, the law is that of effect 0.
    assert float(strength.law(parameters={"effect": EFFECT}).mean) == pytest.approx(0.2, rel=1e-13)
    np.testing.assert_allclose(strength.law(CODES).mean.detach(), 0.2, rtol=1e-13)


def test_one_column_by_name_is_the_same_as_one_column():
    named = GroupStrength({"country": COUNTRIES}, GammaStrength(0.2, 0.5), scale={"country": 0.7})
    plain = GroupStrength(COUNTRIES, GammaStrength(0.2, 0.5), 0.7, "country")
    assert named.context_columns == plain.context_columns == ("country",)
    assert named.groups == plain.groups == ("DE", "FR", "IT")
    assert named.scale.shape == plain.scale.shape == ()
    codes = named.make_context({"country": ["IT", "DE"]})
    assert codes.tolist() == [2, 0]
    laws = [s.law(codes, parameters={"effect": EFFECT[:3]}).mean for s in (named, plain)]
    assert torch.equal(*laws)


@pytest.mark.parametrize("scale", [{"age": 0.3, "country": 0.7}, (0.7, 0.3), SCALE, SCALE.numpy()])
def test_ways_to_give_the_scales(scale):
    np.testing.assert_allclose(GroupStrength(CROSSED, scale=scale).scale.detach(), [0.7, 0.3], rtol=1e-14)


def test_one_scale_is_that_of_each_column():
    np.testing.assert_allclose(GroupStrength(CROSSED, scale=0.4).scale.detach(), [0.4, 0.4], rtol=1e-14)


@pytest.mark.parametrize("padded", [False, True])
def test_draws_of_the_parameters(padded):
    """Leading dimensions (draws,), or (draws, 1) as Pyro's plates have them."""
    strength = crossed().with_priors()
    scale, effect = torch.stack([SCALE, 2 * SCALE]), torch.stack([EFFECT, -EFFECT])
    means = t([0.2], [0.5])
    draws = {"scale": scale, "effect": effect, "strength.beta_mean": means, "strength.beta_cv": t([0.5], [1.5])}
    if padded:
        draws |= {"scale": scale.unsqueeze(1), "effect": effect.unsqueeze(1)}
    law = strength.law(CODES, parameters=draws)
    assert law.batch_shape == (2, 4)
    np.testing.assert_allclose(law.mean, [0.2 * np.exp(LOG_FACTOR), 0.5 * np.exp(-2 * LOG_FACTOR)], rtol=1e-13)
    np.testing.assert_allclose(law.stddev / law.mean, [[0.5] * 4, [1.5] * 4], rtol=1e-12)
    single = strength.law(CODES, parameters={name: value[1].squeeze(0) for name, value in draws.items()})
    torch.testing.assert_close(log_marginal(law, H)[1], log_marginal(single, H), rtol=1e-12, atol=0)


def test_draws_of_one_columns_parameters_with_room_for_the_pairs():
    strength = GroupStrength(3, LogNormalStrength(0.2, 0.5)).with_priors()
    scale, effect = t([0.7], [0.2]), torch.stack([EFFECT[:3], -EFFECT[:3]]).unsqueeze(1)
    draws = {"scale": scale, "effect": effect, "strength.beta_mean": t([0.2], [0.4])}
    law = strength.law(torch.tensor([2, 0, 1, 0]), parameters=draws)
    by_hand = np.exp(np.array([[0.7], [-0.2]]) * np.array([0.5, 1.0, -2.0, 1.0])) * np.array([[0.2], [0.4]])
    np.testing.assert_allclose(law.mean, by_hand, rtol=1e-13)


@pytest.mark.parametrize("hidden", [None, 3])
def test_draws_of_the_weights(hidden):
    strength = CovariateStrength(2, GammaStrength(0.2, 0.5), hidden=hidden).with_priors()
    torch.manual_seed(3)
    draws = {name: prior.sample((5,)) for name, prior in strength.priors().items()}
    law = strength.law(FEATURES, parameters={name: value.unsqueeze(1) for name, value in draws.items()})
    assert law.batch_shape == (5, 4)
    for row in range(5):
        single = strength.law(FEATURES, parameters={name: value[row] for name, value in draws.items()})
        np.testing.assert_allclose(law.mean[row], single.mean, rtol=1e-12)


def test_codes_from_labels():
    strength = GroupStrength({"country": COUNTRIES, "turns": 3})
    assert strength.context_columns == ("country", "turns")
    assert strength.groups == {"country": ("DE", "FR", "IT"), "turns": ("0", "1", "2")}
    made = strength.make_context({"turns": [2, "0"], "other": [0.5, 0.5], "country": ["FR", "DE"]})
    assert made.tolist() == [[1, 2], [0, 0]]


CONFIG_ERRORS = [
    (lambda: GroupStrength(CROSSED, column="age"), "column='age' has no effect on groups by column: leave it out"),
    (lambda: GroupStrength({}), r"groups=\{\} must name at least one column"),
    (
        lambda: GroupStrength({1: ["a", "b"], "age": AGES}),
        "must name at least one column of labels, by its name as text",
    ),
    (
        lambda: GroupStrength({"country": ["DE"], "age": AGES}),
        r"groups=\['DE'\] of column 'country' must be two or more",
    ),
    (
        lambda: GroupStrength({"country": COUNTRIES, "age": ["a", "a"]}),
        "of column 'age' must be two or more labels, all",
    ),
    (lambda: GroupStrength({"country": COUNTRIES, "age": {"a": 1, "b": 2}}), "of column 'age' must be two or more"),
    (lambda: GroupStrength({"country": COUNTRIES, "age": "young"}), "groups='young' of column 'age' must be two"),
    (lambda: GroupStrength(CROSSED, scale=[0.1, 0.2, 0.3]), "must be one number, or 2 of them for country, age"),
    (lambda: GroupStrength(CROSSED, scale=[[0.1], [0.2]]), "must be one number, or 2 of them for country, age"),
    (lambda: GroupStrength(CROSSED, scale={"country": 0.1}), "must have a number for each of country, age"),
    (lambda: GroupStrength(CROSSED, scale={"country": 1, "age": 1, "x": 1}), "must have a number for each of country"),
    (lambda: GroupStrength(CROSSED, scale=[0.1, 0.0]), r"scale=\[0.1, 0.0\]: must be greater than 0"),
    (lambda: GroupStrength(CROSSED, scale=-1.0), "must be greater than 0"),
    (lambda: GroupStrength(CROSSED, scale="x"), "give a number"),
    (
        lambda: GroupStrength(CROSSED, scale=dist.HalfNormal(t(1.0))),
        r"batch shape \(\) and event shape \(\); a prior for country, age needs \(\) and \(2,\): .expand\(\[2\]\).to_ev",
    ),
    (lambda: GroupStrength(CROSSED, scale=dist.HalfNormal(t(1.0, 1.0))), r"batch shape \(2,\) and event shape \(\)"),
    (
        lambda: GroupStrength(3, scale=dist.HalfNormal(t(1.0, 1.0)).to_event(1)),
        r"a prior for group needs \(\) and \(\)",
    ),
    (lambda: GroupStrength(3, scale=[0.5]), r"scale=\[0.5\] must be one number for the column group"),
    (lambda: GroupStrength(3, scale={"age": 0.5}), "must have a number for each of group"),
    (
        lambda: GroupStrength(CROSSED, CovariateStrength(["length", "age"])),
        "the column 'age' is used by the CovariateStrength within it as well",
    ),
    (
        lambda: CovariateStrength(["age", "length"], OpposedStrength(crossed())),
        "CovariateStrength: the column 'age' is used by the OpposedStrength within it as well",
    ),
]
NESTED = CovariateStrength(["a", "b"], crossed())
DATA_ERRORS = [
    (
        lambda: crossed().make_context({"country": ["DE", "IT"], "age": ["old", "elder"]}),
        "column 'age': row 1 of a batch has the label 'elder', which is none of the groups young, old",
    ),
    (
        lambda: crossed().make_context({"country": ["UK", "IT"], "age": ["old", "elder"]}),
        "column 'country': row 0 of a batch has the label 'UK', which is none of the groups DE, FR, IT",
    ),
    (
        lambda: crossed().make_context({"country": ["DE"]}),
        "no column 'age', which GroupStrength needs; there are country",
    ),
    (
        lambda: crossed().make_context({"country": ["DE", "FR"], "age": ["old"]}),
        "column 'age' has 1 values, but 'country' has 2",
    ),
    (
        lambda: crossed().law(CODES[:, 0]),
        r"needs a context of shape \(pairs, 2\), one column .* country, age; got \(4,\)",
    ),
    (lambda: crossed().law(torch.zeros(4, 3, dtype=torch.int64)), r"of shape \(pairs, 2\).*got \(4, 3\)"),
    (
        lambda: crossed().law(torch.tensor([[0, 0], [2, 2]])),
        "for column 'age' the context must hold integer codes from 0 to 1, but row 1 is 2",
    ),
    (lambda: crossed().law(torch.tensor([[0, 0], [-1, 1]])), "column 'country' .* from 0 to 2, but row 1 is -1"),
    (lambda: crossed().law(CODES.double()), "integer codes from 0 to 2, but row 0 is 2.0"),
    (lambda: crossed().law(CODES > 0), "integer codes from 0 to 2, but row 0 is True"),
    (lambda: crossed().law(torch.zeros(0, 2)), "integer codes from 0 to 2, but its dtype is torch.float32"),
    (lambda: NESTED.law(FEATURES), "must be a tuple of two, for a, b and for country, age of its strength.*got Tensor"),
    (lambda: NESTED.law((FEATURES, CODES, CODES)), "must be a tuple of two.*got a tuple of 3"),
    (
        lambda: NESTED.make_context({"a": [1], "b": [2], "country": ["DE"]}),
        "no column 'age', which GroupStrength needs",
    ),
    (
        lambda: NESTED.make_context({"a": [1], "b": [2], "country": ["DE"] * 2, "age": ["old"] * 2}),
        "column 'country' has 2 values, but 'a' has 1",
    ),
    (
        lambda: NESTED.make_context({"a": [1], "b": [2], "country": ["XX"], "age": ["old"]}),
        "column 'country': row 0 of a batch has the label 'XX'",
    ),
]


@pytest.mark.parametrize(
    ("kind", "build", "message"),
    [*((ConfigError, *row) for row in CONFIG_ERRORS), *((DataError, *row) for row in DATA_ERRORS)],
)
def test_refusals(kind, build, message):
    with pytest.raises(kind, match=message):
        build()


# -- one inside of the other ------------------------------------------------------------------------------------------

COLUMNS = {
    "length": FEATURES[:, 0].tolist(),
    "difficulty": FEATURES[:, 1].tolist(),
    "country": [COUNTRIES[c] for c in CODES[:, 0]],
    "age": [AGES[c] for c in CODES[:, 1]],
}
NAMES = ["length", "difficulty"]


@pytest.mark.parametrize("law", [LogNormalStrength(0.2, 0.5), GammaStrength(0.2, 0.5)], ids=["lognormal", "gamma"])
@pytest.mark.parametrize("groups_inside", [True, False])
def test_effects_and_features_add_up(groups_inside, law):
    if groups_inside:
        strength = with_weight(CovariateStrength(NAMES, crossed(law)))
        name, order = "strength.effect", (*NAMES, "country", "age")
    else:
        strength = crossed(with_weight(CovariateStrength(NAMES, law)))
        name, order = "effect", ("country", "age", *NAMES)
    assert strength.context_columns == order
    context = strength.make_context(COLUMNS)
    expected = (FEATURES, CODES) if groups_inside else (CODES, FEATURES)
    assert isinstance(context, tuple)
    assert all(torch.equal(one, other) for one, other in zip(context, expected, strict=True))
    found = strength.law(context, parameters={name: EFFECT})
    total = LOG_FACTOR + LINEAR
    np.testing.assert_allclose(found.mean.detach(), 0.2 * np.exp(total), rtol=1e-13)
    assert available_methods(found) == available_methods(law.law())
    alone = [log_marginal(type(law)(0.2 * np.exp(f), 0.5).law(), h) for f, h in zip(total, H, strict=True)]
    np.testing.assert_allclose(log_marginal(found, H).detach(), torch.stack(alone).detach(), rtol=1e-11)
    # Each half of the context may be missing, and both.
    parts = [(FEATURES, None), (None, CODES)] if groups_inside else [(None, FEATURES), (CODES, None)]
    for part, exponent in zip(parts, (LINEAR, LOG_FACTOR), strict=True):
        mean = strength.law(part, parameters={name: EFFECT}).mean.detach()
        np.testing.assert_allclose(mean, 0.2 * np.exp(exponent), rtol=1e-13)
    assert float(strength.law(parameters={name: EFFECT}).mean) == pytest.approx(0.2, rel=1e-13)


def test_draws_of_all_parameters_of_nested_families():
    strength = CovariateStrength(NAMES, crossed()).with_priors()
    torch.manual_seed(4)
    draws = {name: prior.sample((3,)) for name, prior in strength.priors().items()}
    context = (FEATURES, CODES)
    law = strength.law(context, parameters={name: value.unsqueeze(1) for name, value in draws.items()})
    assert law.batch_shape == (3, 4)
    for row in range(3):
        single = strength.law(context, parameters={name: value[row] for name, value in draws.items()})
        np.testing.assert_allclose(law.mean[row], single.mean, rtol=1e-12)


def test_a_family_between_two_that_read_columns():
    inner = with_weight(CovariateStrength(NAMES, FixedStrength(0.2)))
    strength = OpposedStrength(GroupStrength(COUNTRIES, ZeroInflatedStrength(inner, 0.25), 0.7, "country"), 0.1)
    assert strength.context_columns == ("country", *NAMES)
    law = strength.law(strength.make_context(COLUMNS), parameters={"strength.effect": EFFECT[:3]})
    factor = np.exp(LINEAR + 0.7 * EFFECT[CODES[:, 0]].numpy())
    np.testing.assert_allclose(law.mean.detach(), (0.9 - 0.1) * 0.75 * 0.2 * factor, rtol=1e-12)
    chosen = 1 / (1 + np.exp(-0.2 * factor * H.numpy()))
    by_hand = 0.125 + 0.75 * (0.9 * chosen + 0.1 * (1 - chosen))
    np.testing.assert_allclose(log_marginal(law, H).exp().detach(), by_hand, rtol=1e-12)


def test_three_levels():
    strength = GroupStrength(AGES, GroupStrength(COUNTRIES, CovariateStrength(NAMES), column="country"), column="age")
    assert strength.context_columns == ("age", "country", *NAMES)
    age, (country, features) = strength.make_context(COLUMNS)
    assert age.tolist() == CODES[:, 1].tolist()
    assert country.tolist() == CODES[:, 0].tolist()
    assert torch.equal(features, FEATURES)
    effects = {"effect": EFFECT[3:], "strength.effect": EFFECT[:3]}
    mean = strength.law((age, (country, features)), parameters=effects).mean.detach()
    by_hand = 0.1 * np.exp(0.5 * EFFECT[3:][CODES[:, 1]].numpy() + 0.5 * EFFECT[:3][CODES[:, 0]].numpy())
    np.testing.assert_allclose(mean, by_hand, rtol=1e-13)


@pytest.mark.parametrize(
    "build", [lambda: CovariateStrength(NAMES, crossed()), lambda: crossed(CovariateStrength(NAMES))]
)
def test_a_guide_made_without_a_context_has_all_sites(build):
    strength = build().with_priors()
    with pyro.get_param_store().scope():
        guide = AutoNormal(poutine.block(strength, hide=[]))
        guide()
        assert set(guide.median()) == set(strength.priors())


BASES = {
    "lognormal": dist.LogNormal(t(-1.0), t(0.8)),
    "gamma": dist.Gamma(t(2.0), t(5.0)),
    "weibull": dist.Weibull(t(0.3), t(1.4)),
}


@pytest.mark.parametrize("name", BASES)
def test_a_law_scaled_twice(name):
    base, f, g = BASES[name], t(0.5, 2.0, 3.0, 1.0), t(2.0, 0.25, 1.5, -0.7)
    twice, once = Scaled(Scaled(base, f), g), Scaled(base, f * g)
    assert available_methods(twice) == available_methods(once) == available_methods(base)
    assert available_panel_methods(twice) == available_panel_methods(once)
    # By the base's own rule, one law for all pairs: exactly what the margins times both factors give.
    torch.testing.assert_close(log_marginal(twice, H), log_marginal(base, H * g * f), rtol=1e-12, atol=0)
    torch.testing.assert_close(twice.mean, once.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(twice.variance, once.variance, rtol=1e-13, atol=0)
    x = t(0.4, 0.1, 2.0, -0.3)
    torch.testing.assert_close(twice.log_prob(x), once.log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(twice.cdf(x), once.cdf(x), rtol=1e-12, atol=1e-14)
    assert twice.support.check(x).all()
    wide = twice.expand((3, 4))
    torch.testing.assert_close(log_marginal(wide, H), log_marginal(once, H).expand(3, 4), rtol=1e-9, atol=0)
    panel, h = torch.tensor([0, 1, 2, 3, 0, 1]), t(1.0, -0.5, 2.0, 0.3, -1.0, 4.0)
    values = [log_marginal_panel(law, h, panel, 4) for law in (twice, once)]
    torch.testing.assert_close(*values, rtol=1e-9, atol=0)


def test_scaled_twice_costs_as_much_as_once():
    """The exact rule gets one law for all pairs, not as many as there are pairs."""
    factor = torch.linspace(0.5, 2, 50, dtype=torch.float64)
    nested = Scaled(Scaled(BASES["lognormal"], factor), factor)
    assert nested.unscaled.unscaled is BASES["lognormal"]
    assert nested.unscaled.unscaled.batch_shape == ()


# -- priors -----------------------------------------------------------------------------------------------------------


def test_the_spread_between_groups_has_a_prior_of_its_own():
    priors = GroupStrength(3, scale=4.0).default_priors()
    assert list(priors) == ["scale", "strength.beta_mean", "strength.beta_cv"]
    assert isinstance(priors["scale"], dist.HalfNormal)
    assert float(priors["scale"].scale) == 1.0
    assert priors["scale"].event_shape == priors["scale"].batch_shape == ()
    # No spread is as plausible as any: the density at 0 is its largest.
    assert float(priors["scale"].log_prob(t(0.0))) == pytest.approx(np.log(2 / np.sqrt(2 * np.pi)), rel=1e-12)
    several = crossed(LogNormalStrength(loc=-1.0, scale=0.4)).default_priors()
    assert isinstance(several["scale"], Independent)
    assert isinstance(several["scale"].base_dist, dist.HalfNormal)
    assert several["scale"].event_shape == (2,)
    assert several["scale"].base_dist.scale.tolist() == [1.0, 1.0]
    # A scale of another family keeps the general rule.
    assert isinstance(several["strength.scale"], dist.LogNormal)
    assert float(several["strength.scale"].loc) == pytest.approx(np.log(0.4))


def test_priors_of_nested_families():
    strength = OpposedStrength(CovariateStrength(NAMES, crossed()), 0.2)
    priors = strength.default_priors()
    assert set(priors) == set(strength.learned())
    assert isinstance(priors["strength.strength.scale"].base_dist, dist.HalfNormal)
    assert isinstance(priors["share"], dist.Uniform)
    assert isinstance(priors["strength.weight"].base_dist, dist.Normal)
    assert isinstance(priors["strength.strength.strength.beta_cv"], dist.HalfNormal)
    twin = strength.with_priors()
    assert twin.learned() == {}
    assert twin.priors()["strength.strength.scale"].event_shape == (2,)
    given = dist.LogNormal(t(0.0, 0.0), t(1.0, 1.0)).to_event(1)
    assert strength.with_priors({"strength.strength.scale": given}).priors()["strength.strength.scale"] is given
    fixed = GroupStrength(CROSSED, scale=given)
    assert "scale" not in fixed.default_priors()
    law = fixed.law(CODES, parameters={"scale": SCALE, "effect": EFFECT})
    np.testing.assert_allclose(law.mean.detach(), 0.1 * np.exp(LOG_FACTOR), rtol=1e-13)


# -- names of entries -------------------------------------------------------------------------------------------------

COUNTRY = {"country": ["DE", "FR", "IT"]}
GROUP_NAMES = {"group_effect": ["country=DE", "country=FR", "country=IT", "age=young", "age=old"]}
GROUP_COLUMNS = {"group_column": ["country", "age"]}
COORDS = [
    (lambda: LogNormalStrength(), {}),
    (lambda: GroupStrength(COUNTRIES, column="country"), {"effect": COUNTRY}),
    (lambda: GroupStrength({"country": COUNTRIES}), {"effect": COUNTRY}),
    (lambda: GroupStrength(2), {"effect": {"group": ["0", "1"]}}),
    (crossed, {"scale": GROUP_COLUMNS, "effect": GROUP_NAMES}),
    (lambda: CovariateStrength(NAMES), {"weight": {"feature": NAMES}}),
    (
        lambda: CovariateStrength(NAMES, hidden=3),
        {
            "inner": {"unit": ["0", "1", "2"], "feature": NAMES},
            "offset": {"unit": ["0", "1", "2"]},
            "weight": {"unit": ["0", "1", "2"]},
        },
    ),
    (
        lambda: LatentClassStrength(num_classes=3),
        {"increase": {"higher_class": ["1", "2"]}, "shares": {"class": ["0", "1", "2"]}},
    ),
    (
        lambda: ZeroInflatedStrength(CovariateStrength(NAMES, crossed())),
        {
            "strength.weight": {"feature": NAMES},
            "strength.strength.scale": GROUP_COLUMNS,
            "strength.strength.effect": GROUP_NAMES,
        },
    ),
    # The same dimension twice with the same labels, and with others.
    (
        lambda: MixtureStrength([LatentClassStrength(num_classes=2), LatentClassStrength(num_classes=2)]),
        {
            "shares": {"component": ["0", "1"]},
            "component_0.increase": {"higher_class": ["1"]},
            "component_0.shares": {"class": ["0", "1"]},
            "component_1.increase": {"higher_class": ["1"]},
            "component_1.shares": {"class": ["0", "1"]},
        },
    ),
    (
        lambda: MixtureStrength([LatentClassStrength(num_classes=2), LatentClassStrength(num_classes=3)]),
        {
            "shares": {"component": ["0", "1"]},
            "component_0.increase": {"higher_class": ["1"]},
            "component_0.shares": {"class": ["0", "1"]},
            "component_1.increase": {"component_1.higher_class": ["1", "2"]},
            "component_1.shares": {"component_1.class": ["0", "1", "2"]},
        },
    ),
    # Names that xarray would take for something else.
    (lambda: GroupStrength(["a", "b"], column="effect"), {"effect": {"effect_dim": ["a", "b"]}}),
    (lambda: GroupStrength(["a", "b"], column="draw"), {"effect": {"draw_dim": ["a", "b"]}}),
]


@pytest.mark.parametrize(("build", "expected"), COORDS)
def test_names_of_entries(build, expected):
    strength = build()
    assert strength.parameter_coords() == expected
    assert strength.with_priors().parameter_coords() == expected


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: GroupStrength(CROSSED, GammaStrength(0.2, 0.5), scale={"age": 0.3, "country": 0.7}),
        lambda: CovariateStrength(NAMES, GroupStrength({"strength": 2, "mapping": 3}, scale=0.2), hidden=2),
        lambda: ZeroInflatedStrength(crossed(CovariateStrength(NAMES))),
    ],
)
def test_save_and_load(build, tmp_path):
    strength = build()
    with torch.no_grad():
        for parameter in strength.parameters():
            parameter.add_(0.25)
    strength.save_pretrained(tmp_path)
    loaded = StrengthModel.from_pretrained(tmp_path)
    assert repr(loaded) == repr(strength)
    assert loaded.context_columns == strength.context_columns
    assert loaded.parameter_coords() == strength.parameter_coords()
    state, expected = loaded.state_dict(), strength.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_a_prior_of_several_scales_is_saved(tmp_path):
    prior = dist.HalfNormal(t(0.5, 1.5)).to_event(1)
    GroupStrength(CROSSED, scale=prior).save_pretrained(tmp_path)
    loaded = StrengthModel.from_pretrained(tmp_path)
    assert "scale ~ HalfNormal(scale=[0.5, 1.5])" in repr(loaded)
    again = loaded.priors()["scale"]
    assert again.event_shape == (2,)
    assert float(again.log_prob(t(0.3, 0.9))) == pytest.approx(float(prior.log_prob(t(0.3, 0.9))), rel=1e-14)


def test_many_groups_are_described_in_one_short_line():
    assert repr(GroupStrength(500)).endswith("effect ~ Normal(loc=[0, 0, 0, …, 0, 0], scale=[1, 1, 1, …, 1, 1]))")


def test_a_prior_that_the_file_could_not_hold_is_refused(tmp_path):
    prior = dist.TransformedDistribution(dist.Normal(t(0.0, 0.0), t(1.0, 1.0)), [dist.transforms.ExpTransform()])
    with pytest.raises(ConfigError, match="can't be saved as JSON"):
        GroupStrength(CROSSED, scale=prior.to_event(1)).save_pretrained(tmp_path)


def test_files_of_one_column_from_before_several_were_possible(tmp_path):
    strength = GroupStrength(["north", "south"], GammaStrength(0.2, 0.5), column="country")
    strength.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "strength.json").read_text())
    assert config["args"][0] == ["north", "south"]
    assert config["kwargs"] == {"column": "country"}
    assert set(strength.state_dict()) == {
        "scale_unconstrained",
        "strength.beta_mean_unconstrained",
        "strength.beta_cv_unconstrained",
    }
    assert strength.state_dict()["scale_unconstrained"].shape == ()
