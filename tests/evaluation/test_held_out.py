from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralpref.data import MarginsTable
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import held_out_metrics, pair_scores
from pluralpref.inference import MonteCarlo
from pluralpref.models import FixedStrength, LogNormalStrength


def test_by_hand():
    margins = [2.0, -1.0, 0.0, 1.0]
    result = held_out_metrics(
        FixedStrength(0.5), margins, annotator=["a", "a", "a", "b"], groups={"topic": ["x", "y", "x", "y"]}
    )
    loss = sum(math.log1p(math.exp(-0.5 * h)) for h in margins) / 4
    assert result["log_loss"] == pytest.approx(loss)
    assert result["accuracy"] == 0.5
    assert result["ties"] == 0.25
    assert result["margins"] == pytest.approx(0.5)
    assert result["margins/macro"] == pytest.approx((1 / 3 + 1.0) / 2)
    assert result["accuracy/macro"] == pytest.approx((1 / 3 + 1.0) / 2)
    assert result["rewards/margins"] == pytest.approx(0.25)
    assert result["group/topic=x/margins"] == pytest.approx(1.0)
    assert result["group/topic=y/accuracy"] == pytest.approx(0.5)
    assert result["margins/macro/topic"] == pytest.approx(0.5)
    assert (result["pairs"], result["annotators"], result["beta/mean"]) == (4, 2, pytest.approx(0.5))


def test_weights_and_labels():
    plain = held_out_metrics(FixedStrength(0.5), [1.0, 1.0, -2.0])
    weighted = held_out_metrics(FixedStrength(0.5), [1.0, -2.0], weight=[2.0, 1.0])
    turned = held_out_metrics(FixedStrength(0.5), [-1.0, 2.0], weight=[2.0, 1.0], preferred=[0.0, 0.0])
    for name in ("log_loss", "accuracy", "margins", "ties"):
        assert plain[name] == pytest.approx(weighted[name])
        assert turned[name] == pytest.approx(weighted[name])
    soft = held_out_metrics(FixedStrength(0.5), [1.0], preferred=[0.75])
    assert soft["accuracy"] == 0.75
    assert soft["margins"] == pytest.approx(0.5)
    assert soft["log_loss"] == pytest.approx(0.75 * math.log1p(math.exp(-0.5)) + 0.25 * math.log1p(math.exp(0.5)))


def test_mixed_law_by_quadrature():
    u = torch.linspace(-12, 6, 4001, dtype=torch.float64)
    law = LogNormalStrength(mean=1.0, cv=1.0).law()
    p = (torch.sigmoid(-1.5 * u.exp()) * law.log_prob(u.exp()).exp() * u.exp()).sum() * (u[1] - u[0])
    assert held_out_metrics(law, [-1.5])["log_loss"] == pytest.approx(-float(p.detach().log()), rel=1e-8)


def test_monte_carlo_leaves_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    law = dist.Weibull(torch.tensor(1.0), torch.tensor(2.0))
    first = held_out_metrics(law, [0.3, -0.2])
    assert first == held_out_metrics(law, [0.3, -0.2])
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input():
    with pytest.raises(DataError, match=r"margins: 1 of 2 .*row 1: nan"):
        held_out_metrics(FixedStrength(0.5), [1.0, float("nan")])
    with pytest.raises(ConfigError, match="not float"):
        held_out_metrics(0.5, [1.0])
    with pytest.raises(DataError, match="topic has 1 entries"):
        held_out_metrics(FixedStrength(0.5), [1.0, 2.0], groups={"topic": ["x"]})
    with pytest.raises(ConfigError, match="one law for all pairs"):
        held_out_metrics(dist.Gamma(torch.ones(2), torch.ones(2)), [1.0, 2.0])


def random_choices(seed, pairs=60, people=7):
    generator = np.random.default_rng(seed)
    margins = np.round(generator.normal(0.5, 2, pairs), 1)
    margins[:3] = 0.0
    return {
        "margins": margins,
        "weight": generator.integers(0, 3, pairs) + 0.5,
        "annotator": [f"p{i}" for i in generator.integers(people, size=pairs)],
        "preferred": generator.choice([0.0, 1.0, 0.7], pairs),
        "groups": {"age": generator.choice(np.array(["young", "old", None], dtype=object), pairs)},
    }


def rows_of(choices, rows):
    picked = {name: [values[i] for i in rows] for name, values in choices.items() if name != "groups"}
    return picked | {"groups": {name: [values[i] for i in rows] for name, values in choices["groups"].items()}}


LAWS = {
    "fixed": FixedStrength(0.5),
    "lognormal": LogNormalStrength(mean=0.7, cv=1.2),
    "weibull": dist.Weibull(torch.tensor(1.0), torch.tensor(2.0)),
}


