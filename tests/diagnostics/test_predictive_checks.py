from __future__ import annotations

import importlib
import random
import warnings
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from scipy.special import expit

from pluralpref.diagnostics import PredictiveChecks, load_netcdf, plot_agreement, predictive_checks, save_netcdf
from pluralpref.errors import ConfigError, IdentificationWarning, NumericsWarning, UnsupportedError
from pluralpref.inference import fit_posterior
from pluralpref.inference.choices import as_choices
from pluralpref.inference.posterior_draws import load_posterior
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import FixedStrength, GroupStrength, LogNormalStrength

# The package's attribute of this name is the function.
module = importlib.import_module("pluralpref.diagnostics.predictive_checks")

AGREEMENT = ["agreement_sd", "agreement_q10", "agreement_q50", "agreement_q90", "agreement_below_half"]


def strengths(generator, count, cv=1.0):
    variance = np.log1p(cv**2)
    return np.exp(generator.normal(-variance / 2, np.sqrt(variance), count))


def panel(seed, people=80, each=20, factor=None):
    """Choices of people with a log-normal law of mean 1 and cv 1, times a factor of their country."""
    generator = np.random.default_rng(seed)
    beta = strengths(generator, people)
    country = np.array(["NL", "DE"])[np.arange(people) % 2]
    if factor is not None:
        beta = beta * np.array([factor[name] for name in country])
    annotator = np.repeat(np.arange(people), each)
    h = generator.normal(0.2, 2.0, people * each)
    preferred = (generator.random(len(h)) < expit(beta[annotator] * h)).astype(float)
    return {"margins": h, "annotator": annotator, "preferred": preferred, "groups": {"country": country[annotator]}}


def fit(strength, **data):
    options = {"method": "laplace", "num_samples": 100, **data}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        warnings.simplefilter("ignore", IdentificationWarning)
        return fit_posterior(strength, **options)


@cache
def fitted(family, seed=0):
    return fit(FixedStrength(1.0, learned=True) if family == "fixed" else LogNormalStrength(), **panel(seed))


def problem(margins, **columns):
    return PosteriorProblem(FixedStrength(1.0, learned=True), as_choices(margins, **columns))


def draws(count, beta=1.0):
    return {"beta_mean": torch.full((count,), beta, dtype=torch.float64)}


def by_hand(margins, preferred, weight, rows):
    """The weighted share of choices that agree with the margin's sign, in a loop."""
    agree = total = 0.0
    for row in np.flatnonzero(rows):
        chosen_side = 2 * preferred[row] - 1
        score = 0.5 if margins[row] == 0 else float(chosen_side * margins[row] > 0)
        agree += weight[row] * score
        total += weight[row]
    return agree / total


# -- what a model lacks, and what it has ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_one_strength_for_everybody_fails_where_people_differ(seed):
    checks = predictive_checks(fitted("fixed", seed), num_draws=300)
    row = checks.table().loc["agreement_sd"]
    assert row["observed"] > row["high"]
    assert row["p_value"] < 0.01
    assert row["count"] == 80
    assert row["unit"] == "annotators"
    said = " ".join(checks.sentences)
    assert "doesn't reproduce agreement_sd" in said
    assert "annotators differ more than the model says" in said
    assert "agreement_sd" in repr(checks)
    right = predictive_checks(fitted("lognormal", seed), num_draws=300)
    row = right.table().loc["agreement_sd"]
    assert row["low"] <= row["observed"] <= row["high"]
    assert "reproduce agreement_sd" not in " ".join(right.sentences)


def test_too_much_spread_is_named():
    h = np.random.default_rng(2).normal(0, 2, 600)
    people = np.repeat(np.arange(60), 10)
    # Eight of ten choices of each agree: less than chance alone makes people differ.
    preferred = np.where(np.arange(600) % 10 < 8, h > 0, h < 0).astype(float)
    said = PredictiveChecks.from_draws(problem(h, annotator=people, preferred=preferred), draws(200)).sentences
    assert any("agreement_sd" in s and "annotators differ less than the model says" in s for s in said)


