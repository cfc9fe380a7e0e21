"""The table of methods: what is found, what is refused, and in which words."""

import math

import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference.marginal import (
    ClosedForm,
    MonteCarlo,
    Quadrature,
    available_methods,
    log_marginal,
    register_marginal,
)
from pluralpref.inference.marginal import dispatch as table

H = torch.tensor([-3.0, 0.5, 40.0], dtype=torch.float64)


@pytest.fixture
def clean_table(monkeypatch):
    monkeypatch.setattr(table, "_SINGLE", dict(table._SINGLE))


def test_available_methods(opaque):
    assert available_methods(dist.Gamma(1.0, 1.0)) == ("closed_form", "quadrature", "monte_carlo")
    assert available_methods(dist.LogNormal(0.0, 1.0)) == ("quadrature", "monte_carlo")
    assert available_methods(dist.Delta(torch.tensor(0.1))) == ("closed_form", "monte_carlo")
    assert available_methods(dist.HalfNormal(1.0)) == ("quadrature", "monte_carlo")
    assert available_methods(opaque(torch.tensor(1.0))) == ("monte_carlo",)
    assert available_methods(dist.Poisson(1.0)) == ()


def test_auto_takes_the_most_exact(opaque):
    other = opaque(torch.tensor(1.0))
    gamma, lognormal = dist.Gamma(2.0, 3.0), dist.LogNormal(0.0, 1.0)
    assert torch.equal(log_marginal(gamma, H), log_marginal(gamma, H, "closed_form"))
    assert torch.equal(log_marginal(lognormal, H), log_marginal(lognormal, H, Quadrature()))
    assert torch.equal(log_marginal(dist.HalfNormal(1.0), H), log_marginal(dist.HalfNormal(1.0), H, Quadrature()))
    torch.manual_seed(0)
    first = log_marginal(other, H)
    torch.manual_seed(0)
    assert torch.equal(first, log_marginal(other, H, MonteCarlo(16)))
    torch.manual_seed(0)
    assert not torch.equal(first, log_marginal(other, H, MonteCarlo(17)))


def test_subclasses_use_the_entry_of_their_base():
    chi2 = dist.Chi2(torch.tensor(3.0, dtype=torch.float64))
    gamma = dist.Gamma(torch.tensor(1.5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(log_marginal(chi2, H), log_marginal(gamma, H), rtol=1e-15, atol=0)


def test_the_most_specific_class_wins(clean_table):
    class Special(torch.distributions.Gamma):
        pass

    @register_marginal(Special, Quadrature)
    def _special(law, margins, method):
        return torch.full_like(margins, -7.0)

    law = Special(torch.tensor(2.0), torch.tensor(3.0))
    # Its own quadrature is preferred to a closed form that belongs to the base class ...
    assert log_marginal(law, H).tolist() == [-7.0] * 3
    # ... which remains available by name.
    assert torch.equal(log_marginal(law, H, ClosedForm()), log_marginal(dist.Gamma(2.0, 3.0), H))
    assert log_marginal(dist.Gamma(2.0, 3.0), H)[0] != -7.0


def test_wrappers_that_change_shapes_are_seen_through():
    base = dist.Gamma(torch.tensor([2.0, 3.0]), torch.tensor(3.0))
    h = torch.tensor([[1.0], [-1.0], [0.3]])
    expected = log_marginal(base, h)
    assert torch.equal(log_marginal(dist.Independent(base, 0), h), expected)
    expanded = dist.ExpandedDistribution(base, torch.Size([3, 2]))
    assert torch.equal(log_marginal(expanded, h), expected)
    assert torch.equal(log_marginal(base.expand([3, 2]), h), expected)


def test_vectors_and_masks_are_refused():
    with pytest.raises(UnsupportedError, match="event shape"):
        log_marginal(dist.Gamma(torch.ones(3), 1.0).to_event(1), H)
    with pytest.raises(UnsupportedError, match="mask the observation"):
        log_marginal(dist.Gamma(torch.ones(3), 1.0).mask(torch.tensor([True, False, True])), H)
    with pytest.raises(ConfigError, match="distribution"):
        log_marginal(0.1, H)


def test_error_names_family_method_and_alternatives():
    with pytest.raises(UnsupportedError) as caught:
        log_marginal(dist.LogNormal(0.0, 1.0), H, "closed_form")
    message = str(caught.value)
    for part in ("LogNormal", "closed_form", "quadrature, monte_carlo", "@register_marginal(LogNormal, ClosedForm)"):
        assert part in message


def test_monte_carlo_without_rsample_is_refused():
    for method in ("auto", "monte_carlo"):
        with pytest.raises(UnsupportedError, match="lose the gradient"):
            log_marginal(dist.Poisson(1.0), H, method)


@pytest.mark.parametrize("method", ["exact", 16, None, ClosedForm])
def test_unknown_methods(method):
    with pytest.raises(ConfigError, match="method"):
        log_marginal(dist.Gamma(1.0, 1.0), H, method)


def test_method_arguments_are_checked():
    with pytest.raises(ConfigError, match="at least 1"):
        MonteCarlo(0)
    with pytest.raises(ConfigError, match="tolerance"):
        Quadrature(tolerance=0)
    with pytest.raises(ConfigError, match="max_nodes"):
        Quadrature(max_nodes=3)


def test_registration_is_checked():
    with pytest.raises(ConfigError, match="distribution class"):
        register_marginal(int, ClosedForm)
    with pytest.raises(ConfigError, match="method class"):
        register_marginal(dist.Gamma, int)


def test_nan_margins_are_named():
    h = torch.tensor([0.0, 1.0, math.nan, 2.0, math.nan])
    with pytest.raises(DataError, match=r"2 of 5 margins are NaN, the first at index 2\b"):
        log_marginal(dist.Gamma(1.0, 1.0), h)
    # inf - inf in a sum is NaN without any margin being NaN.
    value = log_marginal(dist.Gamma(1.0, 1.0), torch.tensor([math.inf, -math.inf]))
    assert value.tolist() == [0.0, -math.inf]


@pytest.mark.parametrize(
    "law", [dist.Gamma(2.0, 3.0), dist.LogNormal(0.0, 1.0), dist.Delta(torch.tensor(0.3)), dist.HalfNormal(1.0)]
)
def test_infinite_margins_leave_no_nan(law):
    h = torch.tensor([math.inf, 1.0, -math.inf], dtype=torch.float64, requires_grad=True)
    value = log_marginal(law, h)
    value[1].backward()
    assert value[0] == 0
    assert value[2] == -math.inf
    assert torch.isfinite(value[1])
    assert h.grad[0] == h.grad[2] == 0
    assert h.grad[1] > 0


@pytest.mark.parametrize("law", [dist.Gamma(2.0, 3.0), dist.LogNormal(0.0, 1.0), dist.Delta(torch.tensor(0.3))])
def test_result_dtype(law):
    assert log_marginal(law, torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert log_marginal(law, torch.zeros(2)).dtype == torch.float32
    assert log_marginal(law, torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert log_marginal(law, torch.tensor([1, 2])).dtype == torch.float32
    assert log_marginal(law, torch.zeros(0)).shape == (0,)


def test_delta_is_the_logistic_function():
    value = log_marginal(dist.Delta(torch.tensor(0.1, dtype=torch.float64)), H)
    torch.testing.assert_close(value, torch.nn.functional.logsigmoid(0.1 * H), rtol=1e-15, atol=0)
