"""Automatic guides on the collapsed model, against importance resampling."""

import random
import warnings

import numpy as np
import pyro
import pytest
import torch

from pluralpref.errors import ConfigError, IdentificationWarning, NumericsWarning
from pluralpref.inference import fit_posterior
from pluralpref.inference.posterior_svi import _drift
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength


def simulate(law, people, choices, seed=0):
    """(margins, annotators): utilities with standard deviation 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        code = torch.arange(people).repeat_interleave(choices)
        beta = law.sample((people,)).double()[code]
        utility = 2 * torch.randn(len(code), dtype=torch.float64)
        return torch.where(torch.rand(len(code)) < torch.sigmoid(beta * utility), utility, -utility), code


def fit(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        warnings.simplefilter("ignore", IdentificationWarning)
        return fit_posterior(*args, progress_bar=False, **kwargs)


@pytest.fixture
def few_guide_draws(monkeypatch):
    """What the guide's fit is judged by, at a tenth of the time."""
    monkeypatch.setattr("pluralpref.inference.posterior_svi._GUIDE_DRAWS", 200)


@pytest.fixture(scope="module")
def data():
    return simulate(LogNormalStrength(mean=0.8, cv=1.0).law(), 80, 10, seed=4)


@pytest.fixture(scope="module")
def reference(data):
    posterior = fit(LogNormalStrength(mean=0.5), data[0], annotator=data[1], method="laplace", num_samples=500)
    return {name: np.log(posterior.draws(name)) for name in ("beta_mean", "beta_cv")}


def assert_near(posterior, reference):
    """On the log scale, where a guide is normal: both means within 0.3 standard deviations of the posterior."""
    for name, draws in reference.items():
        found = np.log(posterior.draws(name))
        assert abs(found.mean() - draws.mean()) < 0.3 * draws.std(), (name, found.mean(), draws.mean(), draws.std())


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["AutoMultivariateNormal", "AutoNormal"])
def test_guides_are_near_importance_resampling(guide, data, reference):
    posterior = fit(
        LogNormalStrength(mean=0.5), data[0], annotator=data[1], guide=guide, num_steps=600, learning_rate=0.05,
        num_samples=250,
    )  # fmt: skip
    assert_near(posterior, reference)
    attrs = posterior.attrs
    assert (attrs["method"], attrs["guide"], attrs["num_steps"], attrs["batch_size"]) == ("svi", guide, 600, 80)
    assert "is an option of svi" in attrs["method_reason"]
    assert np.isfinite(attrs["elbo"])
    assert attrs["pareto_k"] < 1


@pytest.mark.slow
def test_minibatches_of_annotators_are_near_importance_resampling(data, reference):
    posterior = fit(
        LogNormalStrength(mean=0.5), data[0], annotator=data[1], batch_size=20, num_steps=1500, learning_rate=0.05,
        num_samples=250,
    )  # fmt: skip
    assert posterior.attrs["batch_size"] == 20
    assert_near(posterior, reference)


@pytest.mark.slow
def test_minibatches_of_pairs_estimate_the_same_likelihood(few_guide_draws):
    """A single strength in common: a logistic regression with one coefficient, on a tenth of the pairs each step."""
    strength = FixedStrength(0.5, learned=True)
    margins, _ = simulate(FixedStrength(0.7).law(), 500, 1, seed=2)
    whole = fit(strength, margins, method="laplace", num_samples=250)
    part = fit(strength, margins, batch_size=50, num_steps=400, learning_rate=0.1, num_samples=100)
    assert part.attrs["batch_size"] == 50
    log_mean = np.log(whole.draws("beta_mean"))
    assert abs(np.log(part.draws("beta_mean")).mean() - log_mean.mean()) < 0.5 * log_mean.std()
    # A subsample that weren't scaled up would have a tenth of the likelihood: three times the spread.
    assert np.log(part.draws("beta_mean")).std() < 2 * log_mean.std()


def run_of(falling):
    """500 losses with noise of standard deviation 1 that fall by so much over the last two fifths."""
    noise = np.random.default_rng(0).normal(size=500)
    return list(noise - falling * np.arange(500) / 200)


def test_drift_is_told_from_noise():
    drift, error = _drift(run_of(10.0))
    assert drift == pytest.approx(5.0, abs=4 * 2**0.5 / 10)  # between the middles of two fifths
    assert drift > 3 * error
    drift, error = _drift(run_of(0.0))
    assert drift < 3 * error
    assert error == pytest.approx(2**0.5 / 10, rel=0.3)


