"""Strength models: parameters and moments, priors, files, refusals."""

import copy
import json
import pickle
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.nn import PyroParam
from torch.distributions import constraints

from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.models import (
    CovariateStrength,
    FixedStrength,
    GammaStrength,
    GroupStrength,
    LatentClassStrength,
    LogNormalStrength,
    MixtureStrength,
    OpposedStrength,
    PreferenceModel,
    StrengthModel,
    make_strength,
    quantiles,
)


class WeibullStrength(StrengthModel):
    """A user's own family."""

    def __init__(self, concentration=2.0, scale=0.1):
        super().__init__()
        self.concentration = PyroParam(torch.tensor(concentration), constraints.positive)
        self.scale = PyroParam(torch.tensor(scale), constraints.positive)

    def forward(self, context=None):
        return dist.Weibull(self.scale, self.concentration)


class NegativeStrength(StrengthModel):
    """A parameter that no default prior covers."""

    def __init__(self):
        super().__init__()
        self.opposed = PyroParam(torch.tensor(-0.5), constraints.less_than(0.0))

    def forward(self, context=None):
        return dist.Delta(self.opposed)


@pytest.fixture(autouse=True)
def _store_stays_empty():
    pyro.clear_param_store()
    yield
    assert len(pyro.get_param_store()) == 0


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


MIXED = [LogNormalStrength, GammaStrength]


# -- parameters and moments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MIXED)
@pytest.mark.parametrize(("mean", "cv"), [(0.1, 0.5), (0.03, 2.5), (7.0, 0.01)])
def test_mean_and_cv_round_trip(cls, mean, cv):
    strength = cls(mean=mean, cv=cv)
    torch.testing.assert_close(strength.mean, f64(mean), rtol=1e-12, atol=0)
    torch.testing.assert_close(strength.cv, f64(cv), rtol=1e-9, atol=0)
    torch.testing.assert_close(strength.std, f64(mean * cv), rtol=1e-9, atol=0)
    assert strength.mean.dim() == 0
    assert not strength.mean.requires_grad
    assert strength.parameter_names() == ["beta_mean", "beta_cv"]


def test_own_parameters_are_those_of_the_law():
    law = LogNormalStrength(loc=-2.0, scale=0.7).law()
    assert law.loc.item() == -2.0
    assert law.scale.item() == pytest.approx(0.7, rel=1e-12)
    law = GammaStrength(concentration=3.0, rate=20.0).law()
    assert law.concentration.item() == pytest.approx(3.0, rel=1e-12)
    assert law.rate.item() == pytest.approx(20.0, rel=1e-12)
    assert LogNormalStrength(loc=-2.0, scale=0.7).parameter_names() == ["loc", "scale"]
    assert GammaStrength(concentration=3.0, rate=20.0).parameter_names() == ["concentration", "rate"]


@pytest.mark.parametrize(
    ("strength", "by_scipy"),
    [
        (LogNormalStrength(loc=-2.0, scale=0.7), scipy.stats.lognorm(0.7, scale=2.718281828459045**-2)),
        (GammaStrength(concentration=0.4, rate=5.0), scipy.stats.gamma(0.4, scale=1 / 5.0)),
    ],
)
def test_quantiles_are_scipys(strength, by_scipy):
    levels = f64([0.01, 0.25, 0.5, 0.9, 0.999])
    expected = torch.as_tensor(by_scipy.ppf(levels.numpy()))
    torch.testing.assert_close(strength.quantile(levels), expected, rtol=1e-9, atol=0)
    assert strength.quantile(0.5).item() == pytest.approx(by_scipy.median(), rel=1e-9)
    assert not strength.quantile(0.5).requires_grad


def test_quantile_of_a_users_family():
    strength = WeibullStrength(2.0, 0.1)
    before = torch.random.get_rng_state()
    assert strength.quantile(0.7).item() == pytest.approx(scipy.stats.weibull_min(2.0, scale=0.1).ppf(0.7), rel=0.02)
    assert torch.equal(before, torch.random.get_rng_state())


