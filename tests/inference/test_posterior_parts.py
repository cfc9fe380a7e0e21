"""The pieces that the posterior is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pluralpref.inference.arviz_data import convergence
from pluralpref.inference.choices import as_choices
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.interpolated_likelihood import interpolate_choices
from pluralpref.inference.marginal import log_marginal
from pluralpref.inference.posterior_coordinates import Coordinates, _fit_parabola
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import GammaStrength, LogNormalStrength


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


def test_r_hat_of_one_chain_compares_its_halves():
    steady = np.random.default_rng(0).normal(size=(1, 401))
    moved = steady.copy()
    moved[0, 200:] += 2
    found = convergence({"steady": steady, "moved": moved})["r_hat"]
    assert found["steady"] < 1.02
    assert found["moved"] > 1.3
    several = convergence({"moved": moved[:, :400].reshape(2, 200)})["r_hat"]
    assert several["moved"] == pytest.approx(found["moved"])
