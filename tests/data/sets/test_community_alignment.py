"""Community Alignment: three pairs a turn."""

import csv

import pytest
from datasets import Dataset, DatasetDict

from pluralpref.data.sets.community_alignment import read_community_alignment
from pluralpref.errors import ConfigError, DataError

TURNS = ("first", "second", "third", "fourth")


def _turn(name, prompt=None, answers=(None,) * 4, preferred=None):
    columns = {f"{name}_turn_response_{letter}": text for letter, text in zip("abcd", answers, strict=True)}
    choice = {f"{name}_turn_preferred_response": preferred, f"{name}_turn_feedback": None}
    return {f"{name}_turn_prompt": prompt, **columns, **choice}


def _row(number="17", person="a42", **turns):
    row = {"conversation_id": number, "assigned_lang": "en", "annotator_id": person}
    for name in TURNS:
        row |= _turn(name, *turns.get(name, ()))
    return row | {
        "annotator_age": "18-34",
        "annotator_gender": "Female",
        "annotator_education_level": "Post-secondary graduate",
        "annotator_political": None,
        "annotator_ethnicity": "Asian",
        "annotator_country": "india",
        "is_pregenerated_first_prompt": True,
        "in_balanced_subset": False,
        "in_balanced_subset_10": False,
        "wave": 1,
    }


FULL = _row(
    first=("Plan my weekend", ("Hike.", "Read.", "Volunteer.<|end_of_text|>", "Rest."), "response_c"),
    second=("Shorter", ("Go", "Go", "", "Help"), "response_d"),
)


def _read(*rows, **options):
    return read_community_alignment(Dataset.from_list(list(rows)), **options)


def test_pairs_of_two_turns(brief):
    pairs, report = _read(FULL)
    third = pytest.approx(1 / 3)
    assert brief(pairs) == [
        ("Plan my weekend", "Volunteer.", "Hike.", third),
        ("Plan my weekend", "Volunteer.", "Read.", third),
        ("Plan my weekend", "Volunteer.", "Rest.", third),
        ("Shorter", "Help", "Go", 1.0),
    ]
    assert [m["content"] for m in pairs[3]["prompt"]] == ["Plan my weekend", "Volunteer.", "Shorter"]
    assert [m["role"] for m in pairs[3]["prompt"]] == ["user", "assistant", "user"]
    assert report.skipped == {"duplicate_answer": 1, "empty_answer": 1}
    assert report.notes == {"end_of_text": 1}
    assert (report.rows, report.choices, report.total) == (1, 2, 6)


def test_columns():
    row = _read(FULL)[0][3]
    assert {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")} == {
        "weight": 1.0,
        "annotator": "a42",
        "conversation": "17",
        "language": "en",
        "age": "18-34",
        "gender": "Female",
        "education": "Post-secondary graduate",
        "political": "unknown",
        "ethnicity": "Asian",
        "country": "india",
        "is_pregenerated_first_prompt": "true",
        "in_balanced_subset": "false",
        "turn": 1,
    }


ABCD = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("turns", "kept", "reasons"),
    [
        ({"first": ("q", ABCD, "response_a")}, 3, {}),
        ({}, 0, {"no_prompt": 1}),
        ({"first": ("q", ABCD, None)}, 0, {"no_choice": 1}),
        ({"first": ("q", ABCD, "response_e")}, 0, {"no_choice": 1}),
        ({"first": ("q", ABCD, "response_")}, 0, {"no_choice": 1}),
        ({"first": (None, ABCD, "response_a")}, 0, {"no_prompt": 1}),
        ({"first": ("q", ("A", "A", "A", "B"), "response_a")}, 1, {"tie": 2}),
        ({"first": ("q", ("<|end_of_text|>", "A", "B", "C"), "response_a")}, 0, {"empty_answer": 3}),
        # After a turn without a choice, without a prompt, or that isn't there, nobody knows what was said.
        ({"first": ("q", ABCD, None), "second": ("r", ABCD, "response_a")}, 0, {"no_choice": 1, "history": 1}),
        ({"first": (None, ABCD, "response_a"), "second": ("r", ABCD, "response_a")}, 0, {"no_prompt": 1, "history": 1}),
        ({"first": ("q", ABCD, "response_b"), "third": ("r", ABCD, "response_a")}, 3, {"history": 1}),
        (dict.fromkeys(TURNS, ("q", ABCD, "response_d")), 12, {}),
    ],
)
def test_turns_that_cannot_be_used(turns, kept, reasons):
    pairs, report = _read(_row(**turns), FULL)
    assert len(pairs) == kept + 4
    own = dict(report.skipped)
    for reason in ("duplicate_answer", "empty_answer"):  # those of the second row
        own[reason] -= 1
    assert {reason: count for reason, count in own.items() if count} == reasons
    assert report.total == len(pairs) + sum(report.skipped.values())


def test_first_turns_only_need_the_first_turns_columns():
    first = {name: value for name, value in FULL.items() if not name.startswith(TURNS[1:])}
    pairs, report = _read(first, turns="first")
    assert pairs["turn"][:] == [0, 0, 0]
    assert not report.skipped
    with pytest.raises(DataError, match="missing 'second_turn_prompt', 'second_turn_response_a'"):
        _read(first)


def test_nobody_named():
    pairs, report = _read(FULL, _row(person=None, first=("q", ABCD, "response_a")))
    assert len(pairs) == 4
    assert report.skipped["no_annotator"] == 1


def test_csv_keeps_text(tmp_path, brief):
    row = _row(number="007", person="0042", first=("q", ("NA", "None", "42", "x, y\nz"), "response_a"))
    path = tmp_path / "ca" / "community_alignment.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    for source in (path, str(path), path.parent):
        pairs, report = read_community_alignment(source)
        assert [pair[1:3] for pair in brief(pairs)] == [("NA", "None"), ("NA", "42"), ("NA", "x, y\nz")]
        assert (pairs[0]["annotator"], pairs[0]["conversation"]) == ("0042", "007")
        assert pairs[0]["is_pregenerated_first_prompt"] == "true"
        assert pairs[0]["political"] == "unknown"
        assert not report.skipped
    with pytest.raises(ConfigError, match=r"split='filtered'.*single file"):
        read_community_alignment(path, split="filtered")


def test_wrong_columns_and_options():
    with pytest.raises(
        DataError, match=r"not the columns of facebook/community-alignment-dataset: missing .*; there are prompt"
    ):
        _read({"prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(ConfigError, match="turns='second': choose 'all', 'first'"):
        _read(FULL, turns="second")
    both = DatasetDict(full=Dataset.from_list([FULL]), filtered=Dataset.from_list([FULL]))
    with pytest.raises(ConfigError, match="several splits"):
        read_community_alignment(both)
    assert len(read_community_alignment(both, split="filtered")[0]) == 4


def test_a_list_where_text_is_expected():
    row = {**FULL, "first_turn_prompt": ["q"]}
    with pytest.raises(DataError, match="row 0: column 'first_turn_prompt' is a list; expected text"):
        _read(row)