class Elsewhere(dist.Exponential):
    """A law on another device that writes down where the quantile's numbers are."""

    seen: ClassVar[list] = []

    def icdf(self, value):
        raise NotImplementedError

    def cdf(self, value):
        self.seen.append((value.device.type, value.dtype))
        raise NotImplementedError


def test_quantiles_are_worked_out_where_the_law_is(monkeypatch):
    monkeypatch.setattr(quantiles, "is_nonnegative", lambda law: True)
    # The check of the level needs its value, which a tensor on meta doesn't have.
    monkeypatch.setattr(torch.Tensor, "all", lambda self, *_, **__: True)
    Elsewhere.seen.clear()
    law = Elsewhere(torch.ones(2, device="meta", dtype=torch.float64), validate_args=False)
    assert quantiles.quantile(law, 0.5).device.type == "meta"
    assert Elsewhere.seen == [("meta", torch.float64)]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, float("nan")])
def test_quantile_levels_outside_are_refused(level):
    with pytest.raises(ConfigError, match="must lie strictly between 0 and 1"):
        LogNormalStrength().quantile(level)


def test_repr_names_values_and_priors():
    assert repr(LogNormalStrength(mean=0.1, cv=0.5)) == "LogNormalStrength(beta_mean=0.1, beta_cv=0.5)"
    assert repr(GammaStrength(concentration=2.0, rate=8.0)) == "GammaStrength(concentration=2, rate=8)"
    assert repr(FixedStrength(0.25)) == "FixedStrength(beta=0.25)"
    assert repr(FixedStrength(0.25, learned=True)) == "FixedStrength(beta_mean=0.25)"
    text = repr(GammaStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5))
    assert text == "GammaStrength(beta_cv=0.5, beta_mean ~ LogNormal(loc=0, scale=1))"


def test_fixed_is_constant_unless_learned():
    assert list(FixedStrength(0.3).parameters()) == []
    assert FixedStrength(0.3).parameter_names() == []
    assert FixedStrength(0.3).cv.item() == 0
    assert FixedStrength(0.3).law().mean.item() == 0.3
    learned = FixedStrength(0.3, learned=True)
    assert learned.parameter_names() == ["beta_mean"]
    (gradient,) = torch.autograd.grad(learned.law().v, list(learned.parameters()))
    assert gradient.item() == pytest.approx(0.3, rel=1e-12)  # d exp(u)/du


def test_law_is_differentiable_and_positive():
    strength = LogNormalStrength(mean=0.1, cv=0.5)
    strength.law().mean.backward()
    gradients = {name: parameter.grad.item() for name, parameter in strength.named_parameters()}
    assert gradients["beta_mean_unconstrained"] == pytest.approx(0.1, rel=1e-9)
    assert gradients["beta_cv_unconstrained"] == pytest.approx(0.0, abs=1e-12)  # the mean doesn't depend on the cv


def test_two_models_side_by_side_share_nothing():
    one, two = GammaStrength(mean=0.1, cv=0.5), GammaStrength(mean=0.4, cv=1.5)
    with torch.no_grad():
        one.beta_mean_unconstrained.add_(1.0)
    assert one.mean.item() == pytest.approx(0.1 * 2.718281828459045, rel=1e-9)
    assert two.mean.item() == pytest.approx(0.4, rel=1e-9)
    with pyro.settings.context(module_local_params=False):  # also where a user's session has the global store
        assert one().mean.item() == pytest.approx(0.1 * 2.718281828459045, rel=1e-9)
        assert two().mean.item() == pytest.approx(0.4, rel=1e-9)


# -- priors ----------------------------------------------------------------------------------------------------------


