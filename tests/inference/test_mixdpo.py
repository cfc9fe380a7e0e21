"""The objective, against formulas, Pyro's own machinery and Monte Carlo."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference import MixDPO, MonteCarlo, log_marginal, log_marginal_panel
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength, PreferenceModel, TwoSiteModel

MARGINS = torch.tensor([0.5, -1.0, 2.0, 3.0, -0.3, 8.0], dtype=torch.float64)
PREFERRED = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
ANNOTATOR = torch.tensor([0, 1, 0, 2, 1, 0])
FAMILIES = {
    "lognormal": lambda: LogNormalStrength(mean=0.5, cv=1.0),
    "gamma": lambda: GammaStrength(mean=0.5, cv=1.0),
    "learned": lambda: FixedStrength(0.5, learned=True),
}


def no_guide(*args, **kwargs):
    return None


@pytest.fixture(autouse=True)
def _borrowed_state():
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()


def exact(strength, *args, **kwargs):
    return MixDPO().differentiable_loss(PreferenceModel(strength), no_guide, *args, **kwargs)


def signed():
    return torch.where(PREFERRED == 1, MARGINS, -MARGINS)


# -- exact integrals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_fixed_strength_is_dpo(beta):
    margins = MARGINS.clone().requires_grad_()
    loss = exact(FixedStrength(beta), margins)
    loss.backward()
    expected = -logsigmoid(beta * MARGINS).sum()
    assert abs(loss.item() - expected.item()) < 1e-12
    torch.testing.assert_close(margins.grad, -beta * torch.sigmoid(-beta * MARGINS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_loss_is_the_sum_of_log_marginals(name):
    strength = FAMILIES[name]()
    loss = exact(strength, MARGINS, PREFERRED)
    expected = -log_marginal(strength.law(), signed()).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(strength.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert MixDPO().loss(PreferenceModel(strength), no_guide, MARGINS, PREFERRED) == pytest.approx(loss.item())


def test_the_expectation_stands_inside_the_logarithm():
    strength = LogNormalStrength(mean=0.5, cv=1.0)
    beta = strength.law().sample((200_000,))
    inside = -torch.sigmoid(beta[:, None] * MARGINS).mean(0).log().sum()
    outside = -logsigmoid(beta[:, None] * MARGINS).mean(0).sum()
    assert exact(strength, MARGINS).item() == pytest.approx(inside.item(), abs=0.01)
    assert outside.item() - inside.item() > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_soft_labels(name):
    strength, labels = FAMILIES[name](), torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9, 0.7], dtype=torch.float64)
    law = strength.law()
    expected = -(labels * log_marginal(law, MARGINS) + (1 - labels) * log_marginal(law, -MARGINS)).sum()
    torch.testing.assert_close(exact(strength, MARGINS, labels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_repeated_rows(name):
    counts = torch.tensor([1, 2, 0, 3, 1, 2])
    weighted = exact(FAMILIES[name](), MARGINS, PREFERRED, counts.double())
    repeated = exact(FAMILIES[name](), MARGINS.repeat_interleave(counts), PREFERRED.repeat_interleave(counts))
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0)
    # Likewise where people share a strength.
    weighted = exact(FAMILIES[name](), MARGINS, PREFERRED, counts.double(), ANNOTATOR)
    repeated = exact(
        FAMILIES[name](),
        MARGINS.repeat_interleave(counts),
        PREFERRED.repeat_interleave(counts),
        annotator=ANNOTATOR.repeat_interleave(counts),
    )
    torch.testing.assert_close(weighted, repeated, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_annotators_share_a_strength(name):
    strength = FAMILIES[name]()
    loss = exact(strength, MARGINS, PREFERRED, annotator=ANNOTATOR)
    expected = -log_marginal_panel(strength.law(), MARGINS, ANNOTATOR, 3, preferred=PREFERRED).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gap = abs(loss.item() - exact(strength, MARGINS, PREFERRED).item())
    assert gap < 1e-12 if name == "learned" else gap > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_svi_lowers_the_loss(name):
    strength = FAMILIES[name]()
    model = PreferenceModel(strength)
    before = {key: value.detach().clone() for key, value in strength.named_parameters()}
    svi = SVI(model, no_guide, Adam({"lr": 0.05}), loss=MixDPO())
    losses = [svi.step(MARGINS, PREFERRED) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.01
    assert all(not torch.equal(value, before[key]) for key, value in strength.named_parameters())
    assert len(pyro.get_param_store()) == 0


# -- Monte Carlo -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [FAMILIES["lognormal"], FAMILIES["gamma"]])
@pytest.mark.parametrize("annotator", [None, ANNOTATOR])
def test_sixteen_draws_are_within_monte_carlo_error(make, annotator):
    model = PreferenceModel(make())
    objective = MixDPO(num_samples=16)
    losses = torch.tensor([objective.loss(model, no_guide, MARGINS, PREFERRED, None, annotator) for _ in range(400)])
    assert losses.std() > 0.01
    truth = exact(make(), MARGINS, PREFERRED, None, annotator).item()
    # log of a mean of 16 is biased upwards as a loss, by about var(p) / (32 p^2) per integral: small, not zero.
    assert truth - 4 * losses.std().item() / 20 < losses.mean().item() < truth + 0.3
    many = MixDPO(num_samples=20_000).loss(model, no_guide, MARGINS, PREFERRED, None, annotator)
    assert many == pytest.approx(truth, abs=0.05)


def two_sites(margins, preferred=None):
    loc = pyro.param("loc", torch.tensor(-1.0, dtype=torch.float64))
    scale = pyro.param("scale", torch.tensor(0.8, dtype=torch.float64), constraint=constraints.positive)
    with pyro.plate("pairs", len(margins)):
        beta = pyro.sample("beta", dist.LogNormal(loc, scale))
        pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)


def test_a_pyro_function_is_integrated_like_the_family_it_spells_out():
    user, built_in = TwoSiteModel(two_sites), LogNormalStrength(loc=-1.0, scale=0.8)
    loss = MixDPO(num_samples=50_000).differentiable_loss(user, no_guide, MARGINS, PREFERRED)
    truth = exact(built_in, MARGINS, PREFERRED)
    assert loss.item() == pytest.approx(truth.item(), abs=0.03)
    loss.backward()
    truth.backward()
    assert user.param_loc.grad.item() == pytest.approx(built_in.loc_unconstrained.grad.item(), abs=0.03)
    assert user.param_scale.grad.item() == pytest.approx(built_in.scale_unconstrained.grad.item(), abs=0.03)
    # The same seed draws the same strengths for both: equal, not only close.
    torch.manual_seed(1)
    by_user = MixDPO(num_samples=16, max_plate_nesting=1).loss(user, no_guide, MARGINS, PREFERRED)
    values = [MixDPO(num_samples=16).loss(user, no_guide, MARGINS, PREFERRED) for _ in range(200)]
    others = [MixDPO(num_samples=16).loss(PreferenceModel(built_in), no_guide, MARGINS, PREFERRED) for _ in range(200)]
    values, others = torch.tensor(values), torch.tensor(others)
    error = (values.var() / 200 + others.var() / 200).sqrt()
    assert abs(values.mean() - others.mean()) < 4.5 * error
    assert 0.7 < values.std() / others.std() < 1.4
    assert abs(by_user - values.mean()) < 6 * values.std()
    assert len(pyro.get_param_store()) == 0


def test_bias_correction_reaches_a_pyro_function():
    user, margins = TwoSiteModel(two_sites), 5 * MARGINS
    truth = exact(LogNormalStrength(loc=-1.0, scale=0.8), margins, PREFERRED).item()
    torch.manual_seed(2)
    means, errors = [], []
    for corrected in (False, True):
        loss = MixDPO(MonteCarlo(4, bias_correction=corrected), max_plate_nesting=1)
        values = torch.tensor([loss.loss(user, no_guide, margins, PREFERRED) for _ in range(1500)])
        means.append(float(values.mean()) - truth)
        errors.append(float(values.std()) / 1500**0.5)
    assert means[0] > 10 * errors[0]  # four draws make every choice look less likely than it is
    assert abs(means[1]) < means[0] / 3 + 3 * errors[1]


def test_soft_labels_and_weights_of_a_pyro_function():
    labels = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9, 0.7], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 1.5], dtype=torch.float64)

    def unchecked(margins, preferred=None):
        with pyro.plate("pairs", len(margins)):
            beta = pyro.sample("beta", dist.LogNormal(torch.tensor(-1.0).double(), 0.8))
            pyro.sample("preferred", dist.Bernoulli(logits=beta * margins, validate_args=False), obs=preferred)

    loss = MixDPO(num_samples=50_000).loss(TwoSiteModel(unchecked), no_guide, MARGINS, labels, weight)
    truth = exact(LogNormalStrength(loc=-1.0, scale=0.8), MARGINS, labels, weight)
    assert loss == pytest.approx(truth.item(), abs=0.05)


def test_guessing_the_plates_leaves_the_generator_alone():
    user = TwoSiteModel(two_sites)
    torch.manual_seed(3)
    guessed = MixDPO(num_samples=16).loss(user, no_guide, MARGINS, PREFERRED)
    torch.manual_seed(3)
    given = MixDPO(num_samples=16, max_plate_nesting=1).loss(user, no_guide, MARGINS, PREFERRED)
    assert guessed == given


def test_nested_plates_are_a_panel():
    margins = torch.tensor([[0.5, -1.0, 2.0], [3.0, -0.3, 8.0]], dtype=torch.float64)  # annotators by pairs
    chosen = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)

    def panel(margins, preferred=None):
        with pyro.plate("annotators", margins.shape[0], dim=-2):
            beta = pyro.sample("beta", dist.Gamma(torch.tensor(1.5).double(), torch.tensor(3.0).double()))
            with pyro.plate("pairs", margins.shape[1], dim=-1):
                pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    loss = MixDPO(num_samples=50_000).loss(panel, no_guide, margins, chosen)
    law = dist.Gamma(torch.tensor(1.5).double(), torch.tensor(3.0).double())
    codes = torch.tensor([0, 0, 0, 1, 1, 1])
    truth = -log_marginal_panel(law, margins.flatten(), codes, 2, preferred=chosen.flatten()).sum()
    assert loss == pytest.approx(truth.item(), abs=0.02)
    apart = -log_marginal(law, torch.where(chosen == 1, margins, -margins)).sum()
    assert abs(apart - truth) > 0.06  # so the tolerance above does tell the two apart


# -- priors ----------------------------------------------------------------------------------------------------------


def test_priors_add_their_divergence():
    prior = dist.LogNormal(torch.tensor(-0.5).double(), torch.tensor(0.5).double())
    strength = FixedStrength(prior)
    model = PreferenceModel(strength)
    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(poutine.block(model, hide=["beta", "preferred"]), init_scale=0.3)
        objective = MixDPO(num_particles=800)
        guide(MARGINS, PREFERRED)  # makes its parameters
        loss = objective(model, guide)(MARGINS, PREFERRED)
        loss.backward()
    (name,) = [name for name, _ in guide.named_parameters() if "locs" in name]
    loc = dict(guide.named_parameters())[name].detach()
    q = torch.distributions.Normal(loc.double(), 0.3)
    z = q.sample((200_000,))
    likelihood = logsigmoid(z.exp()[:, None] * signed()).sum(1).mean()
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(prior.loc, prior.scale))
    assert loss.item() == pytest.approx((divergence - likelihood).item(), abs=0.08)
    assert divergence > 0.16  # more than the tolerance
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())
    assert len(pyro.get_param_store()) == 0


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["closed_form", "quadrature"])
def test_num_samples_contradicts_an_exact_method(method):
    with pytest.raises(ConfigError, match=f"num_samples=16 has no effect on method='{method}'"):
        MixDPO(method, num_samples=16)


@pytest.mark.parametrize("num_samples", [0, -3])
def test_at_least_one_draw(num_samples):
    with pytest.raises(ConfigError, match=rf"num_samples={num_samples}\): give at least 1 draw"):
        MixDPO(num_samples=num_samples)


def test_beta_without_rsample_is_refused():
    def poisson(margins, preferred=None):
        with pyro.plate("pairs", len(margins)):
            beta = pyro.sample("beta", dist.Poisson(torch.tensor(1.0)))
            pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    with pytest.raises(UnsupportedError, match="site 'beta' has distribution Poisson without rsample"):
        MixDPO(num_samples=4).differentiable_loss(poisson, no_guide, MARGINS, PREFERRED)


def test_exact_methods_need_a_preference_model():
    with pytest.raises(
        UnsupportedError, match=r"'quadrature' needs a PreferenceModel.*two_sites is integrated by Monte"
    ):
        MixDPO("quadrature").differentiable_loss(TwoSiteModel(two_sites), no_guide, MARGINS, PREFERRED)


def test_missing_sites_and_unrelated_plates_are_refused():
    def no_beta(margins, preferred=None):
        with pyro.plate("pairs", len(margins)):
            pyro.sample("preferred", dist.Bernoulli(logits=margins), obs=preferred)

    def elsewhere(margins, preferred=None):
        with pyro.plate("people", 2, dim=-1):
            beta = pyro.sample("beta", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("pairs", len(margins), dim=-1):
            pyro.sample("preferred", dist.Bernoulli(logits=beta[..., :1] * margins), obs=preferred)

    with pytest.raises(UnsupportedError, match="no sample site 'beta'"):
        MixDPO().differentiable_loss(no_beta, no_guide, MARGINS, PREFERRED)
    with pytest.raises(UnsupportedError, match="'beta' is in plate people but 'preferred' isn't"):
        MixDPO().differentiable_loss(elsewhere, no_guide, MARGINS, PREFERRED)


def test_a_guide_whose_draws_carry_no_gradient_is_refused():
    model = PreferenceModel(FixedStrength(dist.LogNormal(0.0, 1.0)))

    def guide(*args, **kwargs):
        pyro.sample("strength.beta_mean", dist.Poisson(torch.tensor(1.0)))

    with pytest.raises(UnsupportedError, match=r"guide site 'strength\.beta_mean' has distribution Poisson"):
        MixDPO().differentiable_loss(model, guide, MARGINS, PREFERRED)


def test_a_choice_that_does_not_depend_on_the_strength_costs_the_same_for_any_number_of_draws():
    def indifferent(margins, preferred=None):
        with pyro.plate("pairs", len(margins)):
            pyro.sample("beta", dist.LogNormal(torch.zeros(()).double(), 1.0))
            pyro.sample("preferred", dist.Bernoulli(logits=margins), obs=preferred)

    expected = -dist.Bernoulli(logits=MARGINS).log_prob(PREFERRED).sum()
    for num_samples in (1, 16):
        loss = MixDPO(num_samples=num_samples).differentiable_loss(indifferent, no_guide, MARGINS, PREFERRED)
        torch.testing.assert_close(loss, expected)
