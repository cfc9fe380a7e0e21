"""Mode, curvature and importance resampling against posteriors integrated on a grid, and where it refuses."""

import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam, PyroSample
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError, IdentificationWarning, InferenceError, NumericsWarning
from pluralpref.inference import fit_posterior
from pluralpref.inference.arviz_data import mcse_mean
from pluralpref.inference.choices import as_choices
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import (
    FixedStrength,
    GammaStrength,
    GroupStrength,
    LogNormalStrength,
    OpposedStrength,
    StrengthModel,
)


class UserWeibull(StrengthModel):
    def __init__(self):
        super().__init__()
        self.concentration = PyroParam(torch.tensor(1.5), constraints.positive)
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, context=None):
        return dist.Weibull(self.scale, self.concentration)


def number(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def simulate(law, people, choices, seed=0):
    """(margins, annotators): utilities with standard deviation 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        code = torch.arange(people).repeat_interleave(choices)
        beta = law.sample((people,)).double()[code]
        utility = 2 * torch.randn(len(code), dtype=torch.float64)
        return torch.where(torch.rand(len(code)) < torch.sigmoid(beta * utility), utility, -utility), code


def fit(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        warnings.simplefilter("ignore", IdentificationWarning)
        return fit_posterior(*args, progress_bar=False, **kwargs)


def midpoints(low, high, count):
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def moments(log_mean, cv, log_likelihood, start_mean):
    """(mean, sd) of log E[beta] and cv on a grid, under the default priors."""
    prior = -((log_mean - np.log(start_mean)) ** 2) / (2 * 2.0**2) - cv**2 / (2 * 1.5**2)
    weight = torch.softmax(log_likelihood + prior, 0)
    found = {}
    for name, values in (("log_mean", log_mean), ("cv", cv)):
        mean = float((weight * values).sum())
        found[name] = (mean, float((weight * (values - mean) ** 2).sum()) ** 0.5)
    return found


def brute_force(margins, code, log_means, cvs, start_mean):
    """Log-normal strengths integrated on a fixed grid of log beta, by no code of the library."""
    u = torch.linspace(-25, 9, 1701, dtype=torch.float64)
    per_person = torch.zeros(int(code.max()) + 1, len(u), dtype=torch.float64)
    per_person.index_add_(0, code, logsigmoid(u.exp() * margins[:, None]))
    log_mean, cv = (x.flatten() for x in torch.meshgrid(log_means, cvs, indexing="ij"))
    variance = torch.log1p(cv**2)[:, None]
    law = torch.exp(-((u - log_mean[:, None] + variance / 2) ** 2) / (2 * variance))
    law = law / law.sum(1, keepdim=True)
    return moments(log_mean, cv, (law @ per_person.exp().T).log().sum(1), start_mean)


def on_grid(problem, start_mean):
    """The same with the library's likelihood of many draws, for posteriors that are hardly narrower than the prior."""
    log_mean, cv = (
        x.flatten() for x in torch.meshgrid(midpoints(-8, 10, 180), midpoints(0, 7, 90), indexing="ij")
    )  # fmt: skip
    value = problem.total_log_likelihood({"beta_mean": log_mean.exp(), "beta_cv": cv})
    return moments(log_mean, cv, value, start_mean)


def assert_matches(posterior, expected):
    """Four standard errors of 400 draws, the fewest that count as enough.

    Of a law with kurtosis 9 or less, a standard deviation has a relative standard error below sqrt(2 / n).
    """
    assert float(posterior.attrs["importance_ess"]) > 400
    for name, draws in (("log_mean", np.log(posterior.draws("beta_mean"))), ("cv", posterior.draws("beta_cv"))):
        mean, sd = expected[name]
        assert abs(draws.mean() - mean) < 4 * sd / 20, (name, draws.mean(), mean, sd)
        assert abs(draws.std() / sd - 1) < 4 * 2**0.5 / 20, (name, draws.std(), sd)


def test_single_choices_match_brute_force():
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 1000, 1, seed=3)
    expected = brute_force(margins, code, midpoints(-1.2, 3.2, 70), midpoints(0, 6.5, 90), 0.3)
    fits = [
        fit(LogNormalStrength(mean=0.3, cv=0.1), margins, method="laplace", seed=seed, num_samples=500) for seed in range(6)
    ]  # fmt: skip
    for posterior in fits:
        assert_matches(posterior, expected)
    # Together they are unbiased: 6.9 is the 99.9% point of |t| with 5 degrees of freedom.
    for name, value in (("log_mean", lambda p: np.log(p.draws("beta_mean"))), ("cv", lambda p: p.draws("beta_cv"))):
        means = np.array([value(posterior).mean() for posterior in fits])
        assert abs(means.mean() - expected[name][0]) < 6.9 * means.std(ddof=1) / 6**0.5, name