def test_a_distribution_is_a_prior():
    strength = LogNormalStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5)
    assert strength.parameter_names() == ["beta_cv", "beta_mean"]
    assert list(strength.priors()) == ["beta_mean"]
    assert list(strength.learned()) == ["beta_cv"]
    trace = poutine.trace(strength).get_trace()
    site = trace.nodes["beta_mean"]
    assert site["type"] == "sample"
    assert not site["is_observed"]
    assert trace.nodes["_RETURN"]["value"].mean.item() == pytest.approx(site["value"].item(), rel=1e-5)
    # Outside a trace the law stands at the prior's mean.
    assert strength.mean.item() == pytest.approx(2.718281828459045**0.5, rel=1e-6)


def test_law_leaves_no_sites_in_an_outer_trace():
    strength = LogNormalStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5)
    with poutine.trace() as tracer:
        strength.law()
    assert [name for name, site in tracer.trace.nodes.items() if site["type"] == "sample"] == []


@pytest.mark.parametrize("cls", MIXED)
def test_law_at_many_draws_of_the_parameters(cls):
    twin = cls(mean=0.1, cv=0.5).with_priors()
    means, cvs = f64([[0.1], [0.2], [0.7]]), f64([[0.5], [1.5], [0.1]])
    law = twin.law(parameters={"beta_mean": means, "beta_cv": cvs})
    assert law.batch_shape == (3, 1)
    torch.testing.assert_close(law.mean, means)
    torch.testing.assert_close(law.stddev / law.mean, cvs)
    # The same through Pyro's own handler.
    conditioned = poutine.condition(twin, data={"beta_mean": means, "beta_cv": cvs})()
    torch.testing.assert_close(conditioned.mean, means)


def test_law_refuses_values_for_learned_parameters():
    with pytest.raises(ConfigError, match=r"LogNormalStrength\.law: beta_mean is no parameter with a prior.*none"):
        LogNormalStrength().law(parameters={"beta_mean": f64(0.1)})


def test_default_priors():
    priors = GammaStrength(mean=0.2, cv=0.5).default_priors()
    assert list(priors) == ["beta_mean", "beta_cv"]
    assert priors["beta_mean"].loc.exp().item() == pytest.approx(0.2, rel=1e-12)
    assert priors["beta_mean"].scale.item() == 2.0
    assert isinstance(priors["beta_cv"], dist.HalfNormal)
    assert priors["beta_cv"].scale.item() == 1.5
    priors = LogNormalStrength(loc=-2.0, scale=0.7).default_priors()
    assert isinstance(priors["loc"], dist.Normal)
    assert priors["loc"].loc.item() == -2.0
    assert isinstance(priors["scale"], dist.LogNormal)
    assert priors["scale"].loc.exp().item() == pytest.approx(0.7, rel=1e-12)
    with pytest.raises(UnsupportedError, match=r"no default prior for NegativeStrength\.opposed"):
        NegativeStrength().default_priors()


@pytest.mark.parametrize(
    "build",
    [
        lambda: GroupStrength(["a", "b"], scale=dist.HalfNormal(f64(1.0))),
        lambda: MixtureStrength([GammaStrength(), LogNormalStrength()], shares=dist.Dirichlet(torch.ones(2))),
        lambda: LogNormalStrength(dist.Uniform(f64(0.1), f64(1.0)), dist.LogNormal(f64(0.0), f64(1.0))),
        lambda: OpposedStrength(GroupStrength(3)),
    ],
)
def test_priors_move_with_their_module(build):
    """A guide and the law would otherwise mix devices; dtypes stay."""
    strength = build()
    before = strength.priors()
    assert all(strength.to("cpu").priors()[name] is prior for name, prior in before.items())
    strength.to("meta")
    for name, prior in strength.priors().items():
        old = before[name]
        assert type(prior) is type(old)
        assert prior.mean.device.type == "meta"
        assert old.mean.device.type == "cpu"
        assert (prior.mean.dtype, prior.batch_shape, prior.event_shape) == (
            old.mean.dtype,
            old.batch_shape,
            old.event_shape,
        )
        support = prior.support
        bounds = [getattr(support, side) for side in ("lower_bound", "upper_bound") if hasattr(support, side)]
        assert all(bound.device.type == "meta" for bound in bounds if isinstance(bound, torch.Tensor))


