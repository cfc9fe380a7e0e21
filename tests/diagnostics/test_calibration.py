from __future__ import annotations

import random
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Dirichlet, HalfNormal, LogNormal
from scipy.special import expit
from scipy.stats import binomtest, gamma, halfnorm, norm

import pluralpref.inference.posterior as posterior_module
from pluralpref.diagnostics import CalibrationResult, plot_calibration_ranks, simulation_based_calibration
from pluralpref.diagnostics import rank_uniformity as ru
from pluralpref.errors import (
    ConfigError,
    DataError,
    IdentificationWarning,
    InferenceError,
    NumericsWarning,
    UnsupportedError,
)
from pluralpref.inference import MonteCarlo, fit_posterior
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import FixedStrength, GammaStrength, GroupStrength, LatentClassStrength, LogNormalStrength

LOG_MEAN, LOG_SD = -0.5, 0.7
PRIOR = {"beta_mean": LogNormal(LOG_MEAN, LOG_SD)}
MARGINS = np.random.default_rng(5).normal(0.3, 2.0, size=30)


class Draws:
    def __init__(self, **arrays):
        self.arrays = arrays

    def draws(self, name):
        return self.arrays[name]


def grid_fit(log_scale=1.0, shift=0.0, sign=1.0, ignore_data=False):
    """The exact posterior of one common strength on a grid, or one that is wrong in a known way."""
    standard = norm.ppf((np.arange(3000) + 0.5) / 3000)
    beta = np.exp(LOG_MEAN + LOG_SD * standard)

    def fit(strength, margins, *, annotator, preferred, seed):
        assert annotator is None
        h = sign * margins.numpy() * (2 * preferred.numpy() - 1)
        # The grid's points have equal prior mass, so the weights are the likelihood.
        log_weight = np.zeros(len(beta)) if ignore_data else np.log(expit(beta[:, None] * h)).sum(-1)
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        generator = np.random.default_rng(seed)
        z = generator.choice(standard, p=weight, size=200)
        centre = weight @ standard
        spread = np.sqrt(weight @ (standard - centre) ** 2)
        z = centre + log_scale * (z - centre) + shift * spread
        return Draws(beta_mean=np.exp(LOG_MEAN + LOG_SD * z).reshape(2, 100))

    return fit


def calibrate_fixed(fit, **options):
    options = {"seed": 1, "num_draws": 50, **options}
    return simulation_based_calibration(FixedStrength(0.5, learned=True), MARGINS, priors=PRIOR, fit=fit, **options)


def test_exact_posterior_is_uniform():
    result = calibrate_fixed(grid_fit(), num_simulations=400)
    assert result.uniform(0.95)
    assert result.names == ["beta_mean", "log_likelihood"]
    for ranks in result.ranks.values():
        assert ranks.shape == (400,)
        assert ranks.min() == 0
        assert ranks.max() == 50
    assert "all 2 quantities uniform" in repr(result)
    assert list(result.summary()["verdict"]) == ["uniform"] * 2


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({"log_scale": 0.6}, "draws too narrow"),
        ({"log_scale": 1.8}, "draws too wide"),
        ({"shift": 0.6}, "draws too high"),
        ({"shift": -0.6}, "draws too low"),
    ],
)
def test_wrong_posterior_is_named(wrong, verdict):
    result = calibrate_fixed(grid_fit(**wrong))
    assert not result.uniform()
    assert result.summary().loc["beta_mean", "verdict"] == verdict
    assert verdict in repr(result)


def test_flipped_sign_is_caught():
    assert not calibrate_fixed(grid_fit(sign=-1.0)).uniform(0.999)


def test_prior_instead_of_posterior_is_caught_by_the_likelihood_alone():
    result = calibrate_fixed(grid_fit(ignore_data=True))
    assert result.p_value("beta_mean") > 0.05
    assert result.p_value("log_likelihood") < 0.001
    assert not result.uniform()
    assert result.summary().loc["log_likelihood", "verdict"] == "draws too low"


ANNOTATOR = np.repeat(np.arange(20), 12)
PANEL = np.random.default_rng(3).normal(0.2, 2.0, size=240)
PANEL_PRIORS = {"beta_mean": LogNormal(0.0, 0.5), "beta_cv": HalfNormal(1.0)}