def test_panels_match_brute_force():
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 120, 8, seed=4)
    expected = brute_force(margins, code, midpoints(-1.0, 1.6, 70), midpoints(0, 4, 90), 0.3)
    posterior = fit(LogNormalStrength(mean=0.3, cv=0.1), margins, annotator=code, method="laplace", seed=1)
    assert_matches(posterior, expected)
    assert posterior.attrs["method"] == "laplace"
    assert posterior.attrs["method_reason"] == "asked for"


def test_a_mode_at_no_spread():
    """People who don't differ: the density is highest at cv = 0, the edge, or has almost no slope there."""
    margins, code = simulate(dist.Delta(number(1.0)), 150, 10, seed=2)
    expected = brute_force(margins, code, midpoints(-0.5, 0.6, 80), midpoints(0.005, 1.0, 199), 0.3)
    posterior = fit(LogNormalStrength(mean=0.3, cv=0.8), margins, annotator=code, method="laplace", seed=1)
    assert expected["cv"][0] < 0.4
    assert_matches(posterior, expected)
    assert (posterior.draws("beta_cv") >= 0).all()


@pytest.mark.slow
def test_agrees_with_nuts():
    margins, code = simulate(GammaStrength(mean=0.8, cv=0.8).law(), 60, 8, seed=5)
    by = {
        "laplace": fit(GammaStrength(mean=0.3), margins, annotator=code, method="laplace", seed=1),
        "nuts": fit(
            GammaStrength(mean=0.3), margins, annotator=code, method="nuts", num_samples=500, num_warmup=200,
            num_chains=2, seed=1,
        ),
    }  # fmt: skip
    for name in ("beta_mean", "beta_cv"):
        one, other = (np.log(posterior.draws(name)) for posterior in by.values())
        errors = one.std() / float(by["laplace"].attrs["importance_ess"]) ** 0.5, mcse_mean(other)
        assert abs(one.mean() - other.mean()) < 4 * np.hypot(*errors), name
        assert one.std() == pytest.approx(other.std(), rel=0.2)


# -- the likelihood's pieces -------------------------------------------------------------------------------------


def problem_of(kind):
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 50, 8, seed=6)
    weight = 2 * torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group = [f"g{i % 3}" for i in code.tolist()]
    grouped = GroupStrength(["g0", "g1", "g2"], LogNormalStrength(mean=0.5))
    strength, columns = {
        "few singles": (LogNormalStrength(mean=0.5), {}),
        "many singles": (GammaStrength(mean=0.5), {}),
        "panel": (LogNormalStrength(mean=0.5), {"annotator": code}),
        "weighted panel": (GammaStrength(mean=0.5), {"annotator": code, "weight": weight}),
        "user": (UserWeibull(), {"annotator": code}),
        "groups of singles": (grouped, {"groups": {"group": group}}),
        "groups of people": (grouped, {"annotator": code, "groups": {"group": group}}),
    }[kind]
    if kind == "few singles":
        margins = margins[:60]
    if kind == "many singles":
        margins = margins.repeat(10)
    return PosteriorProblem(strength, as_choices(margins, **columns))


KINDS = (
    "few singles", "many singles", "panel", "weighted panel", "user", "groups of singles", "groups of people"
)  # fmt: skip


