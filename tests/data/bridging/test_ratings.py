"""From preferences and tables to ratings, and which of them are kept."""

from __future__ import annotations

import pytest
from datasets import Dataset

from pluralpref.data.bridging import load_ratings, ratings_from_preferences, ratings_from_table, with_enough_ratings
from pluralpref.errors import ConfigError, DataError

TIE_ONLY = "no row can be used: 0 of 1 rows used; 1 skipped: chosen and rejected are the same"


def _pair(who, chosen, rejected, prompt="q", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator": who, **more}


def _cells(ratings):
    return {
        (ratings.annotators[u], ratings.items[n].answer): (pytest.approx(value), pytest.approx(weight))
        for u, n, value, weight in zip(ratings.rater, ratings.item, ratings.value, ratings.weight, strict=True)
    }


def test_chosen_is_one_and_rejected_is_zero():
    ratings, report = ratings_from_preferences(
        Dataset.from_list([_pair("ann", "x", "y"), _pair("bob", "y", "x"), _pair("ann", "x", "z", prompt="other")])
    )
    assert ratings.annotators == ("ann", "bob")
    assert [tuple(item) for item in ratings.items] == [("other", "x"), ("other", "z"), ("q", "x"), ("q", "y")]
    found = list(zip(ratings.rater, ratings.item, ratings.value, ratings.weight, strict=True))
    assert found == [(0, 0, 1, 1), (0, 1, 0, 1), (0, 2, 1, 1), (1, 2, 0, 1), (0, 3, 0, 1), (1, 3, 1, 1)]
    assert ratings.per_item().tolist() == [1, 1, 2, 2]
    assert ratings.item_means().tolist() == [1, 0, 0.5, 0.5]
    assert report.kept == 3


def test_soft_labels_weights_and_several_comparisons():
    rows = [
        _pair("ann", "x", "y", preferred=0.8, weight=1.0),
        _pair("ann", "z", "x", preferred=1.0, weight=3.0),
        _pair("ann", "x", "y", preferred=0.5, weight=0.0),
        _pair("bob", "x", "y", preferred=0.4, weight=0.5),
        _pair("bob", "x", "y", preferred=0.4, weight=0.5),
    ]
    ratings, _ = ratings_from_preferences(Dataset.from_list(rows))
    assert _cells(ratings) == {
        ("ann", "x"): (0.2, 4.0),  # (1 · 0.8 + 3 · 0) / 4
        ("ann", "y"): (0.2, 1.0),
        ("ann", "z"): (1.0, 3.0),
        ("bob", "x"): (0.4, 1.0),
        ("bob", "y"): (0.6, 1.0),
    }
    assert ratings.dropped == {"zero_weight": 2}
    assert ratings.item_means() == pytest.approx([(4 * 0.2 + 0.4) / 5, (0.2 + 0.6) / 2, 1])


def test_messages_numbers_and_transcripts():
    def said(text):
        return [{"role": "assistant", "content": text}]

    question = [{"role": "user", "content": "q"}]
    explicit, _ = ratings_from_preferences(
        Dataset.from_list([_pair(7, said("x"), said("y"), prompt=question), _pair(8, said("y"), said("x"), question)])
    )
    assert explicit.annotators == ("7", "8")
    assert [tuple(item) for item in explicit.items] == [(question, said("x")), (question, said("y"))]
    implicit = [{"chosen": question + said("x"), "rejected": question + said("y"), "annotator": "ann"}]
    assert ratings_from_preferences(Dataset.from_list(implicit))[0].items == explicit.items
    start = "\n\nHuman: q\n\nAssistant:"
    transcripts = Dataset.from_list([{"chosen": f"{start} x", "rejected": f"{start} y", "annotator": "ann"}])
    assert [tuple(i) for i in ratings_from_preferences(transcripts)[0].items] == [(start, " x"), (start, " y")]
    assert ratings_from_preferences(transcripts, hh_format="chat")[0].items == explicit.items


def test_rows_that_give_no_rating_are_counted():
    rows = [
        _pair("ann", "x", "y"),
        _pair("ann", "x", "x"),
        _pair("ann", "", "x"),
        _pair("ann", "xy", "xz", prompt=None),
    ]
    ratings, report = ratings_from_preferences(Dataset.from_list(rows))
    assert len(ratings) == 2
    assert report.skipped == {"tie": 1, "empty_answer": 1, "no_prompt": 1}
    assert report.examples["no_prompt"] == [3]
    with pytest.raises(DataError, match=TIE_ONLY):
        ratings_from_preferences(Dataset.from_list(rows[1:2]))


def test_preferences_that_are_refused():
    pair = _pair("ann", "x", "y")
    with pytest.raises(DataError, match="no column 'annotator': bridging needs to know who"):
        ratings_from_preferences(Dataset.from_list([pair]).remove_columns("annotator"))
    for missing in (None, ""):
        with pytest.raises(DataError, match="row 1: column 'annotator' is empty"):
            ratings_from_preferences(Dataset.from_list([pair, pair | {"annotator": missing}]))
    with pytest.raises(DataError, match=r"row 0: column 'preferred' is 1\.5"):
        ratings_from_preferences(Dataset.from_list([pair | {"preferred": 1.5}]))
    with pytest.raises(DataError, match="no rating has a weight"):
        ratings_from_preferences(Dataset.from_list([pair | {"weight": 0.0}]))
    with pytest.raises(ConfigError, match="hh_format='chat' has no effect"):
        ratings_from_preferences(Dataset.from_list([pair]), hh_format="chat")
    with pytest.raises(ConfigError, match="hh_format='xml': choose"):
        ratings_from_preferences(Dataset.from_list([pair]), hh_format="xml")


RATED = {"annotator": "ann", "prompt": "q", "answer": "x", "rating": 0.5}


@pytest.mark.parametrize("column", ["answer", "completion"])
def test_table_of_ratings(column):
    rows = [RATED, RATED | {"rating": 1.0, "weight": 3.0}, RATED | {"annotator": "bob", "rating": 0.0}]
    rows = [{"weight": 1.0, **row, column: row["answer"]} for row in rows]
    table = Dataset.from_list(rows).select_columns(["annotator", "prompt", column, "rating", "weight"])
    ratings, report = ratings_from_table(table)
    assert _cells(ratings) == {("ann", "x"): (0.875, 4.0), ("bob", "x"): (0.0, 1.0)}  # (0.5 + 3 · 1) / 4
    assert report.kept == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": 1.01}, r"row 1: column 'rating' is 1.01; expected a number in \[0, 1\]"),
        ({"rating": -0.1}, "row 1: column 'rating' is -0.1"),
        ({"rating": float("nan")}, "row 1: column 'rating' is nan"),
        ({"rating": None}, "row 1: column 'rating' is None"),
        ({"annotator": None}, "row 1: column 'annotator' is empty"),
        ({"prompt": None}, "row 1: column 'prompt' is empty"),
        ({"answer": ""}, "row 1: column 'answer' is empty"),
        ({"weight": -1.0}, "row 1: column 'weight' is -1.0; expected a finite number of at least 0"),
    ],
)
def test_bad_rating(change, message):
    with pytest.raises(DataError, match=message):
        ratings_from_table(Dataset.from_list([{"weight": 1.0, **RATED}, {"weight": 1.0, **RATED} | change]))