def gamma_panel_fit(annotator_known=True, num_draws=60):
    """The exact posterior of a gamma law of strengths on a grid, by SciPy and NumPy alone."""
    cells = 50
    middle = (np.arange(cells) + 0.5) / cells
    u = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)

    def parameters(u):
        return np.exp(0.5 * norm.ppf(u[..., 0])), halfnorm.ppf(u[..., 1])

    mean, cv = parameters(u)
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 100, 400), [np.inf]])
    strengths = np.concatenate([[5e-5], np.sqrt(edges[1:-2] * edges[2:-1]), [110.0]])
    mass = np.diff(gamma.cdf(edges, (1 / cv**2)[:, None], scale=(mean * cv**2)[:, None]), axis=-1)

    def fit(strength, margins, *, annotator, preferred, seed):
        h = margins.numpy() * (2 * preferred.numpy() - 1)
        terms = -np.logaddexp(0, -strengths[:, None] * h)
        units = annotator.numpy() if annotator_known else np.arange(len(h))
        sums = np.zeros((len(strengths), units.max() + 1))
        np.add.at(sums.T, units, terms.T)
        log_weight = np.log(mass @ np.exp(sums)).sum(-1)
        weight = np.exp(log_weight - log_weight.max())
        generator = np.random.default_rng(seed)
        chosen = generator.choice(len(u), p=weight / weight.sum(), size=num_draws)
        jittered = u[chosen] + (generator.random((num_draws, 2)) - 0.5) / cells
        return Draws(**dict(zip(("beta_mean", "beta_cv"), parameters(jittered), strict=True)))

    return fit


def test_panel_is_simulated_with_one_strength_a_person():
    result = simulation_based_calibration(
        GammaStrength(), PANEL, annotator=ANNOTATOR, priors=PANEL_PRIORS, fit=gamma_panel_fit(), num_draws=60, seed=2
    )
    assert result.uniform(0.95)
    assert set(result.names) == {"beta_mean", "beta_cv", "log_likelihood"}


def test_posterior_that_ignores_who_chose_is_caught():
    result = simulation_based_calibration(
        GammaStrength(),
        PANEL,
        annotator=ANNOTATOR,
        priors=PANEL_PRIORS,
        fit=gamma_panel_fit(False),
        num_draws=60,
        seed=2,
    )
    assert not result.uniform(0.99)


# -- ranks -----------------------------------------------------------------------------------------------------------


def test_ties_are_broken_at_random():
    quantities = {"constant": lambda parameters, choices: 0.0, "won": lambda p, c: float(p["beta_mean"] > 0.6)}
    result = calibrate_fixed(grid_fit(), quantities=quantities)
    assert result.uniform(0.95)
    assert np.unique(result.ranks["constant"]).size > 40


def test_further_quantity_sees_parameters_and_choices():
    seen = []

    def score(parameters, choices):
        seen.append(choices.preferred)
        assert set(parameters) == {"beta_mean"}
        return parameters["beta_mean"] * choices.preferred.sum()

    result = calibrate_fixed(grid_fit(), quantities={"score": score}, num_simulations=5, num_draws=40)
    # With the choices given it is a multiple of beta_mean (or a tie of zeros).
    assert (result.ranks["score"] == result.ranks["beta_mean"]).all()
    assert len(seen) == 5 * 41
    assert set(torch.cat(seen).tolist()) == {0.0, 1.0}


def test_moment_that_does_not_exist_has_a_rank():
    odd = {"odd": lambda parameters, choices: float("nan") if parameters["beta_mean"] > 0.6 else 1.0}
    assert calibrate_fixed(grid_fit(), quantities=odd).uniform(0.95)