def some_draws(problem, count=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return {name: prior.sample((count,)).double().clamp(-2, 2) for name, prior in problem.priors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_the_likelihood_gives_the_same(kind, monkeypatch):
    """Of all choices: by tables, by twice differentiable pieces, by direct integration, for many draws at once."""
    problem = problem_of(kind)
    draws = some_draws(problem)
    total = problem.total_log_likelihood(draws)
    each = problem.log_likelihood(draws)
    assert each.shape == (4, problem.num_units)
    # float32 in the large array: half of 2^-23 for each unit.
    torch.testing.assert_close(each.double().sum(1), total, rtol=1e-6, atol=1e-4)
    whole = problem.smooth_pieces()
    monkeypatch.setattr("pluralpref.inference.posterior_problem._PIECE_PAIRS", 50)
    pieces = problem.smooth_pieces()
    assert len(pieces) > len(whole) or problem.reduced is not None or kind == "few singles"
    everybody = torch.arange(problem.num_units)
    for row in range(4):
        values = {name: value[row] for name, value in draws.items()}
        expected = float(problem.terms_of(values, everybody).sum())
        ways = [
            problem.log_likelihood_at(values),
            sum(piece(values) for piece in whole),
            sum(piece(values) for piece in pieces),
            total[row],
        ]
        assert [float(way) for way in ways] == pytest.approx([expected] * 4, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_the_slopes_difference(kind, derivatives_of_jacobian):
    problem = problem_of(kind)
    values = {name: value[0] for name, value in some_draws(problem).items()}
    shapes = [value.shape for value in values.values()]
    flat = torch.cat([value.reshape(-1) for value in values.values()])

    def total(x):
        parts = torch.split(x, [max(1, shape.numel()) for shape in shapes])
        named = {n: part.reshape(shape) for n, part, shape in zip(values, parts, shapes, strict=True)}
        return sum(piece(named) for piece in problem.smooth_pieces())

    hessian = torch.autograd.functional.hessian(total, flat)
    expected = derivatives_of_jacobian(total, flat, 1e-3)
    torch.testing.assert_close(hessian, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# -- refusals ----------------------------------------------------------------------------------------------------


def test_refuses_by_pareto_k_and_auto_falls_back(monkeypatch):
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 20, 6, seed=1)
    monkeypatch.setattr("pluralpref.inference.posterior_laplace.MAX_PARETO_K", -10.0)
    short = {"num_samples": 10, "num_chains": 1}
    with pytest.raises(InferenceError, match=r"Pareto k-hat .* is above -10.* Use method='nuts'"):
        fit(LogNormalStrength(), margins, annotator=code, method="laplace", num_proposals=200, **short)
    # Long chains aren't needed: only who made them is asked.
    nuts = "pluralpref.inference.posterior._ENGINES"
    from pluralpref.inference.posterior import _ENGINES
    from pluralpref.inference.posterior_nuts import run_nuts

    def hurried(problem, settings):
        from dataclasses import replace

        return run_nuts(problem, replace(settings, num_warmup=10))

    monkeypatch.setattr(nuts, {**_ENGINES, "nuts": hurried})
    posterior = fit(LogNormalStrength(), margins, annotator=code, **short)
    assert posterior.attrs["method"] == "nuts"
    assert posterior.attrs["method_reason"].startswith("laplace refused: importance resampling can't be relied on")
    # Who asks for an option of laplace has chosen it.
    with pytest.raises(InferenceError, match="Pareto k-hat"):
        fit(LogNormalStrength(), margins, annotator=code, num_proposals=200, **short)


class Idle(StrengthModel):
    """A parameter that the law doesn't depend on, with next to no prior: the posterior is flat along it."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)
        self.idle = PyroSample(dist.Normal(number(0.0), number(1e9)))

    def forward(self, context=None):
        return dist.Exponential(1 / self.scale + 0 * self.idle)


def test_refuses_a_flat_direction():
    margins, _ = simulate(dist.Exponential(number(1.0)), 100, 1)
    with pytest.raises(InferenceError, match=r"isn't positive definite .*mostly idle.*method='nuts'"):
        fit(Idle(), margins, method="laplace", num_samples=10)


def test_refuses_a_saddle(monkeypatch):
    margins, _ = simulate(dist.Exponential(number(1.0)), 100, 1)
    name = "pluralpref.inference.posterior_laplace._Target.curvature"
    monkeypatch.setattr(name, lambda target, z: (torch.zeros_like(z), torch.diag(number(1.0, -1.0))))
    with pytest.raises(InferenceError, match=r"isn't positive definite .*smallest eigenvalue -1.*method='nuts'"):
        fit(LogNormalStrength(), margins, method="laplace", num_samples=10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "laplace", "num_warmup": 5}, "num_warmup has no effect with method='laplace'.*method='nuts'"),
        ({"method": "laplace", "guide": "AutoNormal"}, "guide has no effect with method='laplace'.*method='svi'"),
        ({"method": "nuts", "num_proposals": 500}, "num_proposals has no effect with method='nuts'.*method='laplace'"),
        ({"method": "nuts", "batch_size": 5}, "batch_size has no effect with method='nuts'.*method='svi'"),
        ({"method": "svi", "max_tree_depth": 5}, "max_tree_depth has no effect with method='svi'.*method='nuts'"),
        ({"num_warmup": 5, "num_steps": 50}, "options of several methods.*method='nuts' or method='svi'"),
        ({"num_proposals": 99}, "num_proposals=99: must be an integer of at least 100"),
        ({"num_proposals": 500.0}, "num_proposals=500.0: must be an integer"),
        ({"num_steps": True}, "num_steps=True: must be an integer"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ],
)
def test_refuses_options_of_other_methods(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        fit_posterior(GammaStrength(), [1.0, 2.0], **kwargs)


def test_an_option_chooses_the_method():
    margins, _ = simulate(GammaStrength(mean=0.8, cv=0.8).law(), 30, 1)
    posterior = fit(GammaStrength(), margins, num_proposals=300, num_samples=20)
    assert posterior.attrs["method"] == "laplace"
    assert posterior.attrs["method_reason"] == "num_proposals is an option of laplace"
    assert posterior.attrs["num_proposals"] == 300
    posterior = fit(GammaStrength(), margins, num_warmup=5, num_samples=5, num_chains=1)
    assert posterior.attrs["method"] == "nuts"
    assert posterior.attrs["method_reason"] == "num_warmup is an option of nuts"


# -- what the draws depend on ------------------------------------------------------------------------------------


def test_same_seed_same_draws_and_global_state_untouched():
    margins, code = simulate(GammaStrength(mean=0.8, cv=0.8).law(), 40, 5)
    pyro.get_param_store().setdefault("someone_elses", torch.tensor(1.0))
    try:
        torch.manual_seed(11), np.random.seed(12), random.seed(13)
        threads = torch.get_num_threads()
        expected = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        strength = GammaStrength(mean=0.8)
        before = {name: value.clone() for name, value in strength.state_dict().items()}
        first = fit(strength, margins, annotator=code, method="laplace", seed=7, num_samples=100)
        first.draws("beta_annotator")
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert np.array_equal(np.random.get_state()[1], expected[1])
        assert random.getstate() == expected[2]
        assert list(pyro.get_param_store().keys()) == ["someone_elses"]
        assert torch.get_num_threads() == threads
        assert all(torch.equal(value, before[name]) for name, value in strength.state_dict().items())
    finally:
        pyro.get_param_store().clear()
    torch.manual_seed(99)
    second = fit(GammaStrength(mean=0.8), margins, annotator=code, method="laplace", seed=7, num_samples=100)
    for name in ("beta_mean", "beta_cv", "beta", "beta_annotator"):
        np.testing.assert_allclose(second.draws(name), first.draws(name), rtol=1e-9, err_msg=name)
    other = fit(GammaStrength(mean=0.8), margins, annotator=code, method="laplace", seed=8, num_samples=100)
    assert not np.allclose(other.draws("beta_cv"), first.draws("beta_cv"))


@pytest.mark.parametrize("panel", [False, True])
def test_order_of_rows_and_names_of_people_do_not_matter(panel):
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 60, 6, seed=8)
    order = torch.randperm(len(margins), generator=torch.Generator().manual_seed(5))
    renamed = [f"person {17 * i % 101}" for i in code[order].tolist()]
    fits = [
        fit(LogNormalStrength(mean=0.5), h, annotator=who if panel else None, method="laplace", seed=3)
        for h, who in ((margins, code), (margins[order], renamed))
    ]
    draws = {name: torch.as_tensor(fits[0].draws(name)).flatten() for name in ("beta_mean", "beta_cv")}
    values = [posterior._problem.total_log_likelihood(draws) for posterior in fits]
    assert (values[0] - values[1]).abs().max() < 1e-6
    lp = [posterior.to_arviz(["sample_stats"]).sample_stats["lp"].values.ravel() for posterior in fits]
    # Where the last bits move a proposal's weight over an edge, one draw is replaced by its neighbour.
    assert (np.abs(np.sort(lp[0]) - np.sort(lp[1])) < 1e-4).mean() > 0.99


# -- data at the edges -------------------------------------------------------------------------------------------


def edge(name):
    """(margins, annotators)."""
    margins, code = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 40, 5, seed=9)
    if name == "separated singles":
        return margins.abs(), None
    if name == "separated panel":
        return margins.abs(), code
    if name == "all against":
        return -margins.abs(), None
    if name == "constant":
        return torch.where(torch.arange(200) < 130, 1.0, -1.0).double(), None
    if name == "one choice each":
        return margins[::5], torch.arange(40)
    if name == "one annotator":
        return margins, torch.zeros(200, dtype=torch.int64)
    if name == "one pair":
        return margins[:1], None
    sizes = torch.tensor([1] * 20 + [2, 3, 5, 20, 50, 100])
    return margins.repeat(2)[: int(sizes.sum())], torch.arange(len(sizes)).repeat_interleave(sizes)


EDGES = (
    "separated singles", "separated panel", "all against", "constant", "one choice each", "one annotator", "one pair",
    "unbalanced",
)  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_data_at_the_edges(name):
    """Proper priors make a proper posterior of each: the draws are those of a grid."""
    margins, annotator = edge(name)
    posterior = fit(
        LogNormalStrength(mean=0.5), margins, annotator=annotator, method="laplace", seed=2, num_samples=500
    )
    assert_matches(posterior, on_grid(posterior._problem, 0.5))


def test_margins_of_nothing_give_the_prior_back():
    posterior = fit(LogNormalStrength(mean=0.5), torch.zeros(50, dtype=torch.float64), method="laplace", seed=2)
    log_mean, cv = np.log(posterior.draws("beta_mean")), posterior.draws("beta_cv")
    error = 400**-0.5
    assert abs(log_mean.mean() - np.log(0.5)) < 4 * 2.0 * error
    assert abs(cv.mean() - 1.5 * (2 / np.pi) ** 0.5) < 4 * 0.91 * error


def test_a_hundred_thousand_single_pairs():
    margins, _ = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 100_000, 1, seed=10)
    posterior = fit(LogNormalStrength(mean=0.3, cv=0.1), margins, method="laplace", num_samples=250)
    low, high = posterior.interval("beta_mean", 0.999)
    assert low < 0.8 < high
    assert posterior.draws("beta_mean").std() < 0.1


def test_more_proposals_are_drawn_where_few_of_them_count():
    """Three groups of forty people, whose spread may be 0: a funnel that no normal law fits."""
    margins, annotator = simulate(LogNormalStrength(mean=0.8, cv=0.8).law(), 120, 8, seed=4)
    strength = GroupStrength(["a", "b", "c"], LogNormalStrength(mean=0.5), column="region")
    groups = {"region": ["abc"[code % 3] for code in annotator.tolist()]}
    options = {"annotator": annotator, "groups": groups, "method": "laplace", "num_samples": 100}
    posterior = fit(strength, margins, **options)
    assert posterior.attrs["num_proposals"] in (8000, 16000, 32000)
    assert posterior.attrs["importance_ess"] > 400
    kept = fit(strength, margins, **options, num_proposals=4000)
    assert kept.attrs["num_proposals"] == 4000
    assert kept.attrs["importance_ess"] < 500
    error = kept.draws("beta_cv").std() / kept.attrs["importance_ess"] ** 0.5
    assert abs(posterior.draws("beta_cv").mean() - kept.draws("beta_cv").mean()) < 5 * error


def test_a_bent_ridge_is_followed_in_slices():
    """Label noise makes up for strength and strength for noise, along a bend; against sums over a grid."""
    generator = torch.Generator().manual_seed(0)
    size = torch.randn(600, generator=generator, dtype=torch.float64)
    chance, noise = torch.rand(2, 600, generator=generator, dtype=torch.float64)
    preferred = (chance < torch.sigmoid(size)) ^ (noise < 0.25)
    model = OpposedStrength(FixedStrength(0.3, learned=True), share=0.05)
    found = fit_posterior(model, torch.where(preferred, size, -size), method="laplace", seed=0, progress_bar=False)
    # Two rounds with one law each don't do.
    assert found.attrs["proposal_rounds"] > 3
    assert found.attrs["pareto_k"] < 0.5
    assert found.attrs["importance_ess"] > 1000
    log_beta = torch.linspace(-5, 4, 500, dtype=torch.float64)
    share, beta = torch.meshgrid(
        torch.linspace(0.0005, 0.9995, 400, dtype=torch.float64), log_beta.exp(), indexing="ij"
    )
    grid = {"share": share.flatten(), "strength.beta_mean": beta.flatten()}
    problem = found.problem
    with torch.no_grad():
        density = problem.log_prior(grid) + problem.total_log_likelihood(grid) + grid["strength.beta_mean"].log()
    weight = torch.softmax(density, 0)
    assert float(found.draws("share").mean()) == pytest.approx(float(weight @ grid["share"]), abs=0.012)
    mean = float(weight @ grid["strength.beta_mean"])
    assert float(found.draws("strength.beta_mean").mean()) == pytest.approx(mean, rel=0.1)
