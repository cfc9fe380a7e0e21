"""The posterior against a posterior integrated on a grid, and its behaviour at the edges."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints

from pluralpref.data.margins_table import MarginsTable
from pluralpref.errors import (
    ConfigError,
    DataError,
    IdentificationWarning,
    NumericsWarning,
    PluralPrefWarning,
    UnsupportedError,
)
from pluralpref.inference.arviz_data import load_netcdf, loo, mcse_mean, summary
from pluralpref.inference.choices import as_choices
from pluralpref.inference.posterior import fit_posterior
from pluralpref.inference.posterior_draws import load_posterior
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength, StrengthModel

SHORT = {"num_samples": 40, "num_warmup": 40, "num_chains": 2}


class WeibullStrength(StrengthModel):
    def __init__(self, concentration: float = 2.0, scale: float = 0.5) -> None:
        super().__init__()
        self.concentration = PyroParam(torch.tensor(concentration), constraints.positive)
        self.scale = PyroParam(torch.tensor(scale), constraints.positive)

    def forward(self, context=None):
        return dist.Weibull(self.scale, self.concentration)


def simulate(law, annotators: int, choices: int, seed: int = 0):
    """(margins, annotator codes): utilities with standard deviation 2, strengths drawn from ``law``."""
    torch.manual_seed(seed)
    beta = law.sample((annotators,)).double()
    code = torch.arange(annotators).repeat_interleave(choices)
    utility = 2 * torch.randn(annotators * choices, dtype=torch.float64)
    chosen = torch.bernoulli(torch.sigmoid(beta[code] * utility))
    return torch.where(chosen == 1, utility, -utility), code


def fit(*args, **kwargs):
    """Short chains are meant to be short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        warnings.simplefilter("ignore", IdentificationWarning)
        return fit_posterior(*args, progress_bar=False, **kwargs)


def grid_posterior(family, start_mean, margins, code, log_means, cvs):
    """Moments of (log mean, cv) by brute force: a fixed grid in log beta, then one over the parameters."""
    # A gamma law with a large cv has its mass near 0: cut at -14, this reference was 6% too narrow in both parameters.
    u = torch.linspace(-45, 7, 2601, dtype=torch.float64)
    terms = torch.nn.functional.logsigmoid(u.exp() * margins[:, None])
    per_person = torch.zeros(int(code.max()) + 1, len(u), dtype=torch.float64).index_add_(0, code, terms)
    log_mean, cv = (x.flatten() for x in torch.meshgrid(log_means, cvs, indexing="ij"))
    twin = family(mean=1.0, cv=0.5).with_priors()
    law = twin.law(parameters={"beta_mean": log_mean.exp()[:, None], "beta_cv": cv[:, None]})
    inside = (law.log_prob(u.exp()) + u).exp() * (u[1] - u[0])
    density = (inside @ per_person.exp().T).log().sum(1)
    prior = -((log_mean - np.log(start_mean)) ** 2) / (2 * 2.0**2) - cv**2 / (2 * 1.5**2)
    weight = torch.softmax(density + prior, 0)
    # A grid that cuts off a tail would be a wrong reference. At the lower end of cv there is a true boundary.
    table = weight.reshape(len(log_means), len(cvs))
    assert max(float(edge.sum()) for edge in (table[0], table[-1], table[:, -1])) < 3e-4
    moments = {}
    for name, values in (("log_mean", log_mean), ("cv", cv)):
        mean = float((weight * values).sum())
        moments[name] = (mean, float((weight * (values - mean) ** 2).sum()) ** 0.5)
    return moments


def assert_matches(posterior, moments):
    """Means within four Monte-Carlo standard errors, standard deviations within what these draws can resolve."""
    for name, draws in (("log_mean", np.log(posterior.draws("beta_mean"))), ("cv", posterior.draws("beta_cv"))):
        mean, sd = moments[name]
        assert abs(draws.mean() - mean) < 4 * mcse_mean(draws), (name, draws.mean(), mean)
        assert draws.std() == pytest.approx(sd, rel=0.15)