def test_with_priors_copies():
    strength = GammaStrength(mean=0.2, cv=0.5)
    given = dist.LogNormal(-3.0, 0.1)
    twin = strength.with_priors({"beta_mean": given})
    assert twin.priors()["beta_mean"] is given
    assert twin.priors()["beta_cv"].scale.item() == 1.5
    assert twin.learned() == {}
    assert list(twin.parameters()) == []
    assert strength.priors() == {}  # the original learns as before
    assert list(strength.learned()) == ["beta_mean", "beta_cv"]
    # A prior set at construction is kept, or replaced when another is given.
    strength = GammaStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5)
    assert strength.with_priors().priors()["beta_mean"].scale.item() == 1.0
    assert strength.with_priors({"beta_mean": given}).priors()["beta_mean"] is given
    with pytest.raises(ConfigError, match="priors for nonsense: GammaStrength has the parameters beta_mean, beta_cv"):
        GammaStrength().with_priors({"nonsense": given})


# -- files -----------------------------------------------------------------------------------------------------------

SAVED = {
    "fixed": lambda: FixedStrength(0.3),
    "fixed learned": lambda: FixedStrength(0.3, learned=True),
    "lognormal": lambda: LogNormalStrength(0.3, 1.2),
    "lognormal own": lambda: LogNormalStrength(loc=-1.0, scale=0.4),
    "gamma": lambda: GammaStrength(mean=0.3, cv=1.2),
    "gamma own": lambda: GammaStrength(concentration=2.0, rate=9.0),
}


@pytest.mark.parametrize("name", SAVED)
def test_save_and_load(name, tmp_path):
    strength = SAVED[name]()
    with torch.no_grad():  # training moved it away from where construction put it
        for parameter in strength.parameters():
            parameter.add_(0.25)
    strength.save_pretrained(tmp_path / "deep" / "er")
    loaded = StrengthModel.from_pretrained(tmp_path / "deep" / "er")
    assert type(loaded) is type(strength)
    assert repr(loaded) == repr(strength)
    state, expected = loaded.state_dict(), strength.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == [
        "strength.json",
        "strength.safetensors",
    ]


def test_priors_are_saved(tmp_path):
    strength = GammaStrength(mean=dist.LogNormal(-1.0, 0.5), cv=dist.HalfNormal(2.0))
    strength.save_pretrained(tmp_path)
    priors = GammaStrength.from_pretrained(tmp_path).priors()
    assert isinstance(priors["beta_mean"], dist.LogNormal)
    assert (priors["beta_mean"].loc.item(), priors["beta_mean"].scale.item()) == (-1.0, 0.5)
    assert isinstance(priors["beta_cv"], dist.HalfNormal)
    assert priors["beta_cv"].scale.item() == 2.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: LogNormalStrength(mean=np.float32(0.1), cv=np.float64(0.5)),
        lambda: LogNormalStrength(mean=np.array(0.1)),
        lambda: LatentClassStrength(values=np.array([0.1, 0.3]), shares=np.array([0.25, 0.75])),
        lambda: LatentClassStrength(0.1, 0.5, num_classes=3),
        lambda: GroupStrength(np.array(["DE", "FR"])),
        lambda: GroupStrength(pd.Series(["DE", "FR", "DE"]).unique(), scale=np.float32(0.5)),
        lambda: GroupStrength({"age": pd.Series([1, 2]), "land": pd.Index(["a", "b"])}, scale=pd.Series([0.1, 0.2])),
        lambda: CovariateStrength(pd.DataFrame({"x": [1.0], "y": [2.0]}).columns),
        lambda: MixtureStrength([GammaStrength(), LogNormalStrength()], shares=dist.Dirichlet(torch.ones(2))),
    ],
)
def test_what_is_accepted_is_saved(build, tmp_path):
    """NumPy's numbers and arrays, pandas' columns, and priors of vectors."""
    strength = build()
    strength.save_pretrained(tmp_path)
    loaded = StrengthModel.from_pretrained(tmp_path)
    assert repr(loaded) == repr(strength)
    assert loaded.context_columns == strength.context_columns
    assert loaded.parameter_coords() == strength.parameter_coords()
    state = strength.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert len(loaded.state_dict()) == len(state)
    for name, prior in strength.priors().items():
        torch.testing.assert_close(loaded.priors()[name].mean, prior.mean.double())
        assert loaded.priors()[name].event_shape == prior.event_shape


