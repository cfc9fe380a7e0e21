"""Posteriors of strengths that depend on columns: groups of people, covariates of pairs, both."""

import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid

from pluralpref.errors import DataError, IdentificationWarning, NumericsWarning, UnsupportedError
from pluralpref.inference import fit_posterior
from pluralpref.inference.choices import as_choices
from pluralpref.inference.contexts import Contexts
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import CovariateStrength, GammaStrength, GroupStrength, LogNormalStrength, OpposedStrength


def number(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def simulate(beta_of_person, choices, seed=0, factor=1.0):
    """(margins, annotators): utilities with standard deviation 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        code = torch.arange(len(beta_of_person)).repeat_interleave(choices)
        utility = 2 * torch.randn(len(code), dtype=torch.float64)
        up = torch.rand(len(code)) < torch.sigmoid(beta_of_person.double()[code] * factor * utility)
        return torch.where(up, utility, -utility), code


def lognormal_draws(mean, cv, count, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LogNormalStrength(mean=mean, cv=cv).law().sample((count,))


def fit(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        warnings.simplefilter("ignore", IdentificationWarning)
        return fit_posterior(*args, progress_bar=False, **kwargs)


def brute_force(margins, code, factor, mean, cv):
    """Log p(y_a) of every person, b log-normal, each choice's margin times a factor; by no code of the library."""
    u = torch.linspace(-30, 12, 8401, dtype=torch.float64)
    people = torch.zeros(int(code.max()) + 1, len(u), dtype=torch.float64)
    people.index_add_(0, code, logsigmoid(u.exp() * (factor * margins)[:, None]))
    variance = np.log1p(cv**2)
    law = -((u - np.log(mean) + variance / 2) ** 2) / (2 * variance)
    return torch.logsumexp(people + law - torch.logsumexp(law, 0), 1)


GROUPS = ["low", "middle", "high"]


@pytest.mark.slow
def test_levels_of_groups_are_recovered():
    beta = torch.cat([lognormal_draws(mean, 0.5, 200, seed) for seed, mean in enumerate((0.3, 0.9, 2.7))])
    margins, code = simulate(beta, 8, seed=3)
    group = np.repeat(GROUPS, 200 * 8)
    posterior = fit(
        GroupStrength(GROUPS), margins, annotator=code, groups={"group": group}, method="laplace", num_samples=100, seed=1
    )  # fmt: skip
    mean, effect, scale = (posterior.draws(name) for name in ("strength.beta_mean", "effect", "scale"))
    assert effect.shape == (4, 100, 3)
    means = mean[..., None] * np.exp(scale[..., None] * effect)
    low, high = np.quantile(means, [0.0005, 0.9995], axis=(0, 1))
    truth = np.array([0.3, 0.9, 2.7])
    assert (low < truth).all(), (low, high)
    assert (truth < high).all(), (low, high)
    # 1600 choices tell levels a factor 3 apart beyond doubt.
    assert (high / low < 3).all()


@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
@pytest.mark.parametrize("panel", [False, True])
def test_groups_are_separate_likelihoods_at_their_own_levels(family, panel):
    margins, code = simulate(lognormal_draws(0.8, 0.6, 90, 1), 6, seed=2)
    group = np.array(GROUPS)[code % 3]
    problem = PosteriorProblem(
        GroupStrength(GROUPS, family()),
        as_choices(margins, annotator=code if panel else None, groups={"group": group}),
    )
    assert problem.contexts.num_cells == 3
    effect, tau, mean, cv = number(-1.2, 0.1, 0.8), number(0.7), number(0.6), number(0.9)
    values = {"scale": tau, "effect": effect, "strength.beta_mean": mean, "strength.beta_cv": cv}
    expected, each = 0.0, torch.zeros(problem.num_units, dtype=torch.float64)
    for g in range(3):
        rows = (code % 3 == g).nonzero()[:, 0]
        alone = PosteriorProblem(family(), as_choices(margins[rows], annotator=code[rows] if panel else None))
        level = {"beta_mean": mean * torch.exp(tau * effect[g]), "beta_cv": cv}
        expected += float(alone.log_likelihood_at(level))
        units = torch.arange(90)[torch.arange(90) % 3 == g] if panel else rows
        each[units] = alone.terms_of(level, torch.arange(alone.num_units))
    assert float(problem.log_likelihood_at(values)) == pytest.approx(expected, abs=1e-5)
    draws = {name: value[None] for name, value in values.items()}
    assert float(problem.total_log_likelihood(draws)) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(problem.log_likelihood(draws)[0].double(), each, rtol=1e-6, atol=1e-6)


def covariate_problem():
    """Every person judges under several values of x, which scale their one b."""
    x = torch.randn(240, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    margins, code = simulate(lognormal_draws(0.8, 0.6, 40, 1), 6, seed=2, factor=torch.exp(0.5 * x))
    choices = as_choices(margins, annotator=code, covariates={"x": x})
    return PosteriorProblem(CovariateStrength(["x"]), choices), margins, code, x


def test_covariates_that_vary_within_people_match_brute_force():
    problem, margins, code, x = covariate_problem()
    assert problem.contexts.varies
    assert problem.cells == []
    draws = {
        "weight": number(-0.8, 0.0, 0.6).reshape(3, 1),
        "strength.beta_mean": number(0.5, 1.0, 1.7),
        "strength.beta_cv": number(0.2, 0.7, 1.6),
    }
    each, total = problem.log_likelihood(draws).double(), problem.total_log_likelihood(draws)
    for row in range(3):
        values = {name: value[row] for name, value in draws.items()}
        mean, cv = float(values["strength.beta_mean"]), float(values["strength.beta_cv"])
        expected = brute_force(margins, code, torch.exp(values["weight"] * x), mean, cv)
        torch.testing.assert_close(each[row], expected, rtol=1e-6, atol=1e-6)
        assert float(total[row]) == pytest.approx(float(expected.sum()), abs=1e-5)
        assert float(problem.log_likelihood_at(values)) == pytest.approx(float(expected.sum()), abs=1e-5)
        assert sum(float(piece(values)) for piece in problem.smooth_pieces()) == pytest.approx(
            float(expected.sum()), abs=1e-5
        )


def test_covariates_of_single_choices_match_brute_force():
    x = torch.randn(300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    margins, code = simulate(lognormal_draws(0.8, 0.6, 300, 1), 1, seed=2, factor=torch.exp(0.5 * x))
    problem = PosteriorProblem(CovariateStrength(["x"]), as_choices(margins, covariates={"x": x}))
    values = {"weight": number(0.4).reshape(1), "strength.beta_mean": number(0.9), "strength.beta_cv": number(0.8)}
    expected = brute_force(margins, code, torch.exp(0.4 * x), 0.9, 0.8)
    found = problem.log_likelihood({name: value[None] for name, value in values.items()})[0].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert float(problem.log_likelihood_at(values)) == pytest.approx(float(expected.sum()), abs=1e-5)


@pytest.mark.parametrize("within", [False, True])
def test_two_crossed_columns_and_a_covariate_match_brute_force(within):
    """With ``within``, the age of a person changes from choice to choice."""
    margins, code = simulate(lognormal_draws(0.8, 0.6, 36, 1), 6, seed=2)
    country = code % 2
    age = (torch.arange(216) if within else code // 2) % 3
    x = (code % 5).double() / 5
    strength = GroupStrength(
        {"country": ["DE", "FR"], "age": ["young", "middle", "old"]}, CovariateStrength(["x"], LogNormalStrength())
    )
    columns = {
        "groups": {"country": np.array(["DE", "FR"])[country], "age": np.array(["young", "middle", "old"])[age]},
        "covariates": {"x": x},
    }
    problem = PosteriorProblem(strength, as_choices(margins, annotator=code, **columns))
    assert problem.contexts.varies is within
    values = {
        "scale": number(0.6, 0.9),
        "effect": number(-1.0, 0.5, 1.2, 0.0, -0.7),
        "strength.weight": number(0.8).reshape(1),
        "strength.strength.beta_mean": number(0.9),
        "strength.strength.beta_cv": number(0.7),
    }
    effect = values["effect"]
    factor = torch.exp(0.6 * effect[country] + 0.9 * effect[2 + age] + 0.8 * x)
    expected = brute_force(margins, code, factor, 0.9, 0.7)
    found = problem.log_likelihood({name: value[None] for name, value in values.items()})[0].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert float(problem.log_likelihood_at(values)) == pytest.approx(float(expected.sum()), abs=1e-5)


def test_people_in_more_cells_than_tables_are_made_for(monkeypatch):
    margins, code = simulate(lognormal_draws(0.8, 0.6, 90, 1), 6, seed=2)
    choices = as_choices(margins, annotator=code, groups={"group": np.array(GROUPS)[code % 3]})
    tabulated = PosteriorProblem(GroupStrength(GROUPS), choices)
    monkeypatch.setattr("pluralpref.inference.posterior_problem.MOST_CELLS", 2)
    direct = PosteriorProblem(GroupStrength(GROUPS), choices)
    assert (len(tabulated.cells), len(direct.cells)) == (3, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = {name: prior.sample((5,)).double() for name, prior in tabulated.priors.items()}
    torch.testing.assert_close(tabulated.log_likelihood(draws), direct.log_likelihood(draws), rtol=1e-6, atol=1e-6)


def test_contexts_know_their_cells():
    strength = GroupStrength({"country": ["DE", "FR"], "age": ["young", "old"]})
    groups = {"country": ["DE", "DE", "FR", "FR", "DE"], "age": ["old", "young", "old", "old", "old"]}
    margins = [1.0, 2.0, 3.0, 4.0, 5.0]
    contexts = Contexts(strength, as_choices(margins, annotator=list("abccd"), groups=groups))
    assert contexts.num_cells == 3
    assert not contexts.varies
    labels = contexts.labels()
    assert [labels[cell] for cell in contexts.cell_of_person.tolist()] == [
        "country=DE, age=old", "country=DE, age=young", "country=FR, age=old", "country=DE, age=old"
    ]  # fmt: skip
    contexts = Contexts(strength, as_choices(margins, annotator=list("aabbc"), groups=groups))
    assert contexts.varies
    assert "change between the choices of 1 annotators, such as 'a'" in contexts.describe_varying()


@pytest.mark.parametrize(
    ("strength", "columns", "message"),
    [
        (GroupStrength(GROUPS), {}, "reads the column 'group', which isn't among the data"),
        (GroupStrength(GROUPS), {"groups": {"team": ["low", "high"]}}, "the column 'group'"),
        (CovariateStrength(["x", "z"]), {"covariates": {"x": [0.1, 0.2]}}, "the column 'z'"),
        (GroupStrength(GROUPS), {"groups": {"group": ["low", "other"]}}, "'group': row 1 .*'other'.*low, middle, high"),
        (
            GroupStrength(GROUPS),
            {"groups": {"group": ["low", "high"]}, "covariates": {"group": [0.1, 0.2]}},
            "'group' is given both as a group and as a covariate",
        ),
        (CovariateStrength(["x"]), {"covariates": {"x": [0.1]}}, "x has 1 entries but there are 2 margins"),
        (CovariateStrength(["x"]), {"covariates": {"x": [0.1, float("nan")]}}, "x: 1 of 2 .*row 1: nan"),
        (CovariateStrength(["x"]), {"covariates": {"x": ["a", "b"]}}, "x must be numbers"),
    ],
)
def test_bad_columns(strength, columns, message):
    with pytest.raises(DataError, match=message):
        fit_posterior(strength, [1.0, 2.0], **columns)


def test_what_changes_within_people_must_scale_beta():
    """The share of an OpposedStrength's mirror image isn't scaled: people would have no one strength."""
    strength = OpposedStrength(GroupStrength(GROUPS))
    columns = {"annotator": ["a", "a"], "groups": {"group": ["low", "high"]}}
    assert strength.context_columns == ("group",)
    with pytest.raises(UnsupportedError, match="change between the choices of 1 annotators, such as 'a'"):
        fit_posterior(strength, [1.0, 2.0], **columns)


@pytest.fixture(scope="module")
def grouped():
    beta = torch.cat([lognormal_draws(mean, 0.3, 10, seed) for seed, mean in enumerate((0.2, 0.8, 3.2))])
    margins, code = simulate(beta, 40, seed=3)
    return fit(
        GroupStrength(GROUPS), margins, annotator=code, groups={"group": np.repeat(GROUPS, 400)}, method="laplace",
        num_samples=10, num_proposals=500, seed=1,
    )  # fmt: skip


def test_strengths_of_people_lie_at_their_groups_levels(grouped):
    own = grouped.draws("beta_annotator")
    assert own.shape == (4, 10, 30)
    levels = own.reshape(40, 3, 10).mean((0, 2))
    # 400 choices each; the groups' true levels are a factor 4 apart.
    assert (levels / np.array([0.2, 0.8, 3.2]) < 2).all()
    assert (levels / np.array([0.2, 0.8, 3.2]) > 0.5).all()


def test_arviz_groups_with_contexts(grouped):
    data = grouped.to_arviz()
    assert data.posterior_predictive["preferred"].shape == (4, 10, 1200)
    assert data.log_likelihood["preferred"].shape == (4, 10, 30)
    assert data.constant_data["group"].values[[0, -1]].tolist() == ["low", "high"]
    choices = data.posterior_predictive["preferred"].values
    assert set(np.unique(choices)) == {0, 1}
    # New choices of the same people: the stronger their group, the more often they choose the better answer.
    margins = data.constant_data["margin"].values
    agrees = ((choices == 1) == (margins > 0)).reshape(40, 3, 400).mean((0, 2))
    assert (np.diff(agrees) > 0.05).all(), agrees


@pytest.fixture(scope="module")
def with_covariate():
    _, margins, code, x = covariate_problem()
    return fit(
        CovariateStrength(["x"]), margins, annotator=code, covariates={"x": x}, method="laplace", num_samples=5,
        num_proposals=100, num_chains=2, seed=1,
    )  # fmt: skip


def test_draws_with_covariates_that_vary(with_covariate):
    assert with_covariate.draws("weight").shape == (2, 5, 1)
    own = with_covariate.draws("beta_annotator")
    assert own.shape == (2, 5, 40)
    assert (own > 0).all()
    data = with_covariate.to_arviz(["posterior", "log_likelihood"])
    draws = {name: torch.as_tensor(with_covariate.draws(name)).flatten(0, 1) for name in with_covariate.names}
    expected = with_covariate._problem.total_log_likelihood(draws)
    np.testing.assert_allclose(data.log_likelihood["preferred"].values.sum(-1).ravel(), expected.numpy(), rtol=1e-5)


def test_arviz_groups_with_covariates(with_covariate):
    data = with_covariate.to_arviz()
    assert data.posterior_predictive["preferred"].shape == (2, 5, 240)
    assert data.constant_data["weight"].dims == ("pair",)


def test_own_prior_of_a_group_model_by_name():
    margins, code = simulate(lognormal_draws(0.8, 0.6, 60, 1), 4, seed=2)
    tight = dist.LogNormal(number(np.log(0.7)), number(1e-3))
    posterior = fit(
        GroupStrength(GROUPS), margins, annotator=code, groups={"group": np.array(GROUPS)[code % 3]},
        priors={"strength.beta_mean": tight}, method="laplace", num_samples=10, num_proposals=1000,
    )  # fmt: skip
    np.testing.assert_allclose(posterior.draws("strength.beta_mean"), 0.7, rtol=0.01)
