"""From intercepts to preference pairs, tables and files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from pluralpref.data.bridging import annotator_rows, bridging_pairs, factorize, intercept_bounds, item_rows, write_rows
from pluralpref.errors import ConfigError, DataError


@pytest.fixture
def fit(build):
    """Answers "0a" to "0c" and "1a", with intercepts set by hand; means 1/2, 1, 0 and 1/2."""
    cells = [("p", "0a", 1.0), ("q", "0a", 0.0), ("p", "0b", 1.0), ("q", "0b", 1.0), ("p", "0c", 0.0)]
    cells += [("q", "0c", 0.0), ("p", "1a", 0.0), ("q", "1a", 1.0)]
    found = factorize(build(cells))
    return _scored(found, [0.3, 0.2, 0.05, 0.9])


def _scored(fit, scores):
    return replace(fit, parameters=replace(fit.parameters, item_intercept=np.array(scores)))


def test_pairs_by_hand(fit):
    found = bridging_pairs(fit)
    rows = [(row["chosen"], row["rejected"], row["chosen_bridging"], row["rejected_bridging"]) for row in found.rows]
    assert rows == [("0a", "0b", 0.3, 0.2), ("0a", "0c", 0.3, 0.05), ("0b", "0c", 0.2, 0.05)]
    assert [row["weight"] for row in found.rows] == [pytest.approx(1 / 3)] * 3
    assert {row["prompt"] for row in found.rows} == {"0"}
    assert found.reversed == 1  # "0a" has the higher intercept and the lower mean
    assert found.equal_means == found.not_comparable == 0
    assert found.report.skipped == {"single_answer": 1}  # of the prompt "1"
    assert found.summary() == (
        "3 pairs of answers to 1 prompts; 1 left out: there are no two different answers to compare"
    )


def test_ties_and_equal_means(fit):
    found = bridging_pairs(fit, tie_threshold=0.1 + 1e-9)
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [("0a", "0c"), ("0b", "0c")]
    assert [row["weight"] for row in found.rows] == [0.5, 0.5]
    assert found.report.skipped == {"score_tie": 1, "single_answer": 1}
    # Within rounding: no pair at all unless asked for.
    close = _scored(fit, [0.3, 0.3 + 1e-8, 0.3, 0.0])
    with pytest.raises(DataError, match=r"no pair of answers is left: .*3 left out: the scores differ by no more than"):
        bridging_pairs(close)
    assert len(bridging_pairs(close, tie_threshold=0).rows) == 2
    with pytest.raises(ConfigError, match="tie_threshold=-1"):
        bridging_pairs(fit, tie_threshold=-1)


def test_equal_means_are_neither_order(build):
    fit = factorize(build([("p", "0a", 0.1), ("q", "0a", 0.2), ("p", "0b", 0.2), ("q", "0b", 0.1), ("q", "0c", 1.0)]))
    found = bridging_pairs(_scored(fit, [0.2, 0.1, 0.0]))
    assert (found.equal_means, found.reversed) == (1, 2)


def test_pairs_that_no_rating_connects(build):
    cells = [(who + side, f"0{side}", value) for side in "ab" for who, value in (("p", 1.0), ("q", 0.0))]
    cells += [("pa", "0c", 0.0), ("qa", "0c", 0.0)]
    with pytest.warns(match="fall into 2 groups"):
        fit = factorize(build(cells))
    found = bridging_pairs(fit)
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [("0a", "0c")]
    assert found.not_comparable == 2
    assert found.summary().endswith("2 left out: no rating connects the two answers")


def test_ranges(fit):
    low, high = np.array([[0.25, 0.15, 0.0, 0.8], [0.35, 0.26, 0.1, 1.0]])
    assert bridging_pairs(fit, bounds=(low, high)).separated == 2  # "0a" and "0b" overlap


def test_tables_and_files(fit, tmp_path):
    bounds = intercept_bounds(fit)
    items = item_rows(fit, bounds)
    assert [row["mean"] for row in items] == [0.5, 1, 0, 0.5]
    assert [row["ratings"] for row in items] == [2, 2, 2, 2]
    assert [row["intercept"] for row in items] == [0.3, 0.2, 0.05, 0.9]
    assert all(row["intercept_low"] <= row["intercept"] <= row["intercept_high"] for row in items)
    people = annotator_rows(fit)
    assert [(row["annotator"], row["ratings"], row["component"]) for row in people] == [("p", 4, 0), ("q", 4, 0)]
    assert people[0]["factor"] * people[1]["factor"] < 0
    path = tmp_path / "new" / "items.jsonl"
    write_rows(path, items)
    assert [json.loads(line) for line in path.read_text().splitlines()] == items
    write_rows(path.with_suffix(".parquet"), items)
    assert pyarrow.parquet.read_table(path.with_suffix(".parquet")).to_pylist() == items
    with pytest.raises(ConfigError, match=r"must end in .jsonl or .parquet"):
        write_rows(tmp_path / "items.txt", items)
    assert sorted(file.name for file in path.parent.iterdir()) == ["items.jsonl", "items.parquet"]
    with pytest.raises(TypeError):
        write_rows(path, [{"a": object()}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == items  # the old file is still there