def test_a_prior_with_several_names_for_an_argument_is_refused(tmp_path):
    prior = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ConfigError, match=r"(?s)mean=.* can't be saved as JSON"):
        LogNormalStrength(mean=prior).save_pretrained(tmp_path)


def test_a_users_family_is_loaded_through_its_own_class(tmp_path):
    strength = WeibullStrength(3.0, scale=0.2)
    with torch.no_grad():
        strength.scale_unconstrained.sub_(1.0)
    strength.save_pretrained(tmp_path)
    loaded = WeibullStrength.from_pretrained(tmp_path)
    assert loaded.concentration.item() == pytest.approx(3.0, rel=1e-6)
    assert loaded.scale.item() == pytest.approx(0.2 / 2.718281828459045, rel=1e-6)
    with pytest.raises(
        ConfigError, match=r"a WeibullStrength was saved, which is not built in.*WeibullStrength\.from_pre"
    ):
        StrengthModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a WeibullStrength was saved, which is not built in"):
        GammaStrength.from_pretrained(tmp_path)


def test_another_built_in_family_is_refused(tmp_path):
    LogNormalStrength().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a LogNormalStrength was saved, which is not a GammaStrength"):
        GammaStrength.from_pretrained(tmp_path)


def test_what_json_cannot_hold_is_refused_on_saving(tmp_path):
    parts = dist.Gamma(f64([1.0, 2.0]), f64([1.0, 1.0]))
    strength = LogNormalStrength(mean=dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
    with pytest.raises(ConfigError, match=r"(?s)mean=.* can't be saved as JSON"):
        strength.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match=r"holds no strength\.json"):
        StrengthModel.from_pretrained(tmp_path)
    strength = LogNormalStrength()
    weights, config = tmp_path / "strength.safetensors", tmp_path / "strength.json"

    strength.save_pretrained(tmp_path)
    config.write_text(config.read_text()[:-20])
    with pytest.raises(DataError, match=r"strength\.json is damaged"):
        StrengthModel.from_pretrained(tmp_path)

    strength.save_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"strength\.safetensors can't be read"):
        StrengthModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=r"strength\.safetensors is missing"):
        StrengthModel.from_pretrained(tmp_path)

    LogNormalStrength(loc=0.0, scale=1.0).save_pretrained(tmp_path / "other")
    strength.save_pretrained(tmp_path)
    weights.write_bytes((tmp_path / "other" / "strength.safetensors").read_bytes())
    with pytest.raises(DataError, match="saved by another family or parameterisation"):
        StrengthModel.from_pretrained(tmp_path)

    GammaStrength(mean=dist.LogNormal(-1.0, 0.5)).save_pretrained(tmp_path)
    config.write_text(config.read_text().replace('"LogNormal"', '"os"'))
    with pytest.raises(DataError, match="'os' is no Pyro distribution"):
        StrengthModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["class", "args", "kwargs"])