def test_bad_table(tmp_path):
    table = Dataset.from_list([RATED])
    for column in ("annotator", "prompt", "answer", "rating"):
        with pytest.raises(DataError, match=f"no column '{column}'"):
            ratings_from_table(table.remove_columns(column))
    with pytest.raises(DataError, match="'answer' and a column 'completion'"):
        ratings_from_table(table.add_column("completion", ["x"]))
    with pytest.raises(DataError, match="the ratings have no rows"):
        ratings_from_table(table.select([]))
    with pytest.raises(DataError, match="row 0: column 'rating' is 'good'"):
        ratings_from_table(Dataset.from_list([RATED | {"rating": "good"}]))
    path = tmp_path / "ratings.csv"
    path.write_text("annotator,prompt,answer,rating\n007,q,NA,0.25\n007,q,42,1\n")
    ratings, _ = ratings_from_table(load_ratings(path))
    assert _cells(ratings) == {("007", "NA"): (0.25, 1.0), ("007", "42"): (1.0, 1.0)}


def test_enough_ratings_by_hand(build):
    cells = [(who, answer, 1.0) for who in ("p", "q") for answer in ("0a", "0b")]
    # "1a" was rated by one person. Without it r and s have one rating each, both of "1b".
    cells += [("r", "1a", 0.0), ("r", "1b", 0.0), ("s", "1b", 0.0)]
    kept = with_enough_ratings(build(cells))
    assert kept.annotators == ("p", "q")
    assert [item.answer for item in kept.items] == ["0a", "0b"]
    assert kept.dropped == {"few_annotators": 1, "few_answers": 2}
    everything = with_enough_ratings(build(cells), min_ratings_per_item=1, min_ratings_per_annotator=1)
    assert len(everything) == 7
    assert everything.dropped == {}
    with pytest.raises(DataError, match="no rating is left: 7 are of answers that too few people rated; lower"):
        with_enough_ratings(build(cells), min_ratings_per_item=3)
    with pytest.raises(ConfigError, match="min_ratings_per_item=0: must be at least 1"):
        with_enough_ratings(build(cells), min_ratings_per_item=0)


def test_nothing_to_bridge(build):
    ratings = build([("p", "0a", 1.0), ("p", "0b", 0.0), ("q", "1a", 1.0), ("q", "1b", 0.0)])
    for least in (1, 2):
        with pytest.raises(DataError, match="each of the 4 answers was rated by one person only, so nothing"):
            with_enough_ratings(ratings, min_ratings_per_item=least)
