"""The pieces that the posterior is made of."""

from __future__ import annotations

import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pluralpref.diagnostics.families import describe_family
from pluralpref.errors import IdentificationWarning
from pluralpref.inference.arviz_data import convergence
from pluralpref.inference.choices import as_choices
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.interpolated_likelihood import interpolate_choices
from pluralpref.inference.marginal import MonteCarlo, Quadrature, log_marginal
from pluralpref.inference.posterior_checks import check_identification
from pluralpref.inference.posterior_coordinates import Coordinates, _fit_parabola
from pluralpref.inference.posterior_draws import PosteriorDraws
from pluralpref.inference.posterior_problem import PosteriorProblem, _fixed_seed
from pluralpref.inference.strength_grid import make_grid
from pluralpref.models import GammaStrength, LogNormalStrength
from pluralpref.models.quantiles import quantile


@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
@pytest.mark.parametrize(("mean", "cv"), [(0.01, 0.5), (0.3, 0.02), (0.5, 0.5), (1.0, 3.0), (10.0, 1.0)])
def test_interpolation_is_exact_to_far_below_a_nat(family, mean, cv):
    torch.manual_seed(0)
    margins = torch.cat([1.5 * torch.randn(2000), 1e-3 * torch.randn(300), 30 * torch.randn(20), torch.zeros(10)])
    margins = margins.double()
    preferred = torch.rand(len(margins), dtype=torch.float64)
    weight = torch.rand(len(margins), dtype=torch.float64) * 2
    reduced = interpolate_choices(as_choices(margins, preferred=preferred, weight=weight))
    assert reduced is not None
    assert len(reduced.nodes) < 150
    law = family(mean=mean, cv=cv).law()
    terms = preferred * log_marginal(law, margins) + (1 - preferred) * log_marginal(law, -margins)
    difference = (reduced.coefficients * log_marginal(law, reduced.nodes)).sum() - (weight * terms).sum()
    assert float(difference.detach()) == pytest.approx(0, abs=2e-5)


def test_interpolation_is_left_out_where_it_does_not_help():
    assert interpolate_choices(as_choices(torch.randn(30))) is None
    assert interpolate_choices(as_choices(torch.zeros(1000))) is None


