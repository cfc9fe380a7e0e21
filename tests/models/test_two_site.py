"""A user's Pyro function as a preference model."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError
from pluralpref.models import TwoSiteModel

MARGINS = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def two_sites(margins, preferred=None):
    loc = pyro.param("loc", torch.tensor(-2.0))
    scale = pyro.param("my.scale", lambda: torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("pairs", len(margins)):
        beta = pyro.sample("beta", dist.LogNormal(loc, scale))
        pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)


@pytest.fixture(autouse=True)
def _store_stays_empty():
    pyro.clear_param_store()
    yield
    assert len(pyro.get_param_store()) == 0


def test_params_live_in_the_module():
    before = torch.random.get_rng_state()
    one, two = TwoSiteModel(two_sites), TwoSiteModel(two_sites)
    assert torch.equal(before, torch.random.get_rng_state())
    parameters = dict(one.named_parameters())
    assert {name: p.item() for name, p in parameters.items()} == {
        "param_loc": -2.0,
        "param_my__scale": pytest.approx(math.log(0.5)),
    }
    with torch.no_grad():
        one.param_loc.add_(1.0)
    assert one.law().base_dist.loc.unique().item() == -1.0
    assert two.law().base_dist.loc.unique().item() == -2.0
    twin = copy.deepcopy(one)
    with torch.no_grad():
        twin.param_loc.add_(1.0)
    assert twin.law().base_dist.loc.unique().item() == 0.0
    assert one.law().base_dist.loc.unique().item() == -1.0


def test_the_model_is_looked_at_where_its_parameters_are():
    """Also after the trainer moved them to another device."""
    seen = []

    def model(margins, preferred=None):
        seen.append((margins.device.type, preferred.device.type))
        pyro.param("loc", torch.tensor(-2.0))
        if margins.device.type == "cpu":
            two_sites(margins, preferred)

    strength = TwoSiteModel(model).to("meta")
    strength._trace_once()
    assert seen == [("cpu", "cpu"), ("meta", "meta")]


def test_moments_and_quantiles():
    model = TwoSiteModel(two_sites)
    assert model.mean.item() == pytest.approx(math.exp(-2 + 0.125))
    assert model.cv.item() == pytest.approx(math.sqrt(math.exp(0.25) - 1))
    assert model.std.item() == pytest.approx(model.mean.item() * model.cv.item())
    assert model.quantile(0.5).item() == pytest.approx(math.exp(-2))


def test_gradients_and_state_reach_the_parameters():
    model = TwoSiteModel(two_sites)
    model.law().mean.sum().backward()
    assert model.param_loc.grad.item() == pytest.approx(math.exp(-2 + 0.125))
    other = TwoSiteModel(two_sites)
    with torch.no_grad():
        model.param_my__scale.fill_(0.0)
    other.load_state_dict(model.state_dict())
    assert other.law().base_dist.scale.unique().item() == pytest.approx(1.0)


def test_weights_scale_each_pair():
    preferred, weight = torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    trace = poutine.trace(TwoSiteModel(two_sites)).get_trace(MARGINS, preferred, weight)
    trace.compute_log_prob()
    sign = 2 * preferred - 1
    expected = weight * logsigmoid(sign * trace.nodes["beta"]["value"] * MARGINS)
    torch.testing.assert_close(trace.nodes["preferred"]["log_prob"], expected)


def test_a_weight_of_zero_switches_a_pair_off():
    preferred, weight = torch.ones(3).double(), torch.tensor([0.0, 2.0, 0.5]).double()
    trace = poutine.trace(TwoSiteModel(two_sites)).get_trace(MARGINS, preferred, weight)
    trace.compute_log_prob()
    assert trace.nodes["preferred"]["log_prob"][0].item() == 0


def test_missing_sites_are_named():
    def only_beta(margins, preferred=None):
        with pyro.plate("pairs", len(margins)):
            pyro.sample("beta", dist.LogNormal(0.0, 1.0))

    def neither(margins, preferred=None):
        return margins

    with pytest.raises(ConfigError, match="only_beta has no site 'preferred': a preference model samples 'beta'"):
        TwoSiteModel(only_beta)
    with pytest.raises(ConfigError, match="neither has no site 'beta' and no site 'preferred'"):
        TwoSiteModel(neither)


def test_a_model_that_fails_is_named_with_its_error():
    def wrong(margins):
        return margins

    def no_start(margins, preferred=None):
        pyro.param("loc")

    with pytest.raises(ConfigError, match=r"wrong failed when called as model\(margins, preferred\).*TypeError"):
        TwoSiteModel(wrong)
    with pytest.raises(ConfigError, match=r"no_start failed"):
        TwoSiteModel(no_start)
