"""The strength of one person or pair, given what was chosen."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints

from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference import fit_posterior, log_marginal_panel
from pluralpref.inference.choices import as_choices
from pluralpref.inference.conditional import ConditionalStrengths, _log_weighted_sums
from pluralpref.inference.pair_likelihood import pair_log_likelihood
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.strength_grid import make_grid
from pluralpref.models import (
    CovariateStrength,
    GammaStrength,
    GroupStrength,
    InverseGammaStrength,
    LatentClassStrength,
    LogLogisticStrength,
    LogNormalStrength,
    NormalStrength,
    OpposedStrength,
    StrengthModel,
    WeibullStrength,
)
from pluralpref.models.quantiles import quantile

pytestmark = pytest.mark.filterwarnings("ignore::pluralpref.errors.IdentificationWarning")


def number(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def people():
    """(margins, labels) of 30 people with 1 to 8 choices, one of whom contradicts the margins throughout."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(1, 9, (30,), generator=generator)
    code = torch.arange(30).repeat_interleave(counts)
    beta = torch.exp(0.8 * torch.randn(30, generator=generator, dtype=torch.float64) - 0.3)
    utility = 2 * torch.randn(len(code), generator=generator, dtype=torch.float64)
    chosen = torch.rand(len(code), generator=generator, dtype=torch.float64) < torch.sigmoid(beta[code] * utility)
    margins = torch.where(chosen, utility, -utility)
    margins[code == 7] = -margins[code == 7].abs()
    return margins, [f"p{c}" for c in code.tolist()]


FAMILIES = {
    "lognormal": (LogNormalStrength, {"beta_mean": number(0.7, 1.2, 1.0), "beta_cv": number(0.8, 1.4, 0.02)}),
    "gamma": (GammaStrength, {"beta_mean": number(0.7, 1.2, 1.0), "beta_cv": number(0.8, 2.0, 0.05)}),
    "weibull": (WeibullStrength, {"beta_mean": number(0.7, 1.2), "beta_cv": number(0.8, 0.3)}),
    "normal": (NormalStrength, {"beta_mean": number(0.7, 1.2), "beta_cv": number(0.8, 1.4)}),
    "opposed": (
        lambda: OpposedStrength(LogNormalStrength()),
        {"share": number(0.1, 0.3), "strength.beta_mean": number(1.0, 0.8), "strength.beta_cv": number(0.7, 1.0)},
    ),
    "latent_class": (
        LatentClassStrength,
        {
            "lowest": number(0.2, 0.4),
            "increase": number(2.0, 5.0)[:, None],
            "shares": torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64),
        },
    ),
}


def brute_force(model, draws, row, choices, seen):
    """(strengths, conditional masses of each person) under one or all draws: a fine grid, or the classes."""
    code = choices.annotator
    masses, nodes = [], None
    count = next(iter(draws.values())).shape[0]
    laws = [model.law(parameters={name: value[s] for name, value in draws.items()}) for s in range(count)]
    if isinstance(model, LatentClassStrength):
        atoms = [law.component_distributions for law in laws]
        nodes = torch.stack([a.v for components in atoms for a in components])
        weights = torch.zeros(count, len(nodes), dtype=torch.float64)
        for s, law in enumerate(laws):
            weights[s, 2 * s : 2 * s + 2] = law.log_weights.exp()
    else:
        u = torch.linspace(-70, 6, 60_001, dtype=torch.float64)
        positive = u.exp()
        nodes = torch.cat([-positive, positive])
        weights = torch.stack(
            [
                torch.cat([_density(law, -positive), _density(law, positive)]) * nodes.abs() * (u[1] - u[0])
                for law in laws
            ]
        )
    for person in range(choices.num_annotators):
        h = choices.margins[code == person]
        likelihood = torch.nn.functional.logsigmoid(torch.outer(h, nodes)).sum(0).exp()
        joint = weights * likelihood
        each = joint / joint.sum(1, keepdim=True) if seen else joint
        masses.append(each.sum(0) / each.sum())
    return nodes, torch.stack(masses), weights


