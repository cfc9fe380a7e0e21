"""Which explanation predicts best."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pluralpref.cli.main import main
from pluralpref.data.margins_table import MarginsTable, write_margins
from pluralpref.diagnostics import IndependentChoices, compare, default_models, likelihood_ratio_test
from pluralpref.errors import ConfigError
from pluralpref.inference import fit_posterior, log_marginal_panel
from pluralpref.inference.choices import as_choices
from pluralpref.models import FixedStrength, GroupStrength, LogNormalStrength, OpposedStrength

pytestmark = pytest.mark.filterwarnings("ignore::pluralpref.errors.IdentificationWarning")


def simulate(law, people, each, seed, flip=0.0):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    beta = law.sample((people,)).double() if law is not None else torch.ones(people, dtype=torch.float64)
    code = torch.arange(people).repeat_interleave(each)
    utility = 2 * torch.randn(people * each, generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(beta[code] * utility)
    chance = (1 - flip) * chance + flip * (1 - chance)
    chosen = torch.rand(people * each, generator=generator, dtype=torch.float64) < chance
    return torch.where(chosen, utility, -utility), [f"p{c}" for c in code.tolist()]


SHORT = {"num_samples": 200, "progress_bar": False}


@pytest.fixture(scope="module")
def heterogeneous():
    return simulate(LogNormalStrength(mean=1.0, cv=1.2).law(), 120, 8, 0)


@pytest.fixture(scope="module")
def found(heterogeneous):
    margins, labels = heterogeneous
    models = {"fixed": FixedStrength(0.3, learned=True), "lognormal": LogNormalStrength(mean=0.3)}
    models["label_noise"] = IndependentChoices(OpposedStrength(FixedStrength(0.3, learned=True), share=0.05))
    return compare(margins, annotator=labels, models=models, **SHORT)


def test_heterogeneity_is_found_at_both_levels(found):
    for level in ("annotator", "pair"):
        table = found.tables[level]
        assert table.index[0] == "lognormal"
        assert table.loc["fixed", "elpd_diff"] > 4
        assert table["weight"].sum() == pytest.approx(1)
        for name, row in table.iterrows():
            assert row["elpd_loo"] == pytest.approx(found.pointwise[level][name].sum())
    assert "lognormal predicts a left-out annotator best." in found.sentences
    assert found.ratio.p_value < 1e-4


def test_the_ratio_is_that_of_the_highest_likelihoods(heterogeneous):
    margins, labels = heterogeneous
    ratio = likelihood_ratio_test(LogNormalStrength(), margins, annotator=labels)
    choices = as_choices(margins, annotator=labels)
    axes = torch.linspace(-0.5, 1.5, 15, dtype=torch.float64), torch.linspace(0.4, 6.0, 15, dtype=torch.float64)
    log_mean, cv = (x.reshape(-1, 1) for x in torch.meshgrid(*axes, indexing="ij"))
    law = LogNormalStrength().with_priors().law(parameters={"beta_mean": log_mean.exp(), "beta_cv": cv})
    mixed = log_marginal_panel(law, margins, choices.annotator, 120).sum(1)
    one = torch.nn.functional.logsigmoid(torch.linspace(0.01, 3, 3000, dtype=torch.float64)[:, None] * margins).sum(1)
    grid = 2 * float(mixed.max() - one.max())
    assert grid - 1e-3 <= ratio.statistic < grid + 1.0
    assert ratio.cv == pytest.approx(float(cv[mixed.argmax()]), abs=0.5)


def test_leaving_out_a_person_is_what_refitting_without_them_predicts(found, heterogeneous):
    """The estimate for one person against a fit that never saw their choices."""
    margins, labels = heterogeneous
    person = "p7"
    kept = torch.tensor([label != person for label in labels])
    without = fit_posterior(
        LogNormalStrength(mean=0.3), margins[kept], annotator=[x for x in labels if x != person], method="laplace"
    )
    own = as_choices(margins[~kept], annotator=[person] * int((~kept).sum()))
    from pluralpref.inference.posterior_problem import PosteriorProblem

    draws = without.thinned(2000)
    terms = PosteriorProblem(LogNormalStrength(mean=0.3), own).log_likelihood(draws)[:, 0].double()
    exact = float(torch.logsumexp(terms, 0) - np.log(len(terms)))
    index = found.labels["annotator"].index(person)
    assert found.pointwise["annotator"]["lognormal"][index] == pytest.approx(exact, abs=0.05)


def test_one_strength_means_independent_choices(found, heterogeneous):
    """Without a spread a person's other choices say nothing: both levels add up to about the same."""
    sums = [found.pointwise[level]["fixed"].sum() for level in ("annotator", "pair")]
    assert sums[0] == pytest.approx(sums[1], abs=1.0)
    # With one, they help.
    assert found.pointwise["pair"]["lognormal"].sum() > found.pointwise["annotator"]["lognormal"].sum() + 3


def test_drivers_add_up(found):
    frame = found.drivers("lognormal", "fixed")
    assert len(frame) == 120
    table = found.tables["annotator"]
    assert frame["gain"].sum() == pytest.approx(table.loc["lognormal", "elpd_loo"] - table.loc["fixed", "elpd_loo"])
    assert frame["cumulative"].iloc[-1] == pytest.approx(1)
    assert (frame["gain"].diff().dropna() <= 0).all()
    with pytest.raises(ConfigError, match="unknown model 'gamma'"):
        found.drivers("gamma", "fixed")