@pytest.mark.parametrize("family", [LogNormalStrength, pytest.param(GammaStrength, marks=pytest.mark.slow)])
def test_single_choices_match_a_grid(family):
    margins, _ = simulate(family(mean=0.8, cv=0.8).law(), 1200, 1, seed=3)
    moments = grid_posterior(
        family, 0.3, margins, torch.arange(len(margins)),
        torch.linspace(-0.9, 3.0, 60, dtype=torch.float64), torch.linspace(0.02, 7.0, 100, dtype=torch.float64),
    )  # fmt: skip
    posterior = fit(family(mean=0.3, cv=0.1), margins, num_samples=250, num_warmup=120, num_chains=2, seed=1)
    assert_matches(posterior, moments)


@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
@pytest.mark.slow
def test_panels_match_a_grid(family):
    margins, code = simulate(family(mean=0.8, cv=0.8).law(), 120, 8, seed=4)
    moments = grid_posterior(
        family, 0.3, margins, code,
        torch.linspace(-1.2, 2.5, 61, dtype=torch.float64), torch.linspace(0.02, 6.0, 100, dtype=torch.float64),
    )  # fmt: skip
    posterior = fit(
        family(mean=0.3, cv=0.1), margins, annotator=code, num_samples=400, num_warmup=200, num_chains=2, seed=1
    )
    assert_matches(posterior, moments)


def test_panel_short_run_is_near_the_grid():
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 60, 8, seed=4)
    moments = grid_posterior(
        LogNormalStrength, 0.3, margins, code,
        torch.linspace(-1.5, 3.5, 61, dtype=torch.float64), torch.linspace(0.02, 7.0, 100, dtype=torch.float64),
    )  # fmt: skip
    posterior = fit(
        LogNormalStrength(mean=0.3, cv=0.1), margins, annotator=code, num_samples=80, num_warmup=60, num_chains=2
    )
    for name, draws in (("log_mean", np.log(posterior.draws("beta_mean"))), ("cv", posterior.draws("beta_cv"))):
        assert abs(draws.mean() - moments[name][0]) < 4 * mcse_mean(draws)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "seed"), [(LogNormalStrength, 0), (GammaStrength, 2)])
def test_recovers_heterogeneity_in_a_panel(family, seed):
    margins, code = simulate(family(mean=1.0, cv=1.0).law(), 300, 10, seed=seed)
    posterior = fit(
        family(mean=0.3, cv=0.3), margins, annotator=code, num_samples=250, num_warmup=150, num_chains=2, seed=5
    )
    low, high = posterior.interval("beta_cv")
    assert low < 1.0 < high
    assert 0.05 < posterior.draws("beta_cv").std() < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
def test_finds_no_heterogeneity_where_there_is_none(family):
    margins, code = simulate(dist.Delta(torch.tensor(1.0)), 300, 10, seed=2)
    posterior = fit(family(mean=0.3, cv=0.8), margins, annotator=code, num_samples=250, num_warmup=150, num_chains=2)
    assert posterior.interval("beta_cv")[1] < 0.45
    assert posterior.interval("beta_cv")[0] < 0.1
    assert posterior.draws("beta_mean").mean() == pytest.approx(1.0, abs=0.15)


def test_panel_of_one_choice_each_is_single_choices():
    margins, _ = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 150, 1)
    single = PosteriorProblem(LogNormalStrength(mean=0.5), as_choices(margins))
    panel = PosteriorProblem(LogNormalStrength(mean=0.5), as_choices(margins, annotator=range(150)))
    for mean, cv in ((0.1, 0.05), (0.8, 0.8), (3.0, 2.5)):
        values = {"beta_mean": torch.tensor(mean).double(), "beta_cv": torch.tensor(cv).double()}
        assert float(single.log_joint(values)) == pytest.approx(float(panel.log_joint(values)), abs=1e-5)
    draws = {name: torch.linspace(0.3, 2.0, 5).double() for name in ("beta_mean", "beta_cv")}
    torch.testing.assert_close(single.log_likelihood(draws), panel.log_likelihood(draws))