def test_components_of_a_vector_are_ranked_one_by_one():
    strength = LatentClassStrength(2)
    names = list(strength.with_priors().priors())

    def prior_fit(strength, margins, *, annotator, preferred, seed):
        return Draws(**{name: prior.sample((1, 50)) for name, prior in strength.priors().items()})

    result = simulation_based_calibration(strength, MARGINS, fit=prior_fit, num_draws=50, num_simulations=20)
    vectors = [name for name, prior in strength.with_priors().priors().items() if isinstance(prior, Dirichlet)]
    assert vectors
    assert {f"{vectors[0]}[0]", f"{vectors[0]}[1]", "beta_mean", "beta_cv"} <= set(result.names)
    assert not set(vectors) & set(result.names)
    assert len(names) < len(result.names)


def test_draws_are_thinned_evenly():
    ramp = np.linspace(0.0, 1e6, 1001)

    def fit(strength, margins, **data):
        return Draws(beta_mean=ramp[1:] if data["preferred"][0] == 1 else np.full(1000, 1e-9))

    result = calibrate_fixed(fit, num_draws=10, num_simulations=50)
    # The truth is below all but at most the first value of the ramp, and above all the tiny ones.
    assert set(result.ranks["beta_mean"].tolist()) == {0, 10}


def test_ranks_depend_on_the_seed_alone_and_leave_global_state():
    def unruly(*args, seed, **data):
        torch.manual_seed(seed % 2**32)
        np.random.seed(1)
        random.seed(1)
        pyro.param("left behind", torch.tensor(1.0))
        torch.set_num_threads(1)
        return grid_fit()(*args, seed=seed, **data)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    pyro.clear_param_store()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = calibrate_fixed(unruly, num_simulations=20)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    assert not list(pyro.get_param_store().keys())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.rand(3)
    again = calibrate_fixed(unruly, num_simulations=20)
    other = calibrate_fixed(unruly, num_simulations=20, seed=2)
    for name in first.names:
        assert (first.ranks[name] == again.ranks[name]).all()
        assert (first.ranks[name] != other.ranks[name]).any()


def test_pairs_of_weight_zero_have_no_say():
    weight = np.where(np.arange(60) < 30, 1.0, 0.0)
    seen = []

    def fit(strength, margins, *, annotator, preferred, seed, weight):
        seen.append(weight.numpy())
        return grid_fit()(strength, margins[:30], annotator=annotator, preferred=preferred[:30], seed=seed)

    result = simulation_based_calibration(
        FixedStrength(0.5, learned=True),
        np.concatenate([MARGINS, 5 + MARGINS]),
        weight=weight,
        priors=PRIOR,
        fit=fit,
        num_draws=50,
    )
    assert (np.stack(seen) == weight).all()
    assert result.uniform(0.95)


COUNTRY = np.where(np.arange(60) % 2 == 0, "a", "b")


def group_fit(misread=False):
    """The exact posterior of two groups' effects, on a grid; or that of choices sorted into the wrong groups."""
    standard = norm.ppf((np.arange(300) + 0.5) / 300)
    beta = 0.7 * np.exp(0.8 * standard)

    def fit(strength, margins, *, annotator, preferred, seed, groups):
        assert (groups["country"] == COUNTRY).all()
        h = margins.numpy() * (2 * preferred.numpy() - 1)
        generator = np.random.default_rng(seed)
        first = np.arange(60) % 4 < 2 if misread else COUNTRY == "a"
        effects = []
        for rows in (first, ~first):
            log_weight = np.log(expit(beta[:, None] * h[rows])).sum(-1)
            weight = np.exp(log_weight - log_weight.max())
            effects.append(generator.choice(standard, p=weight / weight.sum(), size=100))
        scale = np.exp(np.log(0.8) + 1e-9 * generator.standard_normal(100))
        return Draws(scale=scale, effect=np.stack(effects, -1))

    return fit


@pytest.mark.parametrize("misread", [False, True])
def test_columns_reach_the_simulation_and_the_fit(misread):
    # The scale of the groups' effects is all but known, so that the grid is exact.
    scale = LogNormal(torch.tensor(np.log(0.8)), torch.tensor(1e-9, dtype=torch.float64))
    strength = GroupStrength(["a", "b"], FixedStrength(0.7), scale=scale, column="country")
    result = simulation_based_calibration(
        strength, np.concatenate([MARGINS, MARGINS]), groups={"country": COUNTRY}, fit=group_fit(misread), num_draws=100
    )
    assert result.names == ["scale", "effect[0]", "effect[1]", "log_likelihood"]
    assert result.uniform(0.95 if not misread else 0.999) is not misread