def test_label_noise_is_not_taken_for_people_who_are_opposed():
    margins, labels = simulate(None, 120, 8, 1, flip=0.2)
    noise = IndependentChoices(OpposedStrength(FixedStrength(0.3, learned=True), share=0.05))
    opposed = OpposedStrength(FixedStrength(0.3, learned=True), share=0.05)
    found = compare(margins, annotator=labels, models={"label_noise": noise, "opposed": opposed}, **SHORT)
    assert found.tables["annotator"].index[0] == "label_noise"
    assert found.tables["annotator"].loc["opposed", "elpd_diff"] > 4


def test_the_order_of_rows_and_people_changes_nothing(heterogeneous):
    margins, labels = heterogeneous
    order = torch.randperm(len(margins), generator=torch.Generator().manual_seed(5))
    models = {"fixed": FixedStrength(0.3, learned=True), "lognormal": LogNormalStrength(mean=0.3)}
    one = compare(margins, annotator=labels, models=models, **SHORT)
    other = compare(margins[order], annotator=[labels[i] for i in order], models=models, **SHORT)
    for level in ("annotator", "pair"):
        for name in models:
            difference = one.tables[level].loc[name, "elpd_loo"] - other.tables[level].loc[name, "elpd_loo"]
            assert abs(difference) < 1e-3


@pytest.mark.slow
def test_the_statistic_is_half_at_zero_without_heterogeneity():
    """Its law under one strength for all: half a point mass at 0, half chi-square with one degree of freedom."""
    results = [
        likelihood_ratio_test(LogNormalStrength(), margins, annotator=labels)
        for margins, labels in (simulate(None, 60, 6, 100 + seed) for seed in range(60))
    ]
    at_zero = np.mean([r.statistic < 1e-6 for r in results])
    assert 0.25 < at_zero < 0.8  # one half asymptotically; four standard errors, and small samples lean to 0
    p = np.array([r.p_value for r in results if r.statistic >= 1e-6])
    assert kstest(2 * p, "uniform").pvalue > 1e-3
    assert all(r.p_value == 1.0 and r.cv == 0.0 for r in results if r.statistic == 0)


def test_bad_arguments(heterogeneous):
    margins, labels = heterogeneous
    with pytest.raises(ConfigError, match="at least two models"):
        compare(margins, models={"fixed": FixedStrength(0.3, learned=True)})
    other = fit_posterior(LogNormalStrength(), margins[:80], method="laplace")
    with pytest.raises(ConfigError, match="'mine' was fitted to other choices"):
        compare(margins, annotator=labels, models={"mine": other, "fixed": FixedStrength(0.3, learned=True)})
    with pytest.raises(ConfigError, match="level='person': choose one of annotator, pair"):
        compare(margins, annotator=labels, level="person")
    with pytest.raises(ConfigError, match="level='annotator' needs annotators"):
        compare(margins, level="annotator")
    group = GroupStrength(["a", "b"], column="g")
    with pytest.raises(ConfigError, match="beta_mean and beta_cv"):
        likelihood_ratio_test(OpposedStrength(LogNormalStrength()), margins)
    assert group.context_columns == ("g",)


@pytest.mark.parametrize("level", ["annotator", "pair"])
def test_one_level_alone_is_as_among_both(heterogeneous, found, level):
    margins, labels = heterogeneous
    alone = compare(margins, annotator=labels, models=found.posteriors, level=level)
    assert list(alone.tables) == list(alone.pointwise) == list(alone.labels) == [level]
    assert alone.tables[level].equals(found.tables[level])
    assert alone.sentences[0] == f"lognormal predicts a left-out {level} best."
    assert alone.drivers("lognormal", "fixed").equals(found.drivers("lognormal", "fixed", level))


def test_default_models_have_one_for_each_group_column(heterogeneous):
    margins, labels = heterogeneous
    choices = as_choices(margins, annotator=labels, groups={"country": ["a", "b"] * (len(margins) // 2)})
    assert list(default_models(choices)) == [
        "fixed", "label_noise", "lognormal", "gamma", "latent_class", "group:country",
    ]  # fmt: skip


def test_command(tmp_path, heterogeneous, capsys):
    margins, labels = heterogeneous
    write_margins(tmp_path / "m.parquet", MarginsTable(margins[:400], annotator=labels[:400]))
    out = tmp_path / "made" / "c.json"
    arguments = ["compare", "--margins", str(tmp_path / "m.parquet"), "--num_samples", "100", "--output", str(out)]
    assert main([*arguments, "--families", "fixed_learned", "label_noise", "lognormal", "--drivers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "leaving out one annotator at a time" in shown
    assert "predicts a left-out annotator best" in shown
    record = json.loads(out.read_text())
    assert {row["model"] for row in record["levels"]["pair"]} == {"fixed_learned", "label_noise", "lognormal"}
    assert len(record["drivers"]["units"]) == 2
    one_level = ["--families", "fixed_learned", "lognormal", "--level", "annotator", "--drivers", "1", "--overwrite"]
    assert main([*arguments, *one_level]) == 0
    assert list(json.loads(out.read_text())["levels"]) == ["annotator"]
    assert main([*arguments, "--overwrite", "--level", "people"]) == 2
    assert "level='people'" in capsys.readouterr().err
    assert main(["compare", "--margins", str(tmp_path / "m.parquet"), "--beta", "0.02"]) == 2
    assert "--beta has no effect without --families" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["compare", "--margins", str(tmp_path / "m.parquet"), "--group_columns", "age"]) == 2
    assert "no column 'age'" in capsys.readouterr().err
