from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import PairScores, bootstrap_intervals, metrics_of, pair_scores
from pluralpref.evaluation.bootstrap import resamples
from pluralpref.models import FixedStrength, LogNormalStrength

LAW = FixedStrength(0.5)


def panel(seed=0, people=12, **more):
    generator = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), generator.integers(1, 6, people))
    data = {
        "margins": generator.normal(0.5, 2, len(who)),
        "annotator": [f"p{i}" for i in who],
        "weight": generator.integers(1, 4, len(who)) / 2,
        "groups": {"topic": generator.choice(["x", "y", "z"], len(who))},
    }
    return data | more


def taken(data, rows):
    out = {name: [values[i] for i in rows] for name, values in data.items() if name != "groups"}
    return out | {"groups": {name: [values[i] for i in rows] for name, values in data["groups"].items()}}


def test_each_resample_is_the_metrics_of_the_rows_drawn():
    """The vectorised sums against metrics of a data set in which the drawn people were written out."""
    data = panel()
    names = sorted(set(data["annotator"]))
    draws = next(resamples(12, 100, seed=5))
    assert draws.shape == (12, 100)
    assert (draws.sum(0) == 12).all()
    columns = {}
    for b in range(100):
        rows, copies = [], []
        for name, times in zip(names, draws[:, b].astype(int), strict=True):
            for copy in range(times):
                own = [i for i, label in enumerate(data["annotator"]) if label == name]
                rows += own
                copies += [f"{name}/{copy}"] * len(own)
        written = taken(data, rows) | {"annotator": copies}
        found = metrics_of(pair_scores(LAW, **written))
        for metric, value in found.items():
            columns.setdefault(metric, []).append(value)
    table = bootstrap_intervals(pair_scores(LAW, **data), num_resamples=100, seed=5)
    weights = {}
    for name, weight in zip(data["annotator"], data["weight"], strict=True):
        weights[name] = weights.get(name, 0) + weight
    assert min(weights.values()) > 0  # otherwise the two draw from different lists
    for metric in ("log_loss", "accuracy/macro", "log_loss/macro", "margins/macro/topic", "brier", "rewards/margins"):
        assert table.loc[metric, "standard_error"] == pytest.approx(np.std(columns[metric], ddof=1), rel=1e-9), metric
    assert table.loc["group/topic=x/accuracy", "resamples"] == len(columns["group/topic=x/accuracy"])
    clusters = 12
    tail = stats.norm.cdf(np.sqrt(clusters / 11) * stats.t.ppf(0.025, 11))
    assert table.loc["margins", ["low", "high"]].tolist() == pytest.approx(
        np.quantile(columns["margins"], [tail, 1 - tail]).tolist()
    )


def test_values_are_those_of_the_metrics_and_order_changes_nothing():
    data = panel(1, weight=np.random.default_rng(9).integers(0, 3, len(panel(1)["margins"])).astype(float))
    scores = pair_scores(LAW, **data)
    metrics = metrics_of(scores)
    rows = np.random.default_rng(3).permutation(scores.num_pairs)
    for without in ({}, {"annotator": None}):
        table = bootstrap_intervals(pair_scores(LAW, **(data | without)), num_resamples=200)
        for metric, value in table["value"].items():
            assert value == pytest.approx(metrics[metric], rel=1e-12)
        again = bootstrap_intervals(pair_scores(LAW, **(taken(data, rows) | without)), num_resamples=200)
        assert again.loc[table.index].to_numpy() == pytest.approx(table.to_numpy(), rel=1e-9, nan_ok=True)
        assert again.attrs == table.attrs


def test_pairs_of_weight_0_are_as_if_not_there():
    data = panel(2)
    more = {name: [*values, *values[:4]] for name, values in data.items() if name != "groups"}
    more["annotator"][-4:] = ["p0", "nobody", "nobody", "p3"]
    more["weight"][-4:] = [0.0] * 4
    more["groups"] = {"topic": [*data["groups"]["topic"], "x", "w", "w", "y"]}
    plain = bootstrap_intervals(pair_scores(LAW, **data), num_resamples=100)
    padded = bootstrap_intervals(pair_scores(LAW, **more), num_resamples=100)
    assert padded.index.tolist() == plain.index.tolist()
    assert padded.to_numpy() == pytest.approx(plain.to_numpy(), rel=1e-9, nan_ok=True)


def test_other_clusters():
    data = panel(4)
    # Annotators inside of teams: copies of a team are copies of its people.
    team = [f"t{int(name[1:]) // 3}" for name in data["annotator"]]
    nested = bootstrap_intervals(pair_scores(LAW, **data, cluster=team), num_resamples=100)
    assert nested.attrs["num_clusters"] == 4
    assert nested.loc["log_loss/macro", "clusters"] == 4
    # An annotator in several conversations is a fixed one, whose mean is taken anew.
    talk = np.arange(len(team)) % 5
    crossed = bootstrap_intervals(pair_scores(LAW, **data, cluster=talk), num_resamples=100, seed=7)
    draws = next(resamples(5, 100, seed=7))
    scores = pair_scores(LAW, **data)
    means = []
    for b in range(100):
        weight = scores.weight * draws[talk, b]
        keep = weight > 0
        who = np.array(data["annotator"])[keep]
        each = [np.average(scores.margin[keep][who == a], weights=weight[keep][who == a]) for a in set(who)]
        means.append(np.mean(each))
    assert crossed.loc["margins/macro", "standard_error"] == pytest.approx(np.std(means, ddof=1))
    with pytest.raises(DataError, match=r"cluster: 1 of \d+ labels are missing, the first in row 0"):
        pair_scores(LAW, **data, cluster=[None, *team[1:]])