def _density(law, beta):
    from pluralpref.distributions.mixture import log_density

    return torch.nan_to_num(log_density(law, beta).exp().double())


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_moments_intervals_and_probabilities_are_those_of_brute_force(name, seen, people):
    family, draws = FAMILIES[name]
    twin = family().with_priors()
    choices = as_choices(people[0], annotator=people[1])
    found = ConditionalStrengths(twin, draws, choices, seen=seen)
    nodes, masses, weights = (
        brute_force(twin, draws, None, choices, seen)
        if name != "latent_class"
        else brute_force(_Plain(twin), draws, None, choices, seen)
    )
    mean = masses @ nodes
    assert found.mean == pytest.approx(mean.numpy(), rel=2e-3, abs=1e-5)
    std = (masses * (nodes - mean[:, None]) ** 2).sum(1).sqrt()
    assert found.std == pytest.approx(std.numpy(), rel=5e-3)
    assert found.opposed == pytest.approx((masses @ (nodes < 0).double()).numpy(), abs=1e-3)
    if name == "latent_class":
        return
    order = nodes.argsort()
    cumulative = masses[:, order].cumsum(1)
    for q in (0.025, 0.5, 0.9):
        exact = nodes[order][torch.searchsorted(cumulative, torch.full((len(masses), 1), q).double())[:, 0]]
        assert found.quantile(q) == pytest.approx(exact.numpy(), rel=0.02, abs=0.005)
    del weights


class _Plain(LatentClassStrength):
    """Lets the reference see the classes of a model with priors."""

    def __init__(self, twin):
        super().__init__()
        self.__dict__["twin"] = twin

    def law(self, context=None, parameters=None):
        return self.__dict__["twin"].law(parameters=parameters)


def test_less_sensitive_than_the_median_is_half_on_average(people):
    """Before any choice it is one half for everybody; by the law of total probability it stays so on average."""
    draws = {"beta_mean": number(1.0), "beta_cv": number(0.9)}
    nothing = as_choices(torch.zeros(3), annotator=["a", "b", "c"])
    found = ConditionalStrengths(LogNormalStrength().with_priors(), draws, nothing, seen=True)
    assert found.below_median == pytest.approx([0.5] * 3, abs=1e-6)
    agreeing = as_choices(torch.tensor([3.0] * 6 + [-3.0] * 6), annotator=["yes"] * 6 + ["no"] * 6)
    yes, no = ConditionalStrengths(LogNormalStrength().with_priors(), draws, agreeing, seen=True).below_median
    assert yes < 0.35
    assert no > 0.9


def test_density_integrates_to_one_and_to_the_mean(people):
    draws = {"beta_mean": number(0.7, 1.2), "beta_cv": number(0.8, 1.4)}
    choices = as_choices(people[0], annotator=people[1])
    found = ConditionalStrengths(LogNormalStrength().with_priors(), draws, choices, seen=True)
    beta = np.exp(np.linspace(-12, 5, 4001))
    density = found.density(beta)
    assert np.trapezoid(density, beta, axis=1) == pytest.approx(np.ones(30), abs=2e-4)
    assert np.trapezoid(density * beta, beta, axis=1) == pytest.approx(found.mean, rel=2e-3)
    atoms = ConditionalStrengths(LatentClassStrength().with_priors(), FAMILIES["latent_class"][1], choices, seen=True)
    with pytest.raises(UnsupportedError, match="point masses"):
        atoms.density(beta)