def test_same_seed_same_draws_and_global_state_untouched():
    margins, _ = simulate(GammaStrength(mean=0.8, cv=0.8).law(), 200, 1)
    pyro.get_param_store().setdefault("someone_elses", torch.tensor(1.0))
    try:
        torch.manual_seed(11), np.random.seed(12), random.seed(13)
        threads = torch.get_num_threads()
        expected = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        strength = GammaStrength(mean=0.8)
        before = {name: value.clone() for name, value in strength.state_dict().items()}
        first = fit(strength, margins, seed=7, **SHORT)
        first_data = first.to_arviz()
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert np.array_equal(np.random.get_state()[1], expected[1])
        assert random.getstate() == expected[2]
        assert list(pyro.get_param_store().keys()) == ["someone_elses"]
        assert torch.get_num_threads() == threads
        assert all(torch.equal(value, before[name]) for name, value in strength.state_dict().items())
        torch.manual_seed(99)
        second = fit(GammaStrength(mean=0.8), margins, seed=7, **SHORT).to_arviz()
        for group in first_data.groups():
            for name in first_data[group]:
                assert np.array_equal(first_data[group][name].values, second[group][name].values), (group, name)
        other = fit(GammaStrength(mean=0.8), margins, seed=8, **SHORT)
        assert not np.array_equal(first.draws("beta_cv"), other.draws("beta_cv"))
        assert not np.array_equal(first.draws("beta_cv")[0], first.draws("beta_cv")[1])
    finally:
        pyro.get_param_store().clear()


@pytest.fixture(scope="module")
def panel_posterior_():
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=1.2).law(), 30, 12, seed=5)
    names = [f"person {i}" for i in code.tolist()]
    weight = torch.ones(len(margins)).index_fill_(0, torch.arange(10), 2.0)
    return fit(
        LogNormalStrength(mean=0.5), margins, annotator=names, weight=weight, groups={"country": ["x", "y"] * 180},
        num_samples=60, num_warmup=60, num_chains=2,
    )  # fmt: skip


def test_arviz_groups_dims_coords_attrs(panel_posterior_):
    data = panel_posterior_.to_arviz()
    assert set(data.groups()) == {
        "posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive",
        "observed_data", "constant_data",
    }  # fmt: skip
    assert data.posterior["beta"].dims == ("chain", "draw")
    assert data.posterior["beta_annotator"].dims == ("chain", "draw", "annotator")
    assert list(data.posterior["annotator"].values[:2]) == ["person 0", "person 1"]
    assert data.log_likelihood["preferred"].dims == ("chain", "draw", "annotator")
    assert data.posterior_predictive["preferred"].dims == ("chain", "draw", "pair")
    assert data.prior_predictive["preferred"].shape == (1, 1000, 360)
    assert data.prior["beta_cv"].shape == (1, 1000)
    assert data.constant_data["margin"].dims == ("pair",)
    assert data.constant_data["weight"].values[:11].tolist() == [2.0] * 10 + [1.0]
    assert data.constant_data["country"].values[1] == "y"
    for name in ("diverging", "acceptance_rate", "step_size", "tree_depth", "n_steps", "energy", "lp"):
        assert data.sample_stats[name].shape == (2, 60)
    attrs = data.posterior.attrs
    assert attrs["family"] == "LogNormalStrength"
    assert attrs["likelihood"] == "panel"
    assert attrs["marginal"] == "quadrature"
    assert attrs["training_law_mean"] == pytest.approx(0.5)
    assert "beta_cv ~ HalfNormal" in attrs["priors"]


def test_arviz_functions_work(panel_posterior_, tmp_path):
    import arviz
    import matplotlib

    matplotlib.use("Agg")
    data = panel_posterior_.to_arviz()
    assert arviz.summary(data, var_names=["beta_mean", "beta_cv"]).shape[0] == 2
    result = loo(data)
    assert result.n_data_points == 30
    arviz.plot_trace(data, var_names=["beta_cv"])
    assert np.isfinite(arviz.bfmi(data)).all()
    path = panel_posterior_.save(tmp_path / "posterior.nc")
    again = load_netcdf(path)
    for group in data.groups():
        for name in data[group]:
            assert np.array_equal(data[group][name].values, again[group][name].values), (group, name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["posterior.nc"]


def test_loaded_draws_read_like_the_fit(panel_posterior_, tmp_path):
    path = panel_posterior_.save(tmp_path / "posterior.nc")
    loaded = load_posterior(path, LogNormalStrength(mean=0.2))
    assert loaded.names == ["beta_mean", "beta_cv"]
    assert loaded.interval("beta_cv") == panel_posterior_.interval("beta_cv")
    assert loaded.convergence == panel_posterior_.convergence
    grid = np.linspace(0.1, 3, 7)
    assert np.allclose(loaded.density(grid), panel_posterior_.density(grid))
    with pytest.raises(ConfigError, match="GammaStrength"):
        load_posterior(path, GammaStrength())
    alone = load_posterior(path)
    assert np.allclose(alone.density(grid), panel_posterior_.density(grid))
    assert alone.annotators == panel_posterior_.annotators
    for name in ("margins", "preferred", "weight", "annotator"):
        assert torch.equal(getattr(alone.choices, name), getattr(panel_posterior_.choices, name))
    one, other = alone.beta_given_choices(num_draws=20), panel_posterior_.beta_given_choices(num_draws=20)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    assert np.allclose(alone.probability([1.0, -1.0]), panel_posterior_.probability([1.0, -1.0]))
    with pytest.raises(DataError, match="no such file"):
        load_posterior(tmp_path / "none.nc")


def test_draws_of_a_users_family_are_loaded_with_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluralPrefWarning)
        found = fit_posterior(
            WeibullStrength(), torch.randn(60) + 0.5, progress_bar=False, method="laplace", num_samples=50
        )
    path = found.save(tmp_path / "posterior.nc")
    loaded = load_posterior(path)
    assert not loaded.has_data
    for ask in (lambda: loaded.density([0.3]), lambda: loaded.choices):
        with pytest.raises(ConfigError, match="load_posterior"):
            ask()
    loaded = load_posterior(path, WeibullStrength())
    assert np.allclose(loaded.density([0.3]), found.density([0.3]))
    assert torch.equal(loaded.choices.margins, found.choices.margins)
    without = load_posterior(found.to_arviz(["posterior", "prior"]), WeibullStrength())
    assert not without.has_data