def test_generators_are_left_alone_and_seeds_matter():
    scores = pair_scores(LAW, **panel())
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = bootstrap_intervals(scores, ["margins"], num_resamples=100)
    assert first.equals(bootstrap_intervals(scores, ["margins"], num_resamples=100))
    assert not first.equals(bootstrap_intervals(scores, ["margins"], num_resamples=100, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


def test_blocks_of_resamples_change_no_value(monkeypatch):
    scores = pair_scores(LAW, **panel())
    monkeypatch.setattr("pluralpref.evaluation.bootstrap._MOST_VALUES", 12 * 30)
    blocks = [block.shape[1] for block in resamples(12, 100, seed=0)]
    assert blocks == [30, 30, 30, 10]
    table = bootstrap_intervals(scores, num_resamples=100)
    assert (table.loc[["margins", "log_loss/macro"], "resamples"] == 100).all()


def test_bad_input():
    scores = pair_scores(LAW, **panel())
    with pytest.raises(ConfigError, match="level=95"):
        bootstrap_intervals(scores, level=95)
    with pytest.raises(ConfigError, match="num_resamples=10"):
        bootstrap_intervals(scores, num_resamples=10)
    with pytest.raises(ConfigError, match="no interval of a metric 'win'; there are log_loss"):
        bootstrap_intervals(scores, ["win"])
    with pytest.raises(ConfigError, match="no interval of a worst group"):
        bootstrap_intervals(scores, ["margins/worst/topic"])
    with pytest.raises(DataError, match="at least two clusters"):
        bootstrap_intervals(pair_scores(LAW, [1.0, 2.0], annotator=["a", "a"]))


#: Two kinds of people, as many of one as of the other: mean of the margin (its spread is 1) and how often they choose.
KINDS = ((-0.3, 2), (1.2, 8))


def people(generator, count):
    kind = generator.integers(2, size=count)
    sizes = 1 + generator.poisson(np.array([n for _, n in KINDS])[kind] - 1)
    who = np.repeat(np.arange(count), sizes)
    own = np.array([mean for mean, _ in KINDS])[kind] + generator.normal(0, 0.5, count)
    return own[who] + generator.normal(0, np.sqrt(0.75), len(who)), who


def truths():
    """Micro and macro means in the population: each kind's margin is normal with variance 1."""
    x = np.linspace(-12, 12, 20_001)
    weight = {"micro": [n / sum(n for _, n in KINDS) for _, n in KINDS], "macro": [0.5, 0.5]}
    per_kind = {
        "margins": [mean for mean, _ in KINDS],
        "accuracy": [stats.norm.cdf(mean) for mean, _ in KINDS],
        "log_loss": [np.sum(stats.norm.pdf(x) * np.logaddexp(0, -(mean + x))) * (x[1] - x[0]) for mean, _ in KINDS],
    }
    return {
        name + ("" if level == "micro" else "/macro"): float(np.dot(share, values))
        for name, values in per_kind.items()
        for level, share in weight.items()
    }


def scored(margins, who):
    """As by ``pair_scores`` with beta = 1, without the cost of asking for it hundreds of times."""
    ones = np.ones(len(margins))
    return PairScores(
        margins, ones, ones, np.logaddexp(0, -margins), expit(margins), 1.0, who, tuple(range(who.max() + 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("count", "level"), [(150, 0.95), (150, 0.8), (15, 0.9)])
def test_coverage_of_clustered_intervals(count, level):
    repetitions = 600
    truth, generator = truths(), np.random.default_rng(count)
    held = dict.fromkeys(truth, 0)
    for repetition in range(repetitions):
        scores = scored(*people(generator, count))
        table = bootstrap_intervals(scores, list(truth), level=level, num_resamples=1000, seed=repetition)
        for name, value in truth.items():
            held[name] += bool(table.loc[name, "low"] <= value <= table.loc[name, "high"])
    # Two in a thousand for each of the six, if the intervals hold what they say; with few people what is left of the
    # bootstrap's error in skewness is allowed for.
    slack = 0.0 if count > 100 else 0.02
    low = stats.binom.ppf(0.001, repetitions, level - slack)
    high = stats.binom.ppf(0.999, repetitions, level + slack)
    assert all(low <= number <= high for number in held.values()), {k: v / repetitions for k, v in held.items()}


def test_intervals_that_take_pairs_for_independent_do_not_cover():
    """What clusters are for: the same data without annotators."""
    truth, generator = truths()["margins"], np.random.default_rng(1)
    held = {"annotator": 0, "pair": 0}
    for repetition in range(100):
        margins, who = people(generator, 60)
        scores = scored(margins, who)
        alone = PairScores(margins, scores.preferred, scores.weight, scores.log_loss, scores.probability, 1.0)
        for each in (scores, alone):
            table = bootstrap_intervals(each, ["margins"], num_resamples=200, seed=repetition)
            held[table.attrs["cluster"]] += bool(table["low"].iloc[0] <= truth <= table["high"].iloc[0])
    assert held["annotator"] >= stats.binom.ppf(0.001, 100, 0.95)
    assert held["pair"] < stats.binom.ppf(0.001, 100, 0.95)


def test_brier_and_plug_in_have_intervals():
    law = LogNormalStrength(mean=1.0, cv=1.0)
    table = bootstrap_intervals(pair_scores(law, **panel()), num_resamples=100)
    for name in ("brier", "brier/plug_in", "log_loss/plug_in"):
        assert table.loc[name, "low"] < table.loc[name, "value"] < table.loc[name, "high"]