def test_coordinates_are_a_change_of_variables():
    torch.manual_seed(0)
    problem = PosteriorProblem(LogNormalStrength(mean=0.4), as_choices(torch.randn(300) + 0.5))
    coordinates = Coordinates(problem)
    assert coordinates.ridge is not None
    z = {"beta_mean": torch.tensor(0.3).double(), "beta_cv": torch.tensor(-0.7).double()}
    values, jacobian = coordinates.constrain(z)
    assert float(values["beta_cv"]) == pytest.approx(0.7)
    back = coordinates.free(values)
    assert float(back["beta_mean"]) == pytest.approx(0.3)
    assert float(coordinates.potential(z)) == pytest.approx(float(-(problem.log_joint(values) + jacobian)))
    # d(mean, cv)/dz by autograd; the constant s is left out of the stated Jacobian.
    leaf = torch.tensor([0.3, -0.7], dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(
        lambda x: torch.stack(list(coordinates.constrain({"beta_mean": x[0], "beta_cv": x[1]})[0].values())), leaf
    )
    expected = torch.linalg.det(matrix).abs().log() - coordinates.ridge[3].log()
    assert float(jacobian) == pytest.approx(float(expected))


def test_ridge_follows_the_conditional_mode():
    torch.manual_seed(1)
    problem = PosteriorProblem(GammaStrength(mean=5.0), as_choices(torch.randn(400).double() + 0.7))
    coordinates = Coordinates(problem)
    for cv in (0.3, 1.2):
        z = {"beta_mean": torch.zeros((), dtype=torch.float64), "beta_cv": torch.tensor(cv).double()}
        for name in z:
            z[name].requires_grad_()
        (slope,) = torch.autograd.grad(coordinates.potential(z), z["beta_mean"])
        # A slope of 1 would be one standard deviation from the mode.
        assert abs(float(slope)) < 0.5


def test_ridge_constants_are_least_squares_and_repeat_to_the_bit():
    x, y = [0.0, 0.1, 0.4, 0.9, 1.5, 2.0], [0.3, 0.2, 0.9, 0.7, 2.0, 1.1]
    assert _fit_parabola(x, y) == pytest.approx(np.polyfit(x, y, 2)[::-1])
    margins = torch.linspace(-1, 2, 200, dtype=torch.float64)
    results, junk = set(), []
    for size in range(1, 40):
        # Memory laid out differently each time, which library routines' rounding may depend on.
        junk.append(torch.empty(97 * size, dtype=torch.float32))
        torch.manual_seed(0)
        results.add(tuple(Coordinates(PosteriorProblem(GammaStrength(), as_choices(margins))).ridge.tolist()))
    assert len(results) == 1


def test_child_seeds_differ():
    seeds = {child_seed(seed, *path) for seed in range(20) for path in [(0,), (1,), (0, 0), (0, 1)]}
    assert len(seeds) == 80


def test_borrowed_state_gives_back_after_an_error():
    before = torch.get_rng_state()

    def fail():
        with borrowed_state(3, threads=1):
            raise ZeroDivisionError(torch.rand(3))

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def two_devices(monkeypatch):
    """The states of two CUDA devices' generators, which ``torch.manual_seed`` would seed."""
    states = {0: "a", 1: "b"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: states.update({0: seed, 1: seed}))
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    return states


class Plain(dist.Exponential):
    """A law with neither quantile function nor cdf."""

    def icdf(self, value):
        raise NotImplementedError

    def cdf(self, value):
        raise NotImplementedError


def borrow():
    with borrowed_state(3):
        torch.rand(3)


def predict_by_draws():
    with _fixed_seed():
        torch.rand(3)


LAW = dist.StudentT(torch.tensor(4.0).double(), torch.tensor(1.0).double())
SEEDED = {
    "borrowed state": borrow,
    "quantile": lambda: quantile(Plain(torch.tensor(2.0)), 0.5),
    "quadrature": lambda: log_marginal(LAW, torch.ones(3, dtype=torch.float64), Quadrature()),
    "seeded draws": lambda: log_marginal(LAW, torch.ones(3, dtype=torch.float64), MonteCarlo(16, seed=1)),
    "common draws": predict_by_draws,
    "facts": lambda: describe_family("gamma", GammaStrength()),
    "grid": lambda: make_grid(dist.HalfCauchy(torch.ones(2, 1, dtype=torch.float64))),
}


@pytest.mark.parametrize("name", SEEDED)
def test_generators_of_all_devices_are_left_as_they_were(name, two_devices):
    before = torch.get_rng_state()
    SEEDED[name]()
    assert torch.equal(torch.get_rng_state(), before)
    assert two_devices == {0: "a", 1: "b"}


# -- whether the spread was learned -----------------------------------------------------------------------------------

MANY = as_choices(torch.linspace(-2, 2, 60, dtype=torch.float64), annotator=[i // 2 for i in range(60)])
WIDE = np.geomspace(0.1, 10, 1000)[None]


def reasons(posterior, prior):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        return check_identification(MANY, posterior, prior, False)


@pytest.mark.parametrize("missing", [np.inf, np.nan])
def test_identification_where_some_laws_have_no_variance(missing):
    """Most draws of the prior have no cv: a posterior like it has learned nothing, a narrow one has."""
    prior = np.where(np.arange(1000) % 3 == 0, WIDE, missing)
    (reason,) = reasons(prior[:, ::-1], prior)
    assert reason.startswith("the posterior of beta_cv / (1 + beta_cv) (beta has no variance under some draws) is 100%")
    assert reasons(np.full((1, 50), 0.5) + np.linspace(0, 0.1, 50), prior) == []
    (reason,) = reasons(WIDE, np.full((1, 100), missing))
    assert "whether the choices say anything about heterogeneity can't be seen from beta_cv" in reason


def test_identification_where_all_laws_have_a_variance():
    (reason,) = reasons(WIDE, WIDE)
    assert reason.startswith("the posterior of beta_cv is 100% as wide as its prior")
    assert reasons(1 + WIDE / 1000, WIDE) == []
    # A few infinite draws in the tail change nothing.
    tail = np.where(np.arange(1000) > 950, np.inf, WIDE)
    assert reasons(tail, tail)[0].startswith("the posterior of beta_cv is 100%")


@pytest.mark.parametrize(("cv", "spread"), [(0.0, False), (np.nan, True), (np.inf, True), (0.5, True), (-0.5, True)])
def test_a_spread_that_is_not_a_number_is_one(cv, spread):
    draws = PosteriorDraws.__new__(PosteriorDraws)
    draws._prior = {"beta_cv": np.full((1, 5), cv)}
    assert draws.has_spread is spread


def test_r_hat_of_one_chain_compares_its_halves():
    steady = np.random.default_rng(0).normal(size=(1, 401))
    moved = steady.copy()
    moved[0, 200:] += 2
    found = convergence({"steady": steady, "moved": moved})["r_hat"]
    assert found["steady"] < 1.02
    assert found["moved"] > 1.3
    several = convergence({"moved": moved[:, :400].reshape(2, 200)})["r_hat"]
    assert several["moved"] == pytest.approx(found["moved"])
