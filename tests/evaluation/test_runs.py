from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pluralpref.data import MarginsTable
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import bootstrap_intervals, compare_runs, metrics_of, pair_scores
from pluralpref.evaluation.bootstrap import resamples
from pluralpref.models import FixedStrength

LAW = FixedStrength(0.5)


def table(margins, rows=None, **more):
    size = len(margins)
    groups = {"age": [("old", "young", None)[i % 3] for i in range(size)]}
    if rows is not None:
        groups["row"] = list(rows)
    columns = {"annotator": [f"p{i % 6}" for i in range(size)], "groups": groups} | more
    return MarginsTable(torch.as_tensor(np.array(margins)), **columns)


def shuffled(source, order):
    return MarginsTable(
        source.margins[order],
        annotator=[source.annotator[i] for i in order],
        groups={name: [values[i] for i in order] for name, values in source.groups.items()},
    )


@pytest.fixture
def two():
    generator = np.random.default_rng(0)
    first = generator.normal(0.5, 2, 40)
    return first, first + generator.normal(0.3, 0.1, 40)


def test_differences_are_those_inside_of_each_resample(two):
    runs = {
        name: pair_scores(LAW, table(margins, range(40)), groups=["age"])
        for name, margins in zip("ab", two, strict=True)
    }
    found = compare_runs(runs, num_resamples=100, seed=3)
    assert found.attrs["reference"] == "a"
    assert found.attrs["matched_by"] == "key"
    assert found.attrs["num_clusters"] == 6
    metrics = {name: metrics_of(scores) for name, scores in runs.items()}
    for metric in ("log_loss", "accuracy/macro", "margins/macro/age", "group/age=missing/accuracy"):
        row = found.loc[("b", metric)]
        assert row["value"] == pytest.approx(metrics["b"][metric])
        assert row["difference"] == pytest.approx(metrics["b"][metric] - metrics["a"][metric])
    sums = {name: np.bincount(np.arange(40) % 6, margins) for name, margins in zip("ab", two, strict=True)}
    sizes = np.bincount(np.arange(40) % 6)
    draws = next(resamples(6, 100, seed=3))
    differences = (sums["b"] - sums["a"]) @ draws / (sizes @ draws)
    assert found.loc[("b", "margins"), "standard_error"] == pytest.approx(differences.std(ddof=1))
    tail = stats.norm.cdf(np.sqrt(6 / 5) * stats.t.ppf(0.025, 5))
    assert found.loc[("b", "margins"), "low"] == pytest.approx(np.quantile(differences, tail))
    # Pairing is what makes the interval short.
    alone = bootstrap_intervals(runs["b"], ["margins"], num_resamples=100, seed=3)
    assert found.loc[("b", "margins"), "standard_error"] < alone.loc["margins", "standard_error"] / 2


def test_a_run_against_itself_under_two_laws_and_in_another_order(two):
    order = np.random.default_rng(5).permutation(40)
    first = table(two[0], range(40))
    runs = {
        "a": pair_scores(LAW, first),
        "shuffled": pair_scores(LAW, shuffled(first, order)),
        "other law": pair_scores(FixedStrength(2.0), first),
    }
    found = compare_runs(runs, num_resamples=100)
    same = found.loc["shuffled"]
    assert same[["difference", "low", "high"]].abs().to_numpy().max() < 1e-12
    other = found.loc["other law"]
    assert abs(other.loc["margins", "difference"]) < 1e-12
    assert other.loc["log_loss", "low"] != other.loc["log_loss", "high"]
    turned = {name: runs[name] for name in ("shuffled", "other law")}
    again = compare_runs(turned, num_resamples=100).loc["other law"]
    columns = ["difference", "low", "high", "standard_error"]
    assert again[columns].to_numpy() == pytest.approx(other[columns].to_numpy(), rel=1e-9, abs=1e-12)


def test_pairs_as_clusters_whatever_the_order(two):
    bare = [MarginsTable(torch.as_tensor(m), groups={"row": list(range(40))}) for m in two]
    found = compare_runs({n: pair_scores(LAW, t) for n, t in zip("ab", bare, strict=True)}, num_resamples=100)
    assert found.attrs["cluster"] == "pair"
    order = np.random.default_rng(5).permutation(40)
    moved = [MarginsTable(t.margins[order], groups={"row": order.tolist()}) for t in bare]
    again = compare_runs({n: pair_scores(LAW, t) for n, t in zip("ab", moved, strict=True)}, num_resamples=100)
    assert again.to_numpy() == pytest.approx(found.to_numpy(), rel=1e-9, abs=1e-12)


def test_matching_by_order(two):
    runs = {name: pair_scores(LAW, table(margins)) for name, margins in zip("ab", two, strict=True)}
    assert compare_runs(runs, ["margins"], num_resamples=100).attrs["matched_by"] == "order"


def test_other_pairs_are_refused(two):
    first = pair_scores(LAW, table(two[0], range(40)), groups=["age"])

    def refused(message, other, **more):
        with pytest.raises(DataError, match=message):
            compare_runs({"a": first, "b": pair_scores(LAW, other, **({"groups": ["age"]} | more))})

    refused(
        r"1 pairs of run 'a' aren't in run 'b' \(0\); 1 of run 'b' aren't in run 'a' \(40\): score both on the same",
        shuffled(table(two[1], range(1, 41)), np.arange(40)),
    )
    refused(r"4 pairs of run 'a' aren't in run 'b' \(36, 37, 38, …\)", table(two[1][:36], range(36)))
    refused(r"run 'b': rows 0 and 1 have the same key 5: a key must name one pair", table(two[1], [5, 5, *range(38)]))
    refused(r"run 'a' has keys of its pairs \(column 'row'\) and run 'b' has none", table(two[1]))
    refused(
        r"aren't on the same pairs: annotator differs in 40 of 40; for the pair of row 0 of run 'a' it is 'p0' and 'q'",
        table(two[1], range(40), annotator=["q"] * 40),
    )
    refused(
        "weight differs in 1 of 40; for the pair of row 2 of run 'a' it is 1.0 and 2.0",
        table(two[1], range(40), weight=[1.0, 1.0, 2.0, *[1.0] * 37]),
    )
    refused("preferred differs in 40 of 40", table(two[1], range(40), preferred=[0.0] * 40))
    refused("run 'a' has annotator and run 'b' has not", table(two[1], range(40), annotator=None))
    refused("run 'a' has age and run 'b' has not", table(two[1], range(40)), groups=[])
    short = {"a": pair_scores(LAW, table(two[0])), "b": pair_scores(LAW, table(two[1][:9]))}
    with pytest.raises(DataError, match="run 'b' has 9 pairs and run 'a' has 40"):
        compare_runs(short)


def test_bad_options(two):
    first = pair_scores(LAW, table(two[0], range(40)))
    with pytest.raises(ConfigError, match="at least two runs, got 1"):
        compare_runs({"a": first})
    with pytest.raises(ConfigError, match="num_resamples=1:"):
        compare_runs({"a": first, "b": first}, num_resamples=1)
    with pytest.raises(ConfigError, match="no interval of a metric 'win'"):
        compare_runs({"a": first, "b": first}, ["win"])
    with pytest.raises(DataError, match="key: the table has no column 'pair_id'; its groups are age, row"):
        pair_scores(LAW, table(two[0], range(40)), key="pair_id")
    with pytest.raises(DataError, match="key has 2 entries but there are 40 margins"):
        pair_scores(LAW, table(two[0]), key=[1, 2])
