"""Panels of every shape and size: single choices, a few busy people, more people than a table holds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import psutil
import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import DataWarning, InferenceError, NumericsWarning
from pluralpref.inference import fit_posterior, posterior, posterior_problem, posterior_result
from pluralpref.inference.choices import as_choices
from pluralpref.inference.marginal import log_marginal, log_marginal_panel
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import CovariateStrength, GroupStrength, LogNormalStrength


def number(*values):
    return torch.tensor(values, dtype=torch.float64)


DRAWS = {"beta_mean": number(0.4, 1.0, 2.5), "beta_cv": number(0.2, 1.0, 2.0)}


def simulate(counts, seed=0):
    """(margins, annotator codes in random order): a log-normal law with mean 1 and cv 1, margins of sd 2."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        code = torch.arange(len(counts)).repeat_interleave(torch.as_tensor(counts))
        beta = LogNormalStrength(mean=1.0, cv=1.0).law().sample((len(counts),)).double()
        h = 2 * torch.randn(len(code), dtype=torch.float64)
        h = torch.where(torch.rand(len(code)) < torch.sigmoid(beta[code] * h), h, -h)
        order = torch.randperm(len(code))
    return h[order], code[order]


def expected(draws, h, code):
    """The log-likelihood of each annotator under each draw, by direct quadrature."""
    rows = []
    for mean, cv in zip(draws["beta_mean"], draws["beta_cv"], strict=True):
        law = LogNormalStrength(mean=float(mean), cv=float(cv)).law()
        rows.append(log_marginal_panel(law, h, code, int(code.max()) + 1))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("people", [40, 5000])
def test_people_with_one_choice_each_are_single_choices(people):
    """Few have a table of their own, many are interpolated from fewer nodes."""
    h, code = simulate([1] * people)
    choices = as_choices(h, annotator=code.tolist())
    problem = PosteriorProblem(LogNormalStrength(mean=0.5), choices)
    assert problem.is_independent
    assert problem.is_panel
    assert (problem.reduced is not None) == (people == 5000)
    reference = expected(DRAWS, h, choices.annotator)
    torch.testing.assert_close(problem.log_likelihood(DRAWS).double(), reference, rtol=2e-7, atol=1e-7)
    torch.testing.assert_close(problem.total_log_likelihood(DRAWS), reference.sum(1), rtol=0, atol=1e-6)
    values = {name: value[1] for name, value in DRAWS.items()}
    assert float(problem.log_likelihood_at(values)) == pytest.approx(float(reference[1].sum()), abs=1e-6)
    assert float(sum(f(values) for f in problem.smooth_pieces())) == pytest.approx(float(reference[1].sum()), abs=1e-6)
    some = torch.tensor([3, 0, 17])
    torch.testing.assert_close(problem.terms_of(values, some), reference[1, some], rtol=0, atol=1e-9)


@pytest.mark.parametrize("what", ["weight", "preferred"])
def test_weights_and_soft_labels_of_a_single_choice_stay_inside_its_expectation(what):
    h, code = simulate([1] * 50)
    column = torch.linspace(0.2, 0.9, 50, dtype=torch.float64)
    choices = as_choices(h, annotator=code.tolist(), **{what: column})
    problem = PosteriorProblem(LogNormalStrength(mean=0.5), choices)
    assert not problem.is_independent
    law = LogNormalStrength(mean=1.0, cv=1.0).law()
    exact = log_marginal_panel(law, h, choices.annotator, 50, **{what: column}).sum()
    values = {name: value[1] for name, value in DRAWS.items()}
    assert float(problem.log_likelihood_at(values)) == pytest.approx(float(exact.detach()), abs=1e-6)
    outside = column * log_marginal(law, h) + (0 if what == "weight" else (1 - column) * log_marginal(law, -h))
    assert abs(float((exact - outside.sum()).detach())) > 0.1


def test_strengths_of_people_with_one_choice_each():
    h, code = simulate([1] * 1000, seed=1)
    with pytest.warns(NumericsWarning, match="ess_bulk 32"):
        found = fit_posterior(
            LogNormalStrength(mean=0.5), h, annotator=code.tolist(), method="laplace", num_samples=8, progress_bar=False
        )
    beta = found.draws("beta_annotator")
    assert beta.shape == (4, 8, 1000)
    people = found.beta_given_choices()
    # One choice says little of one person, and the more the larger the margin that it went against.
    by_margin = h[found.choices.annotator.argsort()]
    for means in (beta.mean((0, 1)), people.mean):
        assert means[by_margin < -2].mean() < 0.97 * means[by_margin > 0].mean()
    assert abs(beta.mean() / people.mean.mean() - 1) < 0.05
    assert found.to_arviz().log_likelihood["preferred"].shape == (4, 8, 1000)


