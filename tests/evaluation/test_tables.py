from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pluralpref.errors import DataError
from pluralpref.evaluation import bootstrap_intervals, group_table, pair_scores, per_annotator_table, worst_groups
from pluralpref.models import FixedStrength


def some_scores(**more):
    return pair_scores(
        FixedStrength(1.0),
        [1.0, -2.0, 0.0, 3.0, -1.0],
        annotator=["b", "a", "b", "a", "c"],
        weight=[1.0, 1.0, 3.0, 1.0, 0.0],
        groups={"age": ["old", None, "old", float("nan"), " "], "topic": ["x", "x", "y", "z", "z"]},
        **more,
    )


def test_people_by_hand():
    table = per_annotator_table(some_scores())
    assert table.index.tolist() == ["b", "a", "c"]
    assert table["pairs"].tolist() == [2, 2, 1]
    assert table["single_pair"].tolist() == [False, False, True]
    assert table.loc["b", ["margins", "accuracy", "ties"]].tolist() == [0.25, 0.25, 0.75]
    assert table.loc["a", "margins"] == 0.5
    assert np.isnan(table.loc["c", "margins"])  # no weight
    expected = (3 * np.log(2) + np.log1p(np.exp(-1))) / 4
    assert table.loc["b", "log_loss"] == pytest.approx(expected)


def test_groups_missing_comes_last_and_single_pairs_are_flagged():
    scores = some_scores()
    table = group_table(scores, "age")
    assert table.index.tolist() == ["old", "missing"]
    assert table["pairs"].tolist() == [2, 3]
    assert table["annotators"].tolist() == [1, 2]
    assert table.loc["missing", "margins"] == 0.5
    topics = group_table(scores, "topic", bootstrap_intervals(scores, num_resamples=100))
    assert topics["single_pair"].tolist() == [False, True, False]
    assert topics.loc["y", "margins"] == 0
    assert np.isnan(topics.loc["y", "margins_low"])  # one annotator
    assert topics.loc["x", "accuracy_low"] <= topics.loc["x", "accuracy"] <= topics.loc["x", "accuracy_high"]
    with pytest.raises(DataError, match=r"no group column 'income'; there are age, topic"):
        group_table(scores, "income")


def test_worst_groups_have_names():
    worst = worst_groups(some_scores())
    assert worst.loc[("topic", "margins"), "group"] == "x"
    assert worst.loc[("topic", "accuracy"), ["group", "value", "pairs", "single_pair"]].tolist() == ["y", 0.0, 1, True]
    assert worst.loc[("topic", "log_loss"), "group"] == "x"
    assert isinstance(worst, pd.DataFrame)
    assert worst_groups(pair_scores(FixedStrength(1.0), [1.0])).empty


def test_annotators_are_needed():
    with pytest.raises(DataError, match="needs annotators"):
        per_annotator_table(pair_scores(FixedStrength(1.0), [1.0]))
    with pytest.raises(DataError, match=r"annotator: 1 of 2 labels are missing, the first in row 1"):
        pair_scores(FixedStrength(1.0), [1.0, 2.0], annotator=["a", None])