@pytest.mark.parametrize("seen", [True, False])
def test_density_of_a_person_with_thousands_of_choices(seen):
    """Their likelihood is far below the smallest float64; by sums of logs. Points far from the mode have no density."""
    draws = {"beta_mean": number(0.7, 1.2, 0.02), "beta_cv": number(0.8, 1.4, 0.1)}
    margins = torch.tensor([0.6] * 2600 + [-0.6] * 2400 + [0.5, -0.2], dtype=torch.float64)
    choices = as_choices(margins, annotator=["many"] * 5000 + ["few"] * 2)
    model = LogNormalStrength().with_priors()
    found = ConditionalStrengths(model, draws, choices, seen=seen)
    u = torch.linspace(-25, 6, 60_001, dtype=torch.float64)
    log_prior = torch.cat([_log_density(model, draws, s, u.exp()) for s in range(3)])
    points = torch.tensor([1e-4, 0.05, 0.1, 0.13, 0.2, 0.5, 5.0, 300.0], dtype=torch.float64)
    at_points = torch.cat([_log_density(model, draws, s, points) for s in range(3)])
    for name in ("many", "few"):
        row = found.labels.index(name)
        h = choices.margins[choices.annotator == row]
        kinds, counts = h.unique(return_counts=True)

        def log_likelihood(beta, kinds=kinds, counts=counts):
            return counts.double() @ torch.nn.functional.logsigmoid(torch.outer(kinds, beta))

        log_z = torch.logsumexp(log_prior + log_likelihood(u.exp()) + u, 1) + (u[1] - u[0]).log()
        log_share = -log_z - np.log(3) if seen else -torch.logsumexp(log_z, 0).expand(3)
        exact = (torch.logsumexp(log_share[:, None] + at_points, 0) + log_likelihood(points)).exp()
        assert (name == "few") == bool((log_z > -700).all())
        assert found.density(points)[row] == pytest.approx(exact.numpy(), rel=2e-3, abs=1e-300)
    assert found.density([0.13])[found.labels.index("many")] > 5


def test_draws_under_which_a_persons_choices_are_out_of_the_question():
    """Each draw's conditional law counts the same for people whom the draws have seen, however improbable they are."""
    margins = torch.tensor([0.6] * 2600 + [-0.6] * 2400, dtype=torch.float64)
    choices = as_choices(margins, annotator=["many"] * 5000)
    model = LogNormalStrength().with_priors()
    each = {"beta_mean": number(0.7, 3.0), "beta_cv": number(0.8, 0.02)}
    seen, unseen = (ConditionalStrengths(model, each, choices, seen=known) for known in (True, False))
    u = torch.linspace(-8, 3, 40_001, dtype=torch.float64)
    beta = u.exp()
    log_likelihood = 2600 * torch.nn.functional.logsigmoid(0.6 * beta) + 2400 * torch.nn.functional.logsigmoid(
        -0.6 * beta
    )
    joint = torch.cat([_log_density(model, each, s, beta) for s in (0, 1)]) + log_likelihood + u
    mass = torch.softmax(joint, 1)
    means = mass @ beta
    assert seen.mean == pytest.approx([float(means.mean())], rel=1e-3)
    assert seen.std == pytest.approx([float((mass.mean(0) @ (beta - means.mean()) ** 2).sqrt())], rel=1e-3)
    medians = quantile(model.law(parameters=each), 0.5)
    assert seen.below_median == pytest.approx([float((mass * (beta < medians[:, None])).sum(1).mean())], abs=1e-3)
    density = mass.mean(0) / (beta * (u[1] - u[0]))
    places = torch.searchsorted(u, number(0.1, 0.13, float(means[1])).log())
    assert seen.density(beta[places])[0] == pytest.approx(density[places].numpy(), rel=1e-3)
    # Those whom the draws haven't seen say that the second draw is wrong.
    assert unseen.mean == pytest.approx([float(means[0])], rel=1e-3)


def _log_density(model, draws, row, beta):
    return model.law(parameters={name: value[row] for name, value in draws.items()}).log_prob(beta)[None]


def test_weighted_sums_of_numbers_far_apart():
    """The largest term may be the product of a share and a density that are both out of range."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn(6, 5, generator=generator, dtype=torch.float64) * number(1, 100, 300, 1000, 5000, 1)[:, None]
    population = torch.randn(5, 40, generator=generator, dtype=torch.float64) * 2000
    population[:, 3] = -torch.inf
    expected = torch.logsumexp(shares[:, :, None] + population, 1)
    torch.testing.assert_close(_log_weighted_sums(shares, population), expected, rtol=1e-12, atol=1e-9)


class HalfCauchyStrength(StrengthModel):
    """A user's family: no mean, no variance."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = PyroParam(torch.tensor(scale, dtype=torch.float64), constraints.positive)

    def forward(self, context=None):
        return dist.HalfCauchy(self.scale)