def test_a_config_that_lacks_a_key_is_damaged(key, tmp_path):
    LogNormalStrength().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "strength.json").read_text())
    del config[key]
    (tmp_path / "strength.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"strength\.json"):
        StrengthModel.from_pretrained(tmp_path)


def test_copies_and_pickles():
    for strength in (LogNormalStrength(0.3, cv=1.2), GammaStrength(concentration=2.0, rate=9.0), FixedStrength(0.3)):
        with torch.no_grad():
            for parameter in strength.parameters():
                parameter.add_(0.25)
        for twin in (copy.deepcopy(strength), pickle.loads(pickle.dumps(strength))):
            assert repr(twin) == repr(strength)
            assert twin._arguments == strength._arguments
            for parameter in twin.parameters():
                with torch.no_grad():
                    parameter.add_(1.0)
            if list(strength.parameters()):
                assert repr(twin) != repr(strength)
    twin = copy.deepcopy(PreferenceModel(GammaStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5)))
    assert list(twin.strength.priors()) == ["beta_mean"]


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MIXED)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 0.0}, r"beta_mean=0\.0: must be greater than 0"),
        ({"mean": -1.0}, r"beta_mean=-1\.0: must be greater than 0"),
        ({"mean": float("nan")}, "beta_mean=nan: must be finite"),
        ({"mean": float("inf")}, "beta_mean=inf: must be finite"),
        ({"mean": "large"}, "beta_mean='large': give a number"),
        ({"cv": -0.5}, r"beta_cv=-0\.5: must be greater than 0"),
        ({"cv": 0.0}, "cv=0 is a point mass; use FixedStrength"),
        ({"cv": 0}, "cv=0 is a point mass; use FixedStrength"),
    ],
)
def test_moments_out_of_range(cls, arguments, message):
    with pytest.raises(ConfigError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogNormalStrength(mean=0.1, scale=1.0), "give mean and cv, or loc and scale, not a mixture"),
        (lambda: LogNormalStrength(loc=0.0), "loc was given without scale"),
        (lambda: LogNormalStrength(scale=1.0), "scale was given without loc"),
        (lambda: LogNormalStrength(loc=0.0, scale=0.0), r"scale=0\.0: must be greater than 0"),
        (lambda: GammaStrength(cv=0.5, concentration=1.0, rate=1.0), "give mean and cv, or concentration and rate"),
        (lambda: GammaStrength(rate=1.0), "rate was given without concentration"),
        (lambda: GammaStrength(concentration=-1.0, rate=1.0), r"concentration=-1\.0: must be greater than 0"),
        (lambda: FixedStrength(0.0), r"beta=0\.0: must be greater than 0"),
        (lambda: FixedStrength(-1.0, learned=True), r"beta_mean=-1\.0: must be greater than 0"),
        (lambda: FixedStrength(dist.LogNormal(0.0, 1.0), learned=True), "learned=True has no effect"),
        (lambda: make_strength("cauchy"), "unknown strength family 'cauchy': choose one of fixed, fixed_learned"),
        (lambda: make_strength("fixed", 0.1, 0.5), r"cv=0\.5 has no effect on a fixed strength"),
        (lambda: make_strength("fixed_learned", 0.1, 0.5), r"cv=0\.5 has no effect on a fixed strength"),
        (lambda: make_strength("gamma", 0.1, -0.5), r"cv=-0\.5: a coefficient of variation"),
        (lambda: make_strength("lognormal", 0.1, 0.0), "cv=0 is a point mass"),
        (lambda: make_strength("gamma", 0.0), r"beta_mean=0\.0: must be greater than 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_make_strength():
    assert repr(make_strength("fixed", 0.2)) == "FixedStrength(beta=0.2)"
    assert repr(make_strength("fixed_learned", 0.2)) == "FixedStrength(beta_mean=0.2)"
    assert repr(make_strength("lognormal", 0.2)) == "LogNormalStrength(beta_mean=0.2, beta_cv=0.5)"
    assert repr(make_strength("gamma", 0.2, 1.5)) == "GammaStrength(beta_mean=0.2, beta_cv=1.5)"


def test_a_family_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"StrengthModel must define forward\(context=None\)"):
        StrengthModel()()


def test_importing_the_models_is_light():
    code = "import sys, pluralpref.models; print([m for m in ('transformers', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