# -- fits that fail or warn -------------------------------------------------------------------------------------------


def failing(every, error):
    calls = []

    def fit(*args, **data):
        calls.append(0)
        if len(calls) % every == 0:
            raise error(len(calls))
        return grid_fit()(*args, **data)

    return fit


def test_failed_fits_are_counted_and_warned_of():
    fit = failing(4, lambda number: InferenceError(f"k-hat {0.7 + number / 1000:.3f} is above 0.7"))
    with pytest.warns(NumericsWarning, match=r"10 of 40 fits failed.*10 times InferenceError: k-hat # is above #"):
        result = calibrate_fixed(fit, num_simulations=40)
    assert result.failures == {"InferenceError: k-hat # is above #": 10}
    assert result.num_failed == 10
    assert result.ranks["beta_mean"].shape == (30,)
    assert "10 failed (10 InferenceError)" in repr(result)
    assert result.summary().attrs["failures"] == result.failures


def test_few_failures_are_counted_without_a_warning():
    result = calibrate_fixed(failing(40, lambda _: InferenceError("no")), num_simulations=40)
    assert result.failures == {"InferenceError: no": 1}


def test_draws_that_are_not_finite_are_a_failure():
    def fit(*args, **data):
        posterior = grid_fit()(*args, **data)
        if data["preferred"][0] == 0:
            posterior.arrays["beta_mean"][0, 0] = float("nan")
        return posterior

    with pytest.warns(NumericsWarning, match="draws of beta_mean that are not finite"):
        result = calibrate_fixed(fit, num_simulations=40)
    assert 0 < result.num_failed < 40


def test_warnings_of_fits_are_counted_and_others_shown():
    def fit(*args, **data):
        warnings.warn("the spread is 83% as wide", IdentificationWarning, stacklevel=1)
        warnings.warn("again 5", IdentificationWarning, stacklevel=1)
        warnings.warn("elsewhere", RuntimeWarning, stacklevel=1)
        return grid_fit()(*args, **data)

    with pytest.warns(RuntimeWarning, match="elsewhere") as caught:
        result = calibrate_fixed(fit, num_simulations=7)
    assert not [item for item in caught if item.category is IdentificationWarning]
    assert result.warnings == {
        "IdentificationWarning: the spread is #% as wide": 7,
        "IdentificationWarning: again #": 7,
    }
    assert "14 IdentificationWarning" in repr(result)


def test_nothing_left_is_an_error():
    with pytest.raises(InferenceError, match=r"all 5 fits failed: DataError: no rows"):
        calibrate_fixed(failing(1, lambda _: DataError("no rows")), num_simulations=5)


@pytest.mark.parametrize("error", [ConfigError("wrong option"), UnsupportedError("not here"), ZeroDivisionError("bug")])
def test_mistakes_are_not_counted_but_raised(error):
    with pytest.raises(type(error), match=str(error)):
        calibrate_fixed(failing(1, lambda _: error), num_simulations=5)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_simulations": 1}, "num_simulations=1: must be an integer of at least 2"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"seed": -1}, "seed=-1"),
        ({"num_draws": True}, "num_draws=True"),
        ({"num_draws": 201}, "200 draws, fewer than num_draws=201: raise num_samples"),
        ({"method": "nuts"}, "method: options of fit_posterior have no effect with fit"),
        ({"num_samples": 9}, "num_samples: options of fit_posterior have no effect"),
        ({"weight": np.full(30, 2.0)}, "weights of 0 and 1 only"),
        ({"preferred": np.ones(30)}, "preferred: the choices are simulated"),
        ({"groups": {"a": ["b"] * 30}}, "groups or covariates a: FixedStrength doesn't read them"),
        ({"covariates": {"x": np.ones(30)}}, "groups or covariates x: FixedStrength doesn't read them"),
        ({"quantities": {"beta_mean": len}}, "a quantity of this name already"),
        ({"quantities": {"x": 3}}, "must be a function"),
        ({"quantities": {"x": lambda p, c: "three"}}, r"quantities\['x'\] must return a number"),
    ],
)
def test_options_without_meaning_or_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        calibrate_fixed(grid_fit(), **options)