HEAVY = {
    "inverse_gamma": (
        lambda: InverseGammaStrength(concentration=3.0, rate=1.0),
        {"concentration": number(0.4, 1.5, 4.0), "rate": number(0.5, 1.0, 2.0)},
    ),
    "log_logistic": (
        lambda: LogLogisticStrength(scale=1.0, concentration=3.0),
        {"scale": number(0.5, 1.0, 2.0), "concentration": number(0.5, 1.5, 4.0)},
    ),
    "half_cauchy": (HalfCauchyStrength, {"scale": number(0.2, 1.0, 3.0)}),
}


@pytest.mark.parametrize("name", HEAVY)
def test_laws_without_a_mean(name, people):
    """Quantiles exist, and so do the probabilities of choices."""
    family, draws = HEAVY[name]
    twin = family().with_priors()
    law = twin.law(parameters={key: value[:, None] for key, value in draws.items()})
    before = torch.get_rng_state()
    grid = make_grid(law)
    assert torch.equal(before, torch.get_rng_state())
    assert grid.strength.shape[0] > 100
    middle = (grid.weight * (grid.strength <= quantile(law, 0.5))).sum(1)
    assert middle.numpy() == pytest.approx([0.5] * 3, abs=0.06)  # a node is as wide
    choices = as_choices(people[0], annotator=people[1])
    found = ConditionalStrengths(twin, draws, choices, seen=True)
    u = torch.linspace(-90, 150, 40_001, dtype=torch.float64)
    mass = torch.cat([_log_density(twin, draws, s, u.exp()) for s in range(3)]).add(u).exp()
    levels = (0.1, 0.5, 0.8)
    quantiles = np.stack([found.quantile(q) for q in levels])
    for person in range(choices.num_annotators):
        h = choices.margins[choices.annotator == person]
        joint = mass * torch.nn.functional.logsigmoid(torch.outer(h, u.exp())).sum(0).exp()
        cumulative = (joint / joint.sum(1, keepdim=True)).mean(0).cumsum(0)
        exact = u[torch.searchsorted(cumulative, number(*levels))]
        assert np.log(quantiles[:, person]) == pytest.approx(exact.numpy(), abs=0.03)


def test_prediction_of_a_known_person_is_a_ratio_of_panel_probabilities(people):
    draws = {"beta_mean": number(0.9), "beta_cv": number(1.1)}
    choices = as_choices(people[0], annotator=people[1])
    found = ConditionalStrengths(LogNormalStrength().with_priors(), draws, choices, seen=True)
    law = LogNormalStrength(mean=0.9, cv=1.1).law()
    new = number(1.5, -0.7, 2.0)
    predicted = found.probability(new, ["p3", "p7", "p7"])
    for row, label in enumerate(["p3", "p7", "p7"]):
        own = choices.margins[choices.annotator == choices.annotator_names.index(label)]
        with_it = torch.cat([own, new[row : row + 1]])
        zeros = torch.zeros(len(with_it), dtype=torch.int64)
        ratio = log_marginal_panel(law, with_it, zeros, 1) - log_marginal_panel(law, own, zeros[:-1], 1)
        assert predicted[row] == pytest.approx(float(ratio.detach().exp()), rel=1e-5)
    with pytest.raises(DataError, match="row 1: 'nobody'"):
        found.probability([1.0, 1.0], ["p3", "nobody"])


@pytest.mark.parametrize("name", ["lognormal", "latent_class", "opposed"])
def test_pair_likelihood_is_a_ratio_of_panel_probabilities(name, people):
    family, draws = FAMILIES[name]
    problem = PosteriorProblem(family(), as_choices(people[0], annotator=people[1]))
    found = pair_log_likelihood(problem, draws)
    data = problem.choices
    law = problem.law({n: value[0] for n, value in draws.items()})
    for pair in (0, 5, 40):
        kept = torch.arange(data.num_pairs) != pair
        whole = log_marginal_panel(law, data.margins, data.annotator, data.num_annotators)
        without = log_marginal_panel(law, data.margins[kept], data.annotator[kept], data.num_annotators)
        exact = (whole - without)[data.annotator[pair]]
        assert float(found[0, pair]) == pytest.approx(float(exact.detach()), abs=2e-5)


