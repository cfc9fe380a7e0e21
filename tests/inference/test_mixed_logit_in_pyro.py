"""The mixed logit as a Pyro distribution."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.marginal import log_marginal
from pluralpref.inference.mixed_logit import MixedLogit

H = torch.tensor([-20.0, -1.0, 0.0, 3.0, 100.0], dtype=torch.float64)
LAW = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(20.0, dtype=torch.float64))


@pytest.fixture(autouse=True)
def clean_param_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def test_log_prob_of_hard_choices():
    d = MixedLogit(LAW, H)
    value = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    expected = log_marginal(LAW, torch.tensor([-20.0, 1.0, 0.0, -3.0, -100.0], dtype=torch.float64))
    assert torch.equal(d.log_prob(value), expected)
    one, zero = d.log_prob(torch.tensor(1.0)), d.log_prob(torch.tensor(0))
    assert one.shape == zero.shape == H.shape
    torch.testing.assert_close(torch.logaddexp(one, zero), torch.zeros_like(H), rtol=0, atol=1e-15)


def test_scalar_arguments():
    h = torch.randn(7)
    assert MixedLogit(dist.Gamma(2.0, 20.0), h).log_prob(torch.ones(())).shape == (7,)
    assert MixedLogit(dist.Gamma(2.0, 20.0), torch.tensor(1.0)).log_prob(torch.ones(3)).shape == (3,)


def test_soft_labels_are_expected_log_likelihoods():
    d = MixedLogit(LAW, H)
    v = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.9], dtype=torch.float64)
    expected = v * d.log_prob(torch.tensor(1.0)) + (1 - v) * d.log_prob(torch.tensor(0.0))
    torch.testing.assert_close(d.log_prob(v), expected, rtol=1e-15, atol=0)


def test_soft_and_hard_values_agree_at_infinite_margins():
    h = torch.tensor([math.inf, math.inf, 1.0])
    value = MixedLogit(LAW, h).log_prob(torch.tensor([1.0, 0.0, 0.5]))
    assert value[0] == 0
    assert value[1] == -math.inf
    assert torch.isfinite(value[2])


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_values_outside_the_unit_interval_are_named(bad):
    with pytest.raises(DataError, match=r"1 values are outside \[0, 1\] .*index \(1,\)"):
        MixedLogit(LAW, H[:3]).log_prob(torch.tensor([1.0, bad, 0.0]))


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="StrengthModel"):
        MixedLogit(0.1, H)
    with pytest.raises(DataError, match="NaN"):
        MixedLogit(LAW, torch.tensor([1.0, math.nan]))


def test_moments_and_logits():
    d = MixedLogit(LAW, H)
    p = log_marginal(LAW, H).exp()
    torch.testing.assert_close(d.probs, p, rtol=1e-15, atol=0)
    torch.testing.assert_close(d.mean, p, rtol=1e-15, atol=0)
    torch.testing.assert_close(d.variance, p * (1 - p), rtol=1e-13, atol=0)
    torch.testing.assert_close(d.logits, torch.logit(p), rtol=1e-12, atol=1e-14)
    # The log-odds keep their accuracy where 1 - p is 0.
    far = MixedLogit(dist.LogNormal(LAW.rate.log(), 0.1), torch.tensor(10.0, dtype=torch.float64))
    assert far.probs == 1
    assert -far.logits == pytest.approx(log_marginal(far.strength, -far.margins).item(), rel=1e-12)


def test_a_model_with_a_law_can_be_given():
    class Strength:
        def law(self):
            return LAW

    assert torch.equal(
        MixedLogit(Strength(), H).log_prob(torch.tensor(1.0)), MixedLogit(LAW, H).log_prob(torch.tensor(1.0))
    )


def test_method_is_used():
    torch.manual_seed(0)
    a = MixedLogit(LAW, H, "monte_carlo").log_prob(torch.tensor(1.0))
    b = MixedLogit(LAW, H, "quadrature").log_prob(torch.tensor(1.0))
    exact = MixedLogit(LAW, H).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(b, exact, rtol=1e-11, atol=0)
    assert (a - exact).abs().max() > 1e-6


def test_samples_have_the_stated_frequencies():
    torch.manual_seed(0)
    d = MixedLogit(LAW, H)
    draws = d.sample((40_000,))
    assert draws.shape == (40_000, 5)
    assert draws.dtype == torch.float64
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    standard_error = (d.variance / 40_000).sqrt()
    assert ((draws.mean(0) - d.probs).abs() < 4 * standard_error + 1e-12).all()


def test_shapes():
    law = dist.Gamma(torch.tensor([[2.0], [3.0]]), torch.tensor(5.0))
    d = MixedLogit(law, torch.zeros(4))
    assert d.batch_shape == (2, 4)
    assert d.event_shape == ()
    wide = d.expand([3, 2, 4])
    assert wide.batch_shape == (3, 2, 4)
    assert wide.log_prob(torch.tensor(1.0)).shape == (3, 2, 4)
    assert wide.sample((5,)).shape == (5, 3, 2, 4)
    assert d.enumerate_support().shape == (2, 2, 4)
    assert d.enumerate_support(expand=False).shape == (2, 1, 1)
    scalar = MixedLogit(dist.Gamma(2.0, 20.0), torch.tensor(1.0))
    assert scalar.expand_by([6]).sample().shape == (6,)
    assert scalar.expand([6]).log_prob(torch.ones(6)).shape == (6,)


def model(h, obs=None):
    mean = pyro.sample("mean", dist.LogNormal(-2.0, 1.0))
    with pyro.plate("pairs", len(h)):
        return pyro.sample("preferred", MixedLogit(dist.Gamma(torch.tensor(2.0), 2.0 / mean), h), obs=obs)


def test_plates_masks_and_scales():
    h = torch.randn(6) * 10
    obs = torch.ones(6)
    conditioned = poutine.condition(model, {"mean": torch.tensor(0.1)})
    keep = torch.tensor([True, False, True, True, False, True])
    each = log_marginal(dist.Gamma(2.0, 20.0), h)
    site = poutine.trace(conditioned).get_trace(h, obs).nodes["preferred"]
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), each)
    for handler, expected in (
        (poutine.scale(conditioned, 0.25), 0.25 * each.sum()),
        (poutine.mask(conditioned, keep), each[keep].sum()),
    ):
        trace = poutine.trace(handler).get_trace(h, obs)
        trace.compute_log_prob()
        torch.testing.assert_close(trace.nodes["preferred"]["log_prob_sum"], expected, rtol=1e-5, atol=1e-6)


def test_enumeration_sums_the_choice_out():
    h = (torch.randn(6) * 10).requires_grad_()

    @config_enumerate
    def enumerated():
        with pyro.plate("pairs", len(h)):
            pyro.sample("choice", MixedLogit(dist.Gamma(2.0, 20.0), h))

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated, lambda: None)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    (slope,) = torch.autograd.grad(loss, h)
    assert slope.abs().max() < 1e-6


def test_predictive():
    torch.manual_seed(0)
    h = torch.tensor([-50.0, 0.0, 50.0])
    draws = Predictive(model, num_samples=500)(h)["preferred"]
    assert draws.shape == (500, 3)
    low, middle, high = draws.mean(0).tolist()
    assert low < 0.35 < middle < 0.65 < high


def test_svi_moves_towards_the_maximum():
    torch.manual_seed(0)
    h = torch.randn(2000, dtype=torch.float64) * 20
    obs = MixedLogit(LAW, h).sample()

    def likelihood():
        log_mean = pyro.param("log_mean", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("pairs", len(h)):
            law = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 2 * torch.exp(-log_mean))
            pyro.sample("preferred", MixedLogit(law, h), obs=obs)

    svi = SVI(likelihood, lambda: None, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(80):
        svi.step()
    estimate = pyro.param("log_mean").item()
    information = torch.autograd.functional.hessian(
        lambda x: -MixedLogit(dist.Gamma(2.0 * torch.ones_like(x), 2 * torch.exp(-x)), h).log_prob(obs).sum(),
        torch.tensor(estimate, dtype=torch.float64),
    )
    assert abs(estimate - math.log(0.1)) < 4 / information.sqrt().item()


def test_nuts_samples_the_collapsed_model():
    pyro.set_rng_seed(0)
    h = torch.randn(300) * 20
    obs = MixedLogit(dist.Gamma(2.0, 20.0), h).sample()
    mcmc = MCMC(NUTS(model), num_samples=150, warmup_steps=100, disable_progbar=True)
    mcmc.run(h, obs)
    draws = mcmc.get_samples()["mean"].log()
    # The posterior on a grid.
    x = torch.linspace(-4.5, 0.0, 400)
    laws = dist.Gamma(torch.full((400, 1), 2.0), (2 * torch.exp(-x)).unsqueeze(-1))
    log_density = MixedLogit(laws, h).log_prob(obs).sum(-1) + dist.Normal(-2.0, 1.0).log_prob(x)
    weight = torch.softmax(log_density, 0)
    mean = (weight * x).sum()
    std = (weight * (x - mean) ** 2).sum().sqrt()
    assert abs(draws.mean() - mean) < 0.5 * std
    assert draws.std().item() == pytest.approx(std.item(), rel=0.35)