def test_unknown_method_is_refused_at_once():
    with pytest.raises(ConfigError, match="unknown method 'newton'"):
        simulation_based_calibration(FixedStrength(0.5, learned=True), MARGINS, method="newton")


@pytest.mark.parametrize("shape", [(200, 3), (), (1, 2, 100)])
def test_draws_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"draws\('beta_mean'\) has shape .*expected \(chain, draw\)"):
        calibrate_fixed(lambda *args, **data: Draws(beta_mean=np.ones((4, *shape) if shape == (200, 3) else shape)))


def test_data_are_checked():
    with pytest.raises(DataError, match="margins: 1 of 2"):
        simulation_based_calibration(FixedStrength(0.5, learned=True), [1.0, float("nan")], fit=grid_fit())


# -- the statistics of ranks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("simulations", "draws", "prob"), [(100, 50, 0.9), (200, 100, 0.95), (30, 9, 0.8)])
def test_envelope_covers_uniform_ranks_at_its_rate(simulations, draws, prob):
    generator = np.random.default_rng(11)
    lower, upper = ru.envelope(simulations, draws, prob)
    repeats = 3000
    inside = small = 0
    for _ in range(repeats):
        ranks = generator.integers(0, draws + 1, size=simulations)
        difference = ru.ecdf_difference(ranks, draws)
        within = bool(((difference >= lower - 1e-12) & (difference <= upper + 1e-12)).all())
        assert within == (ru.p_value(ranks, draws) > 1 - prob)
        inside += within
        small += ru.p_value(ranks, draws) <= 0.25
    # Ranks are discrete, so the rate may be a little above the nominal one.
    error = 4 * np.sqrt(prob * (1 - prob) / repeats)
    assert prob - error < inside / repeats < prob + error + 0.01
    assert 0.25 - 0.03 - 4 * np.sqrt(0.19 / repeats) < small / repeats < 0.25 + 4 * np.sqrt(0.19 / repeats)


@pytest.mark.parametrize("ones", [30, 38, 42, 50])
def test_p_value_of_one_draw_is_the_binomial_test(ones):
    ranks = np.repeat([0, 1], [100 - ones, ones])
    exact = binomtest(ones, 100, 0.5).pvalue
    assert ru.p_value(ranks, 1) == pytest.approx(exact, abs=4 * np.sqrt(exact / ru.NULL_SAMPLES) + 2e-4)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 are 0.04, 0.06, 0.06, 0.5.
    assert ru.holm(np.array([0.03, 0.01, 0.5, 0.02])) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert ru.holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (np.full(50, 100), "draws too low"),
        (np.zeros(50, dtype=int), "draws too high"),
        (np.repeat([0, 100], 25), "draws too narrow"),
        (np.full(50, 50), "draws too wide"),
        # Mean 1/2 and variance 1/12, as uniform ranks have.
        (np.repeat([10, 50, 90], [26, 48, 26]), "draws of another shape"),
    ],
)
def test_deviations_in_words(ranks, words):
    assert ru.p_value(ranks, 100) < 0.001
    assert ru.describe_deviation(ranks, 100) == words


def test_uniform_adjusts_for_the_number_of_quantities():
    generator = np.random.default_rng(1)
    ranks = next(
        sample
        for sample in (generator.integers(0, 101, size=200) for _ in range(2000))
        if 0.002 < ru.p_value(sample, 100) < 0.009
    )
    good = np.arange(200) % 101
    assert not CalibrationResult({"a": ranks}, 100, 200).uniform(0.99)
    assert CalibrationResult({"a": ranks, **{str(k): good for k in range(9)}}, 100, 200).uniform(0.99)


def test_result_refuses_unknown_names_and_levels():
    result = CalibrationResult({"a": np.arange(50) % 11}, 10, 50)
    with pytest.raises(ConfigError, match="unknown quantity 'b': the ranks are of a"):
        result.p_value("b")
    with pytest.raises(ConfigError, match="unknown quantity"):
        result.ecdf_difference("b")
    for call in (result.uniform, result.summary, result.envelope):
        with pytest.raises(ConfigError, match="strictly between 0 and 1"):
            call(1.0)
    with pytest.raises(ConfigError, match="at most"):
        result.envelope(0.99999)