def test_groups_of_their_own_strength():
    data = panel(3, people=40, each=10, factor={"NL": 0.05, "DE": 3.0})
    without = predictive_checks(fit(LogNormalStrength(), **data), num_draws=200).table()
    assert without.loc["accuracy[country=NL]", "observed"] < without.loc["accuracy[country=NL]", "low"]
    assert without.loc["accuracy[country=DE]", "observed"] > without.loc["accuracy[country=DE]", "high"]
    strength = GroupStrength({"country": ["NL", "DE"]}, LogNormalStrength())
    posterior = fit(strength, **data, num_samples=50, num_proposals=150)
    for people in ("new", "same"):
        table = predictive_checks(posterior, people=people, num_draws=100).table()
        for name in ("accuracy[country=NL]", "accuracy[country=DE]"):
            assert table.loc[name, "low"] <= table.loc[name, "observed"] <= table.loc[name, "high"]


def test_p_values_of_a_right_model_are_not_extreme():
    p_values, outside = [], []
    for seed in range(4):
        table = predictive_checks(fitted("lognormal", seed), num_draws=200).table()
        p_values += list(table["p_value"])
        outside += list((table["observed"] < table["low"]) | (table["observed"] > table["high"]))
    for seed in range(30):
        generator = np.random.default_rng(seed)
        h = generator.normal(0, 2, 200)
        data = problem(h, preferred=(generator.random(200) < expit(h)).astype(float))
        # The strength is known here, so that p is uniform.
        table = PredictiveChecks.from_draws(data, draws(200), seed=seed).table()
        p_values += list(table["p_value"])
    assert len(p_values) == 4 * 8 + 30
    assert min(p_values) > 0.002
    assert np.mean(outside) < 0.15
    known = np.array(p_values[32:])
    # Uniform: the share below one half is binomial.
    assert 0.2 < (known < 0.5).mean() < 0.8
    assert 0.3 < known.mean() < 0.7


def test_same_people_keep_their_strengths_and_new_ones_are_strangers():
    posterior = fitted("lognormal")
    correlation = {}
    for people in ("new", "same"):
        agreement = predictive_checks(posterior, people=people, num_draws=100).statistics["agreement"]
        correlation[people] = np.corrcoef(agreement.observed, agreement.replicated.mean(0))[0, 1]
    assert correlation["same"] > 0.6
    # How far the margins are from 0 is the same for both, and matters a little.
    assert correlation["new"] < 0.4
    assert "new people are stricter" in predictive_checks(posterior, people="same", num_draws=10).sentences[-1]


# -- numbers by hand --------------------------------------------------------------------------------------------------


def mixed_data():
    generator = np.random.default_rng(7)
    h = generator.normal(0, 2, 60)
    h[[3, 10, 11, 40]] = 0.0
    weight = generator.choice([0.3, 1.0, 2.5], 60)
    preferred = (generator.random(60) < expit(0.5 * h)).astype(float)
    annotator = np.array(["ann", "bob", "cas", "dee", "eve"])[generator.integers(0, 5, 60)]
    preferred[annotator == "eve"] = h[annotator == "eve"] < 0
    groups = {"country": generator.choice(["NL", "DE", "FR"], 60), "age": generator.choice(["old", "young"], 60)}
    return h, preferred, weight, annotator, groups


def test_observed_statistics_by_hand():
    h, preferred, weight, annotator, groups = mixed_data()
    data = problem(h, preferred=preferred, weight=weight, annotator=annotator, groups=groups)
    table = PredictiveChecks.from_draws(data, draws(4)).table()
    everything = np.ones(60, dtype=bool)
    expected = {"accuracy": by_hand(h, preferred, weight, everything)}
    counts = {"accuracy": 60}
    for column, labels in groups.items():
        for label in sorted(set(labels)):
            name = f"accuracy[{column}={label}]"
            expected[name] = by_hand(h, preferred, weight, labels == label)
            counts[name] = (labels == label).sum()
    people = np.array(
        [by_hand(h, preferred, weight, annotator == name) for name in ("ann", "bob", "cas", "dee", "eve")]
    )
    spread = np.sqrt(((people - people.mean()) ** 2).mean())
    ordered = np.sort(people)
    # Quantiles of five numbers: position 4 q, linear between neighbours.
    quantiles = [ordered[0] + 0.4 * (ordered[1] - ordered[0]), ordered[2], ordered[3] + 0.6 * (ordered[4] - ordered[3])]
    expected |= dict(zip(AGREEMENT, [spread, *quantiles, (people < 0.5).mean()], strict=True))
    assert list(table.index) == list(expected)
    for name, value in expected.items():
        assert table.loc[name, "observed"] == pytest.approx(value, abs=1e-12)
    for name, count in counts.items():
        assert table.loc[name, "count"] == count
        assert table.loc[name, "unit"] == "pairs"
    assert set(table.loc[AGREEMENT, "count"]) == {5}
    assert 0 < expected["agreement_below_half"] < 1