def test_log_likelihood_is_the_marginal_of_each_annotator(panel_posterior_):
    data = panel_posterior_.to_arviz(["posterior", "log_likelihood", "constant_data"])
    mean, cv = (float(data.posterior[name][1, 3]) for name in ("beta_mean", "beta_cv"))
    law = LogNormalStrength(mean=mean, cv=cv).law()
    u = torch.linspace(-14, 7, 4001, dtype=torch.float64)
    rows = np.flatnonzero(data.constant_data["annotator_index"].values == 0)
    h = torch.as_tensor(data.constant_data["margin"].values[rows])
    w = torch.as_tensor(data.constant_data["weight"].values[rows])
    inside = (w[:, None] * torch.nn.functional.logsigmoid(u.exp() * h[:, None])).sum(0) + law.log_prob(u.exp()) + u
    expected = torch.logsumexp(inside, 0) + (u[1] - u[0]).log()
    assert float(data.log_likelihood["preferred"][1, 3, 0]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_annotator_strengths_follow_their_conditional_law(panel_posterior_):
    problem = panel_posterior_._problem
    from pluralpref.inference.marginal import panel_posterior
    from pluralpref.inference.posterior_panel import conditional_strengths

    one = {"beta_mean": torch.full((3000,), 0.9).double(), "beta_cv": torch.full((3000,), 1.1).double()}
    torch.manual_seed(0)
    beta = conditional_strengths(problem, one)
    law = LogNormalStrength(mean=0.9, cv=1.1).law()
    data = problem.choices
    grid = panel_posterior(law, data.margins, data.annotator, data.num_annotators, weight=data.weight)
    z = (beta.mean(0) - grid.mean()) / (grid.variance() / 3000).sqrt()
    assert z.abs().max() < 4.5
    for level in (0.05, 0.5, 0.95):
        below = (beta < grid.quantile(level)).double().mean(0)
        assert (below - level).abs().max() < 4.5 * (level * (1 - level) / 3000) ** 0.5


def test_user_family():
    margins, _ = simulate(dist.Weibull(torch.tensor(0.8), torch.tensor(2.0)), 150, 1)
    strength = WeibullStrength()
    posterior = fit(strength, margins, **SHORT)
    assert posterior.names == ["concentration", "scale"]
    assert posterior.attrs["marginal"] == "quadrature"
    concentration, scale = (posterior.draws(name)[0, 5] for name in posterior.names)
    law = dist.Weibull(torch.tensor(scale), torch.tensor(concentration))
    assert posterior.draws("beta_mean")[0, 5] == pytest.approx(float(law.mean))
    assert posterior.draws("beta_cv")[0, 5] == pytest.approx(float(law.stddev / law.mean))
    # The likelihood is a function of the parameters: the same twice.
    flat = posterior._flat
    assert torch.equal(posterior._problem.log_likelihood(flat), posterior._problem.log_likelihood(flat))


class OpaqueStrength(StrengthModel):
    def __init__(self, law):
        super().__init__()
        self.family = law
        self.scale = PyroParam(torch.tensor(0.5), torch.distributions.constraints.positive)

    def forward(self, context=None):
        return self.family(self.scale)


def test_a_family_that_can_only_be_drawn(opaque):
    margins, _ = simulate(dist.LogNormal(torch.tensor(0.0), torch.tensor(0.5)), 60, 1)
    posterior = fit(OpaqueStrength(opaque), margins, num_samples=10, num_warmup=10, num_chains=1)
    assert "256 common random draws" in posterior.attrs["marginal"]
    flat = posterior._flat
    assert torch.equal(posterior._problem.log_likelihood(flat), posterior._problem.log_likelihood(flat))


def test_user_family_in_a_panel():
    margins, code = simulate(dist.Weibull(torch.tensor(0.8), torch.tensor(2.0)), 20, 5)
    posterior = fit(WeibullStrength(), margins, annotator=code, num_samples=10, num_warmup=10, num_chains=1)
    assert posterior.draws("beta_annotator").shape == (1, 10, 20)
    assert posterior.to_arviz(["log_likelihood"]).log_likelihood["preferred"].shape == (1, 10, 20)


def test_learned_fixed_strength_is_a_one_parameter_logistic_regression():
    margins, _ = simulate(dist.Delta(torch.tensor(0.7)), 400, 1)
    posterior = fit(FixedStrength(0.1, learned=True), margins, num_samples=200, num_warmup=100, num_chains=2)
    grid = torch.linspace(0.2, 1.6, 2000, dtype=torch.float64)
    log_density = torch.nn.functional.logsigmoid(grid[:, None] * margins).sum(1)
    log_density = log_density - (grid / 0.1).log() ** 2 / 8 - grid.log()
    weight = torch.softmax(log_density, 0)
    draws = posterior.draws("beta_mean")
    assert abs(draws.mean() - float((weight * grid).sum())) < 4 * mcse_mean(draws)
    assert not posterior.has_spread
    assert (posterior.draws("beta_cv") == 0).all()


@pytest.mark.parametrize("annotator", [None, [0, 1, 1, 2] * 10])
def test_weights_are_repetitions_and_labels_turn_margins(annotator):
    margins, _ = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 40, 1)
    twice = None if annotator is None else annotator * 2
    zeros, two = torch.zeros(40), [2.0] * 40
    problems = [
        PosteriorProblem(GammaStrength(mean=0.5), choices)
        for choices in (
            as_choices(torch.cat([margins, margins]), annotator=twice),
            as_choices(margins, weight=two, annotator=annotator),
            as_choices(-margins, preferred=zeros, weight=two, annotator=annotator),
        )
    ]
    values = {"beta_mean": torch.tensor(0.7).double(), "beta_cv": torch.tensor(1.1).double()}
    first, *others = (float(problem.log_joint(values)) for problem in problems)
    assert others == pytest.approx([first, first], abs=1e-6)