def test_figure_shows_ranks_and_band():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    result = CalibrationResult(
        {name: np.random.default_rng(k).integers(0, 21, 100) for k, name in enumerate("abcd")}, 20, 100
    )
    figure = plot_calibration_ranks(result, prob=0.9)
    assert len(figure.axes) == 4
    for ax, name in zip(figure.axes, "abcd", strict=True):
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_title().startswith(name)
        (line,) = (line for line in ax.lines if line.get_label() == "ranks")
        assert np.array_equal(line.get_ydata(), result.ecdf_difference(name))
        (band,) = ax.collections
        heights = band.get_paths()[0].vertices[:, 1]
        lower, upper = result.envelope(0.9)
        assert heights.min() == pytest.approx(lower.min())
        assert heights.max() == pytest.approx(upper.max())
    figure.canvas.draw()
    assert plt.get_fignums() == before
    assert len(plot_calibration_ranks(result, ["b"]).axes) == 1
    with pytest.raises(ConfigError, match="unknown quantity"):
        plot_calibration_ranks(result, ["e"])
    with pytest.raises(ConfigError, match="names is empty"):
        plot_calibration_ranks(result, [])


# -- the methods of the library ----------------------------------------------------------------------------------------

PEOPLE = np.repeat(np.arange(40), 8)
PEOPLE_MARGINS = np.random.default_rng(8).normal(0.3, 2.0, size=320)
FEW_DRAWS = {"num_samples": 1000, "num_draws": 100}


def library_fit(**changes):
    """``fit_posterior`` as a fit of one's own, with changes that make it wrong."""

    def fit(strength, margins, **data):
        sign = changes.get("sign", 1.0)
        return fit_posterior(
            strength, sign * margins, priors=changes.get("priors"), method="laplace", num_samples=1000, **data
        )

    return fit


def calibrate_people(strength=None, **options):
    return simulation_based_calibration(
        strength or LogNormalStrength(), PEOPLE_MARGINS, annotator=PEOPLE, priors=PANEL_PRIORS, seed=4, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
def test_laplace_is_calibrated(family):
    result = calibrate_people(family(), method="laplace", **FEW_DRAWS)
    assert result.num_failed <= 10
    assert result.uniform(0.99), result.summary()


@pytest.mark.slow
def test_nuts_is_calibrated():
    # Every tenth draw of one chain: with more of them, autocorrelation shows as draws too narrow.
    result = calibrate_people(
        method="nuts", num_simulations=40, num_draws=10, num_samples=100, num_warmup=50, num_chains=1
    )
    assert not result.failures
    assert result.uniform(0.99), result.summary()


@pytest.mark.slow
def test_another_prior_than_simulated_is_caught():
    wrong = {"beta_mean": LogNormal(0.0, 0.5), "beta_cv": HalfNormal(0.3)}
    result = calibrate_people(fit=library_fit(priors=wrong), num_draws=100)
    assert not result.uniform(0.99), result.summary()


@pytest.mark.slow
def test_margins_of_the_other_sign_are_caught():
    result = calibrate_people(fit=library_fit(sign=-1.0), num_draws=100, num_simulations=60)
    assert not result.uniform(0.99), result.summary()


class FourDraws(PosteriorProblem):
    """The likelihood by four random draws of beta, whose logarithm is biased downwards."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.method, self.table, self.reduced, self.cells = MonteCarlo(4), None, None, []


@pytest.mark.slow
def test_biased_monte_carlo_likelihood_is_caught(monkeypatch):
    monkeypatch.setattr(posterior_module, "PosteriorProblem", FourDraws)
    with warnings.catch_warnings():
        # So rough a likelihood has no mode now and then.
        warnings.simplefilter("ignore", NumericsWarning)
        result = calibrate_people(
            method="laplace", num_simulations=40, num_draws=100, num_samples=200, num_proposals=800
        )
    assert result.num_failed < 10
    assert not result.uniform(0.99), result.summary()