def test_replicated_statistics_and_intervals_by_hand(monkeypatch):
    h, preferred, weight, annotator, groups = mixed_data()
    chosen = np.random.default_rng(1).integers(0, 2, (50, 60)).astype(np.int8)
    chosen[:7] = preferred  # ties
    rows_seen = []

    def given(problem, draws, strengths=None):
        rows = draws["beta_mean"].long()
        rows_seen.append(len(rows))
        return chosen[rows.numpy()]

    monkeypatch.setattr(module, "draw_choices", given)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 60 * 8)
    data = problem(h, preferred=preferred, weight=weight, annotator=annotator, groups=groups)
    values = {"beta_mean": torch.arange(50.0, dtype=torch.float64)}
    checks = PredictiveChecks.from_draws(data, values, by=["country"])
    assert rows_seen == [8] * 6 + [2]
    table = checks.table()
    assert "accuracy[age=old]" not in table.index
    for name, rows in (("accuracy", np.ones(60, dtype=bool)), ("accuracy[country=NL]", groups["country"] == "NL")):
        replicated = np.array([by_hand(h, row, weight, rows) for row in chosen])
        observed = by_hand(h, preferred, weight, rows)
        above = (replicated > observed + 1e-9).mean()
        ties = (abs(replicated - observed) < 1e-9).mean()
        assert ties >= 0.14
        expected = {
            "predicted": replicated.mean(),
            "low": np.quantile(replicated, 0.025),
            "high": np.quantile(replicated, 0.975),
            "p_value": min(1, 2 * min(above + ties / 2, 1 - above - ties / 2)),
        }
        assert table.loc[name, list(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-12)
    people = np.array(
        [[by_hand(h, row, weight, annotator == name) for name in sorted(set(annotator))] for row in chosen]
    )
    order = [checks.labels["annotator"].index(name) for name in sorted(set(annotator))]
    assert checks.statistics["agreement"].replicated[:, order] == pytest.approx(people, abs=1e-6)
    assert checks.statistics["agreement_sd"].replicated == pytest.approx(people.std(1), abs=1e-12)
    below = checks.statistics["agreement_below_half"].replicated
    assert below == pytest.approx((people < 0.5 - 1e-9).mean(1), abs=1e-12)


def test_ties_count_half_and_are_no_news():
    table = PredictiveChecks.from_draws(problem(np.zeros(10), annotator=[0, 1] * 5), draws(20)).table()
    assert set(table.loc["accuracy", ["observed", "predicted", "low", "high"]]) == {0.5}
    assert table.loc["accuracy", "p_value"] == 1.0
    assert table.loc["agreement_below_half", "observed"] == 0.0


def test_sums_in_another_order_are_ties(monkeypatch):
    generator = np.random.default_rng(9)
    preferred = (generator.random((30, 7)) < generator.random((30, 1))).astype(np.int8)
    shuffled = np.array([preferred[generator.permutation(30)].ravel() for _ in range(40)])
    monkeypatch.setattr(module, "draw_choices", lambda *_: shuffled)
    data = problem(
        np.ones(210), preferred=preferred.ravel(), weight=np.full(210, 0.1), annotator=np.repeat(range(30), 7)
    )
    # The same people in another order have the same statistics.
    assert set(PredictiveChecks.from_draws(data, draws(40)).table()["p_value"]) == {1.0}


def test_replications_choose_by_the_strength():
    h = np.random.default_rng(4).normal(0, 2, 20_000)
    table = PredictiveChecks.from_draws(problem(h), draws(50, 0.7)).table()
    assert list(table.index) == ["accuracy"]
    assert table.loc["accuracy", "predicted"] == pytest.approx(expit(0.7 * abs(h)).mean(), abs=0.002)


def test_pairs_of_weight_zero_count_for_nothing():
    h = np.array([1.0, -1.0, 2.0, 3.0])
    columns = {"annotator": ["ann", "ann", "bob", "cas"], "groups": {"country": ["NL", "NL", "DE", "FR"]}}
    checks = PredictiveChecks.from_draws(problem(h, weight=[1.0, 0.0, 1.0, 0.0], **columns), draws(10))
    table = checks.table()
    assert table.loc["accuracy", "observed"] == 1.0
    assert table.loc["accuracy", "count"] == 2
    assert [name for name in table.index if "country" in name] == ["accuracy[country=DE]", "accuracy[country=NL]"]
    assert checks.labels["annotator"] == ["ann", "bob"]
    assert "1 groups of country have no pair with a weight above 0" in checks.sentences[-2]
    assert "1 annotators have no pair" in checks.sentences[-1]


def test_weights_change_the_replicated_shares():
    # One choice that is certain and one that is a coin, weighted 3 to 1.
    data = problem([100.0, 1e-9], weight=[3.0, 1.0])
    table = PredictiveChecks.from_draws(data, draws(400)).table()
    assert table.loc["accuracy", ["low", "high"]].tolist() == [0.75, 1.0]
    assert table.loc["accuracy", "predicted"] == pytest.approx(0.875, abs=0.025)


# -- sentences, ArviZ, the figure -------------------------------------------------------------------------------------


def test_sentences_count_and_shorten():
    h = np.ones(1200)
    labels = [f"g{row % 24:02d}" for row in range(1200)]
    # Half of the groups choose as a strength of 1 does, the others always against the margin.
    preferred = np.where(np.arange(1200) % 24 < 12, np.arange(1200) // 24 % 50 < 37, 0).astype(float)
    checks = PredictiveChecks.from_draws(problem(h, preferred=preferred, groups={"g": labels}), draws(200))
    said = checks.sentences
    assert said[0].startswith(
        "12 of 25 statistics lie within their 95 % intervals, of 200 replications with new people"
    )
    assert said[0].endswith("accuracy[g=g09] and 2 more.")
    assert sum("0 was observed, below the predicted" in sentence for sentence in said) == 9
    assert "Nor does it reproduce accuracy[g=g21], accuracy[g=g22], accuracy[g=g23]." in said
    assert said[-1] == "About 5 % of 25 statistics (1.2) fall outside by chance where the model is right."


def test_table_matches_arviz(tmp_path):
    h, preferred, weight, annotator, groups = mixed_data()
    groups = {"country": groups["country"], "draw": groups["age"], "agreement_sd": groups["country"]}
    data = problem(h, preferred=preferred, weight=weight, annotator=annotator, groups=groups)
    checks = PredictiveChecks.from_draws(data, draws(40), seed=3)
    saved = load_netcdf(save_netcdf(checks.to_arviz(), tmp_path / "checks.nc"))
    assert set(saved.groups()) == {"posterior_predictive", "observed_data"}
    replicated, observed = saved.posterior_predictive, saved.observed_data
    assert replicated["accuracy"].dims == ("chain", "draw")
    assert replicated["accuracy_by_country"].dims == ("chain", "draw", "country")
    assert replicated["accuracy_by_draw"].dims == ("chain", "draw", "draw_of_group")
    assert replicated["agreement"].dims == ("chain", "draw", "annotator")
    assert observed["agreement"].dims == ("annotator",)
    assert observed["accuracy"].dims == ()
    assert replicated.sizes["draw"] == 40
    table = checks.table()
    found = {}
    for name in ["accuracy", *AGREEMENT]:
        found[name] = (replicated[name], observed[name])
    for column, axis in (
        ("country", "country"),
        ("draw", "draw_of_group"),
        ("agreement_sd", "agreement_sd_of_group"),
    ):
        name = f"accuracy_by_{column}"
        for label in replicated[axis].values:
            at = {axis: label}
            found[f"accuracy[{column}={label}]"] = (replicated[name].sel(at), observed[name].sel(at))
    assert set(found) == set(table.index)
    for name, (values, value) in found.items():
        assert float(value) == pytest.approx(table.loc[name, "observed"])
        assert float(values.mean()) == pytest.approx(table.loc[name, "predicted"])
        assert float(values.quantile(0.975)) == pytest.approx(table.loc[name, "high"])
    bob = by_hand(h, preferred, weight, annotator == "bob")
    assert float(observed["agreement"].sel(annotator="bob")) == pytest.approx(bob, abs=1e-6)
    assert replicated.attrs["people"] == "new"
    assert replicated.attrs["seed"] == 3


def test_figure_shows_counts_and_band():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    checks = predictive_checks(fitted("fixed"), num_draws=100)
    figure = plot_agreement(checks, prob=0.8)
    (ax,) = figure.axes
    band, mean, observed = ax.patches
    edges = observed.get_data().edges
    # Twenty choices each: every multiple of 1/20 has a bin of its own.
    assert edges == pytest.approx((np.arange(22) - 0.5) / 20)
    people = checks.statistics["agreement"]
    steps = np.arange(21)
    counts = np.array([(np.round(20 * row)[:, None] == steps).sum(0) for row in people.replicated])
    assert observed.get_data().values.tolist() == (np.round(20 * people.observed)[:, None] == steps).sum(0).tolist()
    assert mean.get_data().values == pytest.approx(counts.mean(0))
    assert band.get_data().values == pytest.approx(np.quantile(counts, 0.9, axis=0))
    assert band.get_data().baseline == pytest.approx(np.quantile(counts, 0.1, axis=0))
    seen = np.flatnonzero(counts.sum(0) + observed.get_data().values)
    assert ax.get_xlim() == pytest.approx((edges[seen[0]], edges[seen[-1] + 1]))
    assert "80% band" in band.get_label()
    assert ax.get_xlabel()
    assert ax.get_ylabel() == "annotators"
    figure.canvas.draw()
    assert plt.get_fignums() == before


@pytest.mark.parametrize("choices", [1, 2, 19, 20, 21, 30, 57, 1000])
def test_bins_hold_equally_many_shares(choices):
    from pluralpref.diagnostics.agreement_plot import _edges

    edges = _edges(choices)
    counts, _ = np.histogram(np.arange(choices + 1) / choices, bins=edges)
    assert counts.sum() == choices + 1
    assert len(set(counts[:-1].tolist())) == 1
    assert 0 < counts[-1] <= counts[0]
    assert len(counts) <= 21


def test_figure_needs_annotators_and_a_probability():
    checks = PredictiveChecks.from_draws(problem([1.0, 2.0]), draws(5))
    with pytest.raises(ConfigError, match="fit with annotator="):
        plot_agreement(checks)
    with pytest.raises(ConfigError, match=r"prob=1\.0"):
        plot_agreement(predictive_checks(fitted("fixed"), num_draws=5), prob=1.0)


# -- seeds and refusals -----------------------------------------------------------------------------------------------


def same(one, other):
    return all(
        np.array_equal(value.replicated, other.statistics[name].replicated) for name, value in one.statistics.items()
    )


@pytest.mark.parametrize("people", ["new", "same"])
def test_seed_decides_and_global_state_is_left_alone(people):
    posterior = fitted("lognormal")
    pyro.get_param_store()["kept"] = torch.tensor(3.0)
    try:
        torch.manual_seed(11)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        first = predictive_checks(posterior, people=people, num_draws=20, seed=5)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
        assert list(pyro.get_param_store().keys()) == ["kept"]
        torch.manual_seed(12)
        assert same(first, predictive_checks(posterior, people=people, num_draws=20, seed=5))
        assert not same(first, predictive_checks(posterior, people=people, num_draws=20, seed=6))
    finally:
        del pyro.get_param_store()["kept"]


def test_from_draws_is_the_same():
    posterior = fitted("lognormal")
    again = PredictiveChecks.from_draws(posterior.problem, posterior.thinned(30), by="country", seed=2)
    assert again.num_draws == 30
    assert same(predictive_checks(posterior, by="country", num_draws=30, seed=2), again)
    assert "accuracy_by_country" not in predictive_checks(posterior, by=(), num_draws=5).statistics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "continent"}, "unknown column 'continent': the group columns are country"),
        ({"by": ["country", "annotator"]}, "unknown column 'annotator'"),
        ({"people": "old"}, "people='old': choose 'new'"),
        ({"num_draws": 1}, "num_draws=1: must be an integer of at least 2"),
        ({"num_draws": True}, "num_draws=True"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        predictive_checks(fitted("fixed"), **options)


def test_data_that_can_not_be_checked_are_refused(tmp_path):
    single = problem([1.0, -2.0], preferred=[1.0, 0.0])
    with pytest.raises(ConfigError, match="people='same' needs annotators"):
        PredictiveChecks.from_draws(single, draws(5), people="same")
    with pytest.raises(ConfigError, match="there are no group columns"):
        PredictiveChecks.from_draws(single, draws(5), by="country")
    with pytest.raises(ConfigError, match="the number of draws=1"):
        PredictiveChecks.from_draws(single, draws(1))
    soft = problem([1.0, -2.0, 0.5], preferred=[1.0, 0.7, 0.2])
    with pytest.raises(UnsupportedError, match=r"2 of 3 labels are soft \(the first in row 1: 0.7\).*every vote"):
        PredictiveChecks.from_draws(soft, draws(5))
    loaded = load_posterior(fitted("fixed").save(tmp_path / "posterior.nc", ["posterior", "prior"]))
    with pytest.raises(ConfigError, match=r"loaded without .* data"):
        predictive_checks(loaded)