def test_a_margins_table_brings_its_columns():
    table = MarginsTable(
        margins=torch.tensor([0.5, -1.0, 2.0, 0.1]),
        annotator=["ann", "bob", "bob", "ann"],
        weight=torch.tensor([1.0, 1.0, 2.0, 1.0]),
        preferred=torch.tensor([1.0, 1.0, 0.5, 1.0]),
        groups={"country": ["x", "x", "y", "y"]},
    )
    choices = as_choices(table)
    assert choices.annotator_names == ("ann", "bob")
    assert choices.annotator.tolist() == [0, 1, 1, 0]
    assert choices.weight.tolist() == [1.0, 1.0, 2.0, 1.0]
    assert choices.preferred.tolist() == [1.0, 1.0, 0.5, 1.0]
    assert choices.groups["country"].tolist() == ["x", "x", "y", "y"]
    assert as_choices(table, annotator=[1, 2, 3, 4]).num_annotators == 4


def test_codes_with_names():
    class Coded:
        margins = np.array([0.5, -1.0, 2.0])
        annotator = np.array([1, 0, 1])
        annotator_names = ("ann", "bob")

    assert as_choices(Coded()).annotator_names == ("bob", "ann")
    Coded.annotator = np.array([1, 0, 2])
    with pytest.raises(DataError, match="code 2 in row 2 has no entry in annotator_names, which has 2"):
        as_choices(Coded())