def test_an_unsettled_run_warns(few_guide_draws, monkeypatch):
    monkeypatch.setattr("pluralpref.inference.posterior_svi._drift", lambda losses: (5.0, 0.1))
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=1.0).law(), 10, 4, seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        with pytest.warns(NumericsWarning, match=r"the ELBO was still rising, by 5 nats.*raise num_steps") as caught:
            posterior = fit_posterior(
                LogNormalStrength(mean=0.5), margins, annotator=code, method="svi", num_steps=10, num_samples=10,
                progress_bar=False,
            )  # fmt: skip
    assert len(caught) == 1
    assert posterior.attrs["elbo_drift"] == 5.0
    assert any("still rising" in problem for problem in posterior.convergence.problems)


def test_a_guide_that_does_not_fit_warns(few_guide_draws):
    """Ten small steps leave the guide where it started."""
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=1.0).law(), 80, 10, seed=4)
    with pytest.warns(NumericsWarning, match=r"Pareto k-hat .* of the guide's draws \(wanted: <= 0.7\)"):
        fit_posterior(
            LogNormalStrength(mean=0.01), margins, annotator=code, method="svi", num_steps=10, learning_rate=1e-4,
            num_samples=10, progress_bar=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"guide": "AutoDelta"}, r"guide='AutoDelta': choose one of AutoNormal, .*AutoMultivariateNormal"),
        ({"guide": "nothing"}, "guide='nothing'"),
        ({"batch_size": 80, "annotator": True}, "batch_size=80 has no effect: there are 80 annotators in all"),
        ({"batch_size": 800}, "batch_size=800 has no effect: there are 800 pairs in all"),
        ({"batch_size": 0}, "batch_size=0: must be an integer of at least 1"),
        ({"num_steps": 9}, "num_steps=9: must be an integer of at least 10"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
    ],
)
def test_settings_that_are_refused(kwargs, message, data):
    if kwargs.get("annotator"):
        kwargs = {**kwargs, "annotator": data[1]}
    with pytest.raises(ConfigError, match=message):
        fit_posterior(LogNormalStrength(), data[0], method="svi", **kwargs)


@pytest.mark.parametrize(
    "guide",
    [
        "AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal",
        "AutoLaplaceApproximation",
    ],
)  # fmt: skip
def test_every_guide_gives_draws_of_the_right_shape(guide, few_guide_draws):
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=1.0).law(), 10, 4, seed=4)
    posterior = fit(
        LogNormalStrength(mean=0.5), margins, annotator=code, guide=guide, num_steps=30, num_samples=6, num_chains=2
    )  # fmt: skip
    for name in ("beta_mean", "beta_cv"):
        draws = posterior.draws(name)
        assert draws.shape == (2, 6)
        assert (draws > 0).all()
        assert len(np.unique(draws)) == 12
    assert posterior.attrs["guide"] == guide
    assert posterior.attrs["pareto_k"] == posterior.attrs["pareto_k"]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_same_seed_same_draws_and_global_state_untouched(batch_size, few_guide_draws):
    margins, code = simulate(GammaStrength(mean=0.8, cv=0.8).law(), 20, 4)
    options = {
        "annotator": code, "method": "svi", "num_steps": 20, "num_samples": 5, "num_chains": 2, "batch_size": batch_size
    }  # fmt: skip
    store = pyro.get_param_store()
    # The name of a guide's parameter, which a guide without borders would overwrite.
    store.setdefault("AutoMultivariateNormal.loc", torch.tensor(1.0))
    try:
        torch.manual_seed(11), np.random.seed(12), random.seed(13)
        expected = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        first = fit(GammaStrength(mean=0.8), margins, seed=7, **options)
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert np.array_equal(np.random.get_state()[1], expected[1])
        assert random.getstate() == expected[2]
        assert list(store.keys()) == ["AutoMultivariateNormal.loc"]
        assert store["AutoMultivariateNormal.loc"].item() == 1.0
    finally:
        store.clear()
    torch.manual_seed(99)
    second = fit(GammaStrength(mean=0.8), margins, seed=7, **options)
    np.testing.assert_allclose(second.draws("beta_cv"), first.draws("beta_cv"), rtol=1e-9)
    other = fit(GammaStrength(mean=0.8), margins, seed=8, **options)
    assert not np.allclose(other.draws("beta_cv"), first.draws("beta_cv"))