def test_busy_people_have_finer_tables():
    h, code = simulate([5] * 60 + [4000])
    choices = as_choices(h, annotator=code.tolist())
    problem = PosteriorProblem(LogNormalStrength(mean=0.5), choices)
    assert [len(cell.people) for cell in problem.cells] == [60, 1]
    assert problem.cells[0].table.num_nodes < problem.cells[1].table.num_nodes / 4
    reference = expected(DRAWS, h, choices.annotator)
    torch.testing.assert_close(problem.log_likelihood(DRAWS).double(), reference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(problem.total_log_likelihood(DRAWS), reference.sum(1), rtol=0, atol=1e-5)


def test_people_without_weight_are_in_the_tables_too():
    h, code = simulate([3] * 40)
    weight = (code >= 25).double()
    choices = as_choices(h, annotator=code.tolist(), weight=weight)
    problem = PosteriorProblem(LogNormalStrength(mean=0.5), choices)
    kept = problem.log_likelihood(DRAWS)
    without = choices.annotator[weight == 0].unique()
    assert len(without) == 25
    assert float(kept[:, without].abs().max()) < 1e-12
    assert int((kept.abs() < 1e-12).sum()) == 25 * 3


@pytest.fixture
def hardly_any_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(posterior_problem, "MOST_DIRECT_CHOICES", 500)


@pytest.mark.usefixtures("hardly_any_memory")
def test_more_people_than_a_table_holds(monkeypatch):
    """Which method is tried; the next test runs it."""
    h, code = simulate([4] * 300)
    with pytest.raises(InferenceError, match=r"1,200 choices.*300 annotators takes too much memory.*method='svi'"):
        fit_posterior(LogNormalStrength(mean=0.5), h, annotator=code.tolist(), method="laplace", progress_bar=False)
    tried = []

    def svi(problem, settings):
        tried.append(settings.batch_size)
        raise InferenceError("that will do")

    monkeypatch.setitem(posterior._ENGINES, "svi", svi)
    with pytest.raises(InferenceError, match="that will do"):
        fit_posterior(LogNormalStrength(mean=0.5), h, annotator=code.tolist(), progress_bar=False)
    assert tried == [299]


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_any_memory")
def test_minibatches_of_people():
    h, code = simulate([4] * 300)
    with pytest.warns(NumericsWarning, match="how well the guide fits wasn't measured"):
        found = fit_posterior(
            LogNormalStrength(mean=0.5),
            h,
            annotator=code.tolist(),
            progress_bar=False,
            num_samples=100,
            priors={"beta_cv": dist.HalfNormal(number(1.0)[0])},
        )
    assert found.attrs["method"] == "svi"
    assert "too much memory" in found.attrs["method_reason"]
    assert math.isnan(found.attrs["pareto_k"])
    assert found.attrs["batch_size"] == 299
    low, high = found.interval("beta_mean", 0.999)
    assert low < 1.0 < high


@pytest.mark.parametrize(
    ("strength", "columns", "message"),
    [
        (
            CovariateStrength(["age"], LogNormalStrength()),
            {"covariates": {"age": torch.linspace(0, 1, 600).double()}},
            "the columns age change between the choices of",
        ),
        (
            CovariateStrength(["age"], LogNormalStrength()),
            {"covariates": {"age": torch.arange(200).double().repeat_interleave(3)}},
            "columns have 200 different values",
        ),
    ],
)
def test_choices_that_no_table_serves(monkeypatch, strength, columns, message):
    monkeypatch.setattr(posterior_problem, "MOST_DIRECT_CHOICES", 500)
    with pytest.raises(InferenceError, match=message):
        fit_posterior(
            strength,
            torch.randn(600, dtype=torch.float64),
            annotator=torch.arange(200).repeat_interleave(3).tolist(),
            method="laplace",
            **columns,
        )


def test_groups_of_people_with_one_choice_each():
    h, code = simulate([1] * 400)
    labels = ["a" if c % 3 else "b" for c in code.tolist()]
    strength = GroupStrength(["a", "b"], LogNormalStrength(mean=0.5), column="region")
    alone = PosteriorProblem(strength, as_choices(h, groups={"region": labels}))
    named = PosteriorProblem(strength, as_choices(h, annotator=code.tolist(), groups={"region": labels}))
    draws = {name: prior.sample((4,)).double() for name, prior in alone.priors.items()}
    torch.testing.assert_close(named.total_log_likelihood(draws), alone.total_log_likelihood(draws), rtol=0, atol=1e-9)
    names = named.choices.annotator
    torch.testing.assert_close(named.log_likelihood(draws)[:, names], alone.log_likelihood(draws), rtol=1e-6, atol=1e-6)


def test_strengths_of_too_many_people_are_left_out_of_arviz_data(monkeypatch):
    monkeypatch.setattr(posterior_result, "POINTWISE_LIMIT", 5000)
    h, code = simulate([20] * 60)
    found = fit_posterior(
        LogNormalStrength(mean=0.5), h, annotator=code.tolist(), method="laplace", num_samples=100, progress_bar=False
    )
    with pytest.warns(DataWarning, match="beta_annotator left out: 24,000 values"):
        data = found.to_arviz(["posterior"])
    assert "beta_annotator" not in data.posterior
    assert "beta_cv" in data.posterior