def test_own_priors_are_used():
    margins, _ = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 50, 1)
    tight = dist.LogNormal(torch.tensor(0.0), torch.tensor(1e-3))
    posterior = fit(LogNormalStrength(mean=0.1), margins, priors={"beta_mean": tight}, **SHORT)
    assert np.abs(posterior.draws("beta_mean") - 1.0).max() < 0.01
    assert posterior.draws("beta_mean").dtype == np.float64


def test_warns_of_short_chains_and_of_weak_data():
    margins, _ = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 30, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        with pytest.warns(NumericsWarning, match=r"ess_bulk .*raise num_warmup and num_samples"):
            fit_posterior(GammaStrength(), margins, progress_bar=False, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        with pytest.warns(IdentificationWarning, match="2 distinct"):
            posterior = fit_posterior(GammaStrength(), torch.tensor([1.0, -1.0, 2.0] * 20), progress_bar=False, **SHORT)
    assert any("distinct" in reason for reason in posterior.identification)
    assert load_posterior(posterior.to_arviz()).identification == posterior.identification


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"margins": [0.1, float("nan"), float("inf")]}, r"margins: 2 of 3 .*row 1: nan, row 2: inf"),
        ({"margins": []}, "margins is empty"),
        ({"margins": [[1.0]]}, r"shape \(pairs,\)"),
        ({"margins": ["a"]}, "must be numbers"),
        ({"margins": [1.0, 2.0, 3.0], "annotator": ["a", "b"]}, "annotator has 2 entries but there are 3 margins"),
        ({"margins": [1.0, 2.0], "annotator": ["a", None]}, "annotator: 1 of 2 labels are missing, the first in row 1"),
        ({"margins": [1.0, 2.0], "annotator": [["a"], ["b"]]}, "hashable"),
        ({"margins": [1.0, 2.0], "weight": [1.0, -1.0]}, r"weight: 1 of 2 .*row 1: -1"),
        ({"margins": [1.0, 2.0], "weight": [0.0, 0.0]}, "weight is 0 in every row"),
        ({"margins": [1.0, 2.0], "preferred": [1.0, 1.5]}, r"preferred: 1 of 2 .*row 1: 1.5"),
    ],
)
def test_bad_data(kwargs, message):
    with pytest.raises(DataError, match=message):
        fit_posterior(GammaStrength(), **kwargs)


@pytest.mark.parametrize(
    ("strength", "kwargs", "error", "message"),
    [
        (FixedStrength(0.1), {}, ConfigError, "learned=True"),
        (GammaStrength(), {"method": "gibbs"}, ConfigError, "available are 'auto', 'laplace', 'nuts', 'svi'"),
        (GammaStrength(), {"num_samples": 0}, ConfigError, "num_samples=0"),
        (GammaStrength(), {"seed": -1}, ConfigError, "seed=-1"),
        (GammaStrength(), {"target_accept_prob": 1.0}, ConfigError, "target_accept_prob"),
        (GammaStrength(), {"priors": {"loc": dist.Normal(0.0, 1.0)}}, ConfigError, "priors for loc"),
        ("lognormal", {}, ConfigError, "StrengthModel, not str"),
    ],
)
def test_bad_settings(strength, kwargs, error, message):
    with pytest.raises(error, match=message):
        fit_posterior(strength, [1.0, 2.0], **kwargs)


def test_plain_parameters_need_a_prior():
    class Plain(StrengthModel):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, context=None):
            return dist.LogNormal(self.shift, 1.0)

    with pytest.raises(UnsupportedError, match="shift has no prior"):
        fit_posterior(Plain(), [1.0, 2.0])


def test_summary_and_intervals(panel_posterior_):
    table = panel_posterior_.summary()
    assert list(table.index) == ["beta_mean", "beta_cv"]
    draws = panel_posterior_.draws("beta_cv")
    low, high = panel_posterior_.interval("beta_cv", 0.8)
    assert ((draws >= low) & (draws <= high)).mean() == pytest.approx(0.8, abs=0.02)
    assert panel_posterior_.interval("beta_cv", 0.8, kind="eti") == pytest.approx(np.quantile(draws, [0.1, 0.9]))
    with pytest.raises(ConfigError, match="unknown quantity 'x'"):
        panel_posterior_.draws("x")
    assert list(summary(panel_posterior_.to_arviz(["posterior"]), ["beta_cv"]).index) == ["beta_cv"]
