"""Designs of Monte Carlo draws: what they promise, at which rate they converge, and what they refuse."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from scipy.stats import t as student

from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.marginal import MonteCarlo, log_marginal, log_marginal_panel, log_marginal_with_error
from pluralpref.inference.marginal.draws import draw_strengths
from pluralpref.inference.mixdpo import MixDPO
from pluralpref.models import LogNormalStrength

SPREAD = ("antithetic", "stratified")


def lognormal(loc=0.0, scale=1.0):
    return dist.LogNormal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def unit(cells):
    """Beta uniform on (0, 1): its draws are the points themselves."""
    return dist.Uniform(torch.zeros(cells, dtype=torch.float64), torch.ones(cells, dtype=torch.float64))


@pytest.mark.parametrize("design", SPREAD)
def test_every_point_by_itself_is_uniform(design):
    torch.manual_seed(0)
    points = draw_strengths(unit(4000), MonteCarlo(8, design))
    assert points.shape == (8, 4000)
    for k in range(8 if design != "stratified" else 0):
        assert kstest(points[k], "uniform").pvalue > 1e-4, k
    assert kstest(points.flatten(), "uniform").pvalue > 1e-4


def test_layouts():
    torch.manual_seed(0)
    pairs = draw_strengths(unit(50), MonteCarlo(6, "antithetic"))
    assert torch.allclose(pairs[:3] + pairs[3:], torch.ones(3, 50, dtype=torch.float64))
    slices = (draw_strengths(unit(50), MonteCarlo(12, "stratified")) * 12).long().sort(0).values
    assert torch.equal(slices, torch.arange(12)[:, None].expand(12, 50))


@pytest.mark.parametrize("design", SPREAD)
def test_cells_are_independent(design):
    torch.manual_seed(0)
    values = log_marginal(lognormal(), torch.full((2, 20_000), -1.0, dtype=torch.float64), MonteCarlo(4, design))
    assert abs(torch.corrcoef(values)[0, 1]) < 0.03


def rmse(design, draws, cells=1000):
    law, h = lognormal(), torch.full((cells,), -1.0, dtype=torch.float64)
    exact = log_marginal(law, h[:1])
    return float((log_marginal(law, h, MonteCarlo(draws, design)) - exact).square().mean().sqrt())


@pytest.mark.parametrize(("design", "slope"), [("iid", -0.5), ("antithetic", -0.5), ("stratified", -1.5)])
def test_rate_of_convergence(design, slope):
    torch.manual_seed(1)
    few, many = rmse(design, 16), rmse(design, 1024)
    assert math.log(many / few) / math.log(1024 / 16) == pytest.approx(slope, abs=0.12)


def test_even_draws_beat_independent_ones():
    torch.manual_seed(2)
    independent = rmse("iid", 16)
    assert independent == pytest.approx(0.15, rel=0.1)
    assert rmse("stratified", 16) == pytest.approx(9.1e-3, rel=0.15)


@pytest.mark.parametrize("design", ["iid", *SPREAD])
def test_standard_error_covers_the_exact_value(design):
    torch.manual_seed(3)
    law, h = lognormal(), torch.full((4000,), -1.0, dtype=torch.float64)
    exact = log_marginal(law, h[:1])
    value, error = log_marginal_with_error(law, h, MonteCarlo(64, design), replicates=8)
    assert value.shape == error.shape == h.shape
    for level in (0.5, 0.8, 0.95):
        covered = ((value - exact).abs() < student.ppf((1 + level) / 2, 7) * error).double().mean()
        assert float(covered) == pytest.approx(level, abs=0.03), level


def test_replicates_with_a_seed_differ():
    h = torch.tensor([-1.0], dtype=torch.float64)
    first = log_marginal_with_error(lognormal(), h, MonteCarlo(16, seed=5))
    again = log_marginal_with_error(lognormal(), h, MonteCarlo(16, seed=5))
    assert float(first[1]) > 0
    assert torch.equal(torch.stack(first), torch.stack(again))
    with pytest.raises(ConfigError, match="replicates=1"):
        log_marginal_with_error(lognormal(), h, MonteCarlo(16), replicates=1)


@pytest.mark.parametrize("design", ["iid", *SPREAD])
def test_a_seed_repeats_the_draws_and_leaves_the_generator_alone(design):
    h = torch.linspace(-2, 2, 5, dtype=torch.float64)
    state = torch.get_rng_state()
    method = MonteCarlo(16, design, seed=4)
    first = log_marginal(lognormal(), h, method)
    assert torch.equal(first, log_marginal(lognormal(), h, method))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, log_marginal(lognormal(), h, MonteCarlo(16, design, seed=5)))
    assert not torch.equal(first, log_marginal(lognormal(), h, MonteCarlo(16, design)))


@pytest.mark.parametrize("design", ["iid", *SPREAD])
def test_shared_draws(design):
    method = MonteCarlo(16, design, shared=True)
    same = log_marginal(lognormal(), torch.full((7,), -1.0, dtype=torch.float64), method)
    assert torch.equal(same, same[:1].expand(7))
    own = log_marginal(lognormal(), torch.full((7,), -1.0, dtype=torch.float64), MonteCarlo(16, design))
    assert len(own.unique()) == 7
    h, panel = torch.full((6,), 0.7, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    people = log_marginal_panel(lognormal(), h, panel, 3, method=method)
    assert torch.equal(people, people[:1].expand(3))


@pytest.mark.parametrize("design", SPREAD)
@pytest.mark.parametrize("family", ["lognormal", "weibull", "half_normal"])
def test_gradients(design, family):
    torch.manual_seed(0)
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.8))
    law = {
        "lognormal": lambda: dist.LogNormal(a, b),
        "weibull": lambda: dist.Weibull(a, b + 1),
        "half_normal": lambda: dist.HalfNormal(a + b),
    }[family]()
    h = torch.tensor([-1.5, 0.3], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(log_marginal(law, h, MonteCarlo(8192, design)).sum(), (a, b, h))
    reference = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1::2]  # the midpoint rule in the quantile
    exact = torch.logsumexp(torch.nn.functional.logsigmoid(law.icdf(reference)[:, None] * h), 0).sum()
    expected = torch.autograd.grad(exact, (a, b, h))
    tolerance = 0.05 if design == "antithetic" else 1e-3
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)


def test_dtype_follows_the_arguments():
    law = dist.LogNormal(torch.tensor(0.0), torch.tensor([1.0, 2.0]))
    assert log_marginal(law, torch.ones(2), MonteCarlo(8, "stratified")).dtype == torch.float32
    assert log_marginal(law, torch.ones(2).double(), MonteCarlo(8, "stratified")).dtype == torch.float64


def test_a_user_s_pyro_function_takes_every_design(pairs, tiny_llama, tiny_tokenizer, tmp_path):
    import pyro

    def model(margins, preferred=None):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("pairs", len(margins)):
            beta = pyro.sample("beta", dist.LogNormal(-2.0, scale))
            pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    h = torch.randn(40, generator=torch.Generator().manual_seed(0))
    exact = log_marginal(dist.LogNormal(-2.0, 0.5), h).sum()
    with pyro.get_param_store().scope():
        for design in SPREAD:
            loss = MixDPO(MonteCarlo(256, design, seed=1)).loss(model, lambda *args, **kwargs: None, h, torch.ones(40))
            assert loss == pytest.approx(-float(exact), rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"design": "sobol"}, "choose one of 'iid', 'antithetic', 'stratified' .*Sobol sequence is 'stratified'"),
        ({"num_samples": 15, "design": "antithetic"}, "an even number"),
        ({"num_samples": 0}, "at least 1 draw"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MonteCarlo(**arguments)


def test_a_family_without_quantiles_says_so():
    law, h = dist.Gamma(2.0, 1.0), torch.ones(3)
    with pytest.raises(UnsupportedError, match=r"Gamma has no quantile function \(icdf\).*Use MonteCarlo\(16\)"):
        log_marginal(law, h, MonteCarlo(16, "stratified"))
    assert log_marginal(law, h, MonteCarlo(16)).shape == (3,)


def test_trainer_option(pairs, tiny_llama, tiny_tokenizer, tmp_path):
    common = {"max_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    for options, method in (
        ({"sampling_design": "stratified"}, MonteCarlo(8, "stratified")),
        (
            {"bias_correction": True, "shared_draws": True, "draws_seed": 3},
            MonteCarlo(8, shared=True, seed=3, bias_correction=True),
        ),
    ):
        trainer = MixDPOTrainer(
            tiny_llama(0),
            strength=LogNormalStrength(),
            args=MixDPOConfig(str(tmp_path), num_samples=8, **options, **common),
            train_dataset=pairs(8),
            processing_class=tiny_tokenizer,
        )
        assert trainer.objective.method == method
        trainer.train()
    for options, message in (
        ({"sampling_design": "stratified"}, "has no effect without num_samples"),
        ({"bias_correction": True}, "bias_correction=True has no effect without num_samples"),
        ({"draws_seed": 0}, "draws_seed=0 has no effect without num_samples"),
        ({"shared_draws": True}, "shared_draws=True has no effect without num_samples"),
        ({"sampling_design": "grid", "num_samples": 8}, "choose one of iid"),
    ):
        with pytest.raises(ConfigError, match=message):
            MixDPOConfig(str(tmp_path), **options, **common)