def test_pair_likelihood_of_people_with_one_choice_is_that_of_single_choices():
    margins = torch.linspace(-2, 3, 40, dtype=torch.float64)
    draws = FAMILIES["gamma"][1]
    panel = PosteriorProblem(GammaStrength(), as_choices(margins, annotator=range(40)))
    single = PosteriorProblem(GammaStrength(), as_choices(margins))
    assert torch.allclose(pair_log_likelihood(panel, draws), pair_log_likelihood(single, draws), atol=2e-5)


def test_grid_weights_reproduce_moments_from_wide_to_narrow():
    mean, cv = number(1.0, 1.0, 5.0, 0.1), number(3.0, 0.5, 1e-2, 1e-5)
    law = LogNormalStrength().with_priors().law(parameters={"beta_mean": mean[:, None], "beta_cv": cv[:, None]})
    grid = make_grid(law)
    assert grid.weight.sum(1).numpy() == pytest.approx(np.ones(4))
    assert (grid.weight @ grid.strength).numpy() == pytest.approx(mean.numpy(), rel=1e-6)
    spread = ((grid.weight @ grid.strength**2) - mean**2).clamp_min(0).sqrt() / mean
    assert spread[:3].numpy() == pytest.approx(cv[:3].numpy(), rel=1e-3)
    assert spread[3] < 1e-4
    assert bool((grid.strength.diff() >= 0).all())


def test_through_the_posterior(people):
    posterior = fit_posterior(
        LogNormalStrength(mean=0.5), people[0], annotator=people[1], num_samples=300, method="laplace"
    )
    known = posterior.beta_given_choices()
    table = known.table(0.9)
    assert list(table.index) == [f"p{k}" for k in range(30)]
    assert table.loc["p7", "agreement"] == 0.0
    assert (table["eti_90%_low"] < table["beta_mean"]).all()
    drawn = posterior.draws("beta_annotator").reshape(-1, 30)
    error = drawn.std(0) / np.sqrt(len(drawn) / 4)
    assert (np.abs(drawn.mean(0) - known.mean) < 5 * error).all()
    same = posterior.beta_given_choices(people[0], annotator=[f"new {name}" for name in people[1]])
    # What one person's choices say of the population matters little among thirty.
    assert np.abs(same.mean / known.mean - 1).max() < 0.25
    with pytest.raises(DataError, match="30 that the posterior was fitted on"):
        posterior.beta_given_choices(people[0], annotator=people[1])
    with pytest.raises(ConfigError, match="without margins"):
        posterior.beta_given_choices(annotator=people[1])
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        known.interval(1.0)


def test_groups_shift_people_and_varying_columns_are_refused(people):
    margins, labels = people
    group = ["high" if int(label[1:]) % 2 else "low" for label in labels]
    model = GroupStrength(["low", "high"], column="level").with_priors()
    draws = {
        "effect": torch.tensor([[-1.0, 1.0]], dtype=torch.float64),
        "scale": number(0.8),
        "strength.beta_mean": number(0.9),
        "strength.beta_cv": number(0.7),
    }
    choices = as_choices(margins, annotator=labels, groups={"level": group})
    found = ConditionalStrengths(model, draws, choices, seen=True)
    for cell, factor in (("low", np.exp(-0.8)), ("high", np.exp(0.8))):
        rows = torch.tensor([g == cell for g in group])
        alone = as_choices(
            margins[rows], annotator=[label for label, g in zip(labels, group, strict=True) if g == cell]
        )
        own = ConditionalStrengths(
            LogNormalStrength().with_priors(),
            {"beta_mean": number(0.9 * factor), "beta_cv": number(0.7)},
            alone,
            seen=True,
        )
        where = [found.labels.index(name) for name in own.labels]
        assert found.mean[where] == pytest.approx(own.mean, rel=1e-4)
    changing = as_choices(margins, annotator=labels, covariates={"x": torch.arange(len(margins)).double()})
    with pytest.raises(UnsupportedError, match="change between the choices"):
        ConditionalStrengths(CovariateStrength(["x"]).with_priors(), {}, changing, seen=True)
