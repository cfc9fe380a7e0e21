"""The tabulated likelihood of panels against direct quadrature."""

import math
from types import SimpleNamespace

import psutil
import pyro
import pyro.distributions as dist
import pytest
import torch

from pluralpref.inference.interpolated_likelihood import lagrange_weights
from pluralpref.inference.interpolated_panels import InterpolatedPanels, interpolate_panels
from pluralpref.inference.marginal import log_marginal_panel

MEANS = (1e-3, 0.3, 1.0, 30.0)
CVS = (0.05, 0.5, 1.5, 5.0, 30.0)


def lognormal(mean, cv):
    variance = torch.log1p(cv**2)
    return dist.LogNormal(torch.log(mean) - variance / 2, variance.sqrt())


def gamma(mean, cv):
    return dist.Gamma(1 / cv**2, 1 / (cv**2 * mean))


def choices(annotators, each, scale, seed=0):
    """Margins of simulated people, their indices, and random weights and soft labels."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(annotators).repeat_interleave(each)
    gap = scale * torch.randn(annotators * each, generator=generator, dtype=torch.float64)
    strength = torch.randn(annotators, generator=generator, dtype=torch.float64).exp()
    wins = torch.rand(annotators * each, generator=generator) < torch.sigmoid(strength[index] * gap)
    weight = 2 * torch.rand(annotators * each, generator=generator, dtype=torch.float64)
    preferred = torch.rand(annotators * each, generator=generator, dtype=torch.float64)
    return torch.where(wins, gap, -gap), index, weight, preferred


def values(cell, function, annotators):
    """The log-likelihoods, and the gradient of their sum in mean and cv."""
    family, mean, cv = cell
    mean, cv = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (mean, cv))
    terms = function(family(mean, cv))
    assert terms.shape == (annotators,)
    return terms.detach(), torch.stack(torch.autograd.grad(terms.sum(), (mean, cv)))


@pytest.mark.parametrize("family", [lognormal, gamma])
@pytest.mark.parametrize(
    ("annotators", "each", "scale"), [(40, 10, 2.0), (20, 200, 1.0), (5, 2000, 1.0), (40, 1, 1.0), (40, 10, 1e3)]
)
@pytest.mark.parametrize("soft", [False, True])
def test_agrees_with_quadrature(family, annotators, each, scale, soft):
    h, index, weight, preferred = choices(annotators, each, scale)
    columns = (weight, preferred) if soft else (None, None)
    table = interpolate_panels(h, index, annotators, *columns)
    assert table is not None
    for mean in MEANS:
        for cv in CVS:
            cell = (family, mean, cv)
            expected = values(cell, lambda law: log_marginal_panel(law, h, index, annotators, *columns), annotators)
            found = values(cell, table.log_marginal, annotators)
            assert torch.allclose(found[0], expected[0], rtol=1e-9, atol=1e-8), cell
            # The gamma's derivative in cv is a difference that cancels like cv^3.
            tolerance = 1e-5 if family is gamma and cv < 0.1 else 1e-8
            # Gradients are sums over people, whose terms may cancel as well.
            scale_of = torch.tensor([1 / mean, 1.0], dtype=torch.float64) * annotators
            assert torch.allclose(found[1] / scale_of, expected[1] / scale_of, rtol=1e-6, atol=tolerance), cell


@pytest.mark.parametrize("cv", [1e-10, 1e-6, 1e-3])
@pytest.mark.parametrize("family", [lognormal, gamma])
def test_a_narrow_law_is_a_point_mass(family, cv):
    h, index, *_ = choices(40, 10, 2.0)
    table = interpolate_panels(h, index, 40)
    law = family(torch.tensor(0.7, dtype=torch.float64), torch.tensor(cv, dtype=torch.float64))
    expected = torch.zeros(40, dtype=torch.float64).index_add(0, index, torch.nn.functional.logsigmoid(0.7 * h))
    assert torch.allclose(table.log_marginal(law), expected, atol=2e-8 + 20 * cv)


def test_people_may_be_without_information():
    index = torch.tensor([0, 0, 1, 3])
    h = torch.tensor([0.0, 0.0, 2.0, -1.0], dtype=torch.float64)
    table = interpolate_panels(h, index, 4)
    law = lognormal(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    found = table.log_marginal(law)
    assert found[0] == pytest.approx(2 * math.log(0.5), abs=1e-8)
    assert found[2] == pytest.approx(0.0, abs=1e-8)  # made no choice
    nothing = interpolate_panels(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), 1)
    assert nothing.log_marginal(law)[0] == pytest.approx(3 * math.log(0.5), abs=1e-8)


def test_absurd_parameters_are_no_number_and_no_crash():
    h, index, *_ = choices(10, 5, 1.0)
    table = interpolate_panels(h, index, 10)
    with pyro.validation_enabled(False):
        for loc, scale in ((0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
            law = dist.LogNormal(torch.tensor(loc), torch.tensor(scale))
            assert torch.isnan(table.log_marginal(law)).all()


def test_a_table_that_would_be_too_large_is_not_made(monkeypatch):
    annotators = 1_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    h, index = torch.ones(annotators, dtype=torch.float64), torch.arange(annotators)
    assert interpolate_panels(h, index, annotators) is None
    assert isinstance(interpolate_panels(h[:10], index[:10], 10), InterpolatedPanels)


def test_lagrange_weights_reproduce_polynomials():
    x = torch.linspace(4.5, 6.5, 41, dtype=torch.float64)
    nodes = torch.arange(12, dtype=torch.float64)
    weights = lagrange_weights(x)
    for degree in range(12):
        assert torch.allclose(weights @ (nodes / 11) ** degree, (x / 11) ** degree, rtol=0, atol=1e-13)
    exact = lagrange_weights(nodes[5:7])
    assert torch.allclose(exact, torch.eye(12, dtype=torch.float64)[5:7], atol=1e-12)