@pytest.mark.parametrize(
    ("law", "method"),
    [
        *((law, method) for law in LAWS.values() for method in ("auto", MonteCarlo(32))),
        (LAWS["lognormal"], MonteCarlo(32, "stratified")),
    ],
)
def test_metrics_know_nothing_of_the_order_of_rows(law, method):
    choices = random_choices(0)
    found = held_out_metrics(law, **choices, method=method)
    order = np.random.default_rng(1).permutation(60)
    assert held_out_metrics(law, **rows_of(choices, order), method=method) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("method", ["auto", MonteCarlo(32)])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_each_pair_scored_alone_or_in_shards_is_the_same(law, method):
    choices = random_choices(2)
    whole = pair_scores(law, **choices, method=method)
    parts = [
        pair_scores(law, **rows_of(choices, range(i, i + size)), method=method)
        for i, size in ((0, 1), (1, 19), (20, 40))
    ]
    for name in ("log_loss", "probability", "plug_in", "margin", "win", "tie"):
        assert np.concatenate([getattr(part, name) for part in parts]) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    choices = random_choices(3)
    law = LAWS["weibull"]
    whole = held_out_metrics(law, **choices, method=MonteCarlo(32))
    monkeypatch.setattr("pluralpref.evaluation.scores._MOST_VALUES", 7 * 32)
    assert held_out_metrics(law, **choices, method=MonteCarlo(32)) == pytest.approx(whole, rel=1e-12)


@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), each=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_macro_is_micro_where_groups_are_balanced(sizes, each, seed):
    people = len(sizes)
    margins = np.random.default_rng(seed).normal(size=people * each)
    who = np.repeat(np.arange(people), each)
    balanced = held_out_metrics(FixedStrength(0.5), margins, annotator=who, groups={"who": who})
    for name in ("margins", "accuracy", "log_loss"):
        assert balanced[f"{name}/macro"] == pytest.approx(balanced[name], rel=1e-12)
        assert balanced[f"{name}/macro/who"] == pytest.approx(balanced[name], rel=1e-12)
    # Balanced by weight is balanced too.
    who = np.repeat(np.arange(people), sizes)
    weight = np.concatenate([np.full(size, 1 / size) for size in sizes])
    margins = np.random.default_rng(seed).normal(size=len(who))
    balanced = held_out_metrics(FixedStrength(0.5), margins, annotator=who, weight=weight)
    assert balanced["log_loss/macro"] == pytest.approx(balanced["log_loss"], rel=1e-12)


def test_log_loss_macro_worst_groups_and_counts_by_hand():
    def loss(h):
        return math.log1p(math.exp(-h))

    result = held_out_metrics(
        FixedStrength(1.0),
        [2.0, -1.0, 0.5, 3.0],
        annotator=["a", "a", "a", "b"],
        groups={"age": ["old", None, "", "old"]},
    )
    assert result["log_loss/macro"] == pytest.approx(((loss(2) + loss(-1) + loss(0.5)) / 3 + loss(3)) / 2)
    old, missing = (loss(2) + loss(3)) / 2, (loss(-1) + loss(0.5)) / 2
    assert result["group/age=old/log_loss"] == pytest.approx(old)
    assert result["group/age=missing/log_loss"] == pytest.approx(missing)
    assert result["log_loss/macro/age"] == pytest.approx((old + missing) / 2)
    assert result["log_loss/worst/age"] == pytest.approx(missing)
    assert result["margins/worst/age"] == pytest.approx(-0.25)
    assert result["accuracy/worst/age"] == pytest.approx(0.5)
    assert result["brier"] == pytest.approx(sum((1 - 1 / (1 + math.exp(-h))) ** 2 for h in (2, -1, 0.5, 3)) / 4)
    counts = {"annotators": 2, "annotators/single_pair": 1, "pairs": 4}
    counts |= {"groups/age": 2, "groups/age/missing": 2, "groups/age/single_pair": 0}
    assert {name: result[name] for name in counts} == counts


def test_plug_in_is_left_out_without_a_mean():
    cauchy = dist.HalfCauchy(torch.tensor(1.0))
    result = held_out_metrics(cauchy, [1.0, -0.5])
    assert math.isinf(result["rewards/margins"])
    assert "brier/plug_in" not in result
    assert 0 < result["brier"] < 1
    fixed = held_out_metrics(FixedStrength(0.5), [1.0, -0.5], preferred=[0.3, 1.0])
    for name in ("brier", "log_loss"):
        assert fixed[f"{name}/plug_in"] == pytest.approx(fixed[name], rel=1e-6)


def test_groups_by_name():
    table = MarginsTable(torch.tensor([1.0, -1.0]), groups={"row": [0, 1], "age": ["old", None]})
    assert held_out_metrics(FixedStrength(0.5), table, groups=["age"])["group/age=missing/margins"] == -1
    assert not any("row" in name for name in held_out_metrics(FixedStrength(0.5), table))
    with pytest.raises(DataError, match=r"no column 'income'; its groups are row, age"):
        held_out_metrics(FixedStrength(0.5), table, groups=["income"])
    with pytest.raises(ConfigError, match="a list of names"):
        held_out_metrics(FixedStrength(0.5), table, groups="age")
