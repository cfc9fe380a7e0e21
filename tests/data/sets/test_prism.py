"""PRISM: turns, pair rules, scores, the survey."""

import math

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from pluralpref.data.sets.prism import read_prism
from pluralpref.errors import ConfigError, DataError


def _user(turn, content):
    return {"turn": turn, "role": "user", "content": content}


def _model(turn, content, score, chosen=False, within=0):
    return {
        "turn": turn,
        "role": "model",
        "content": content,
        "model_provider": "openai",
        "model_name": "m",
        "score": score,
        "if_chosen": chosen,
        "within_turn_id": within,
    }


def _conversation(number, person, *history):
    return {
        "conversation_id": f"c{number}",
        "user_id": person,
        "conversation_type": "unguided",
        "opening_prompt": "?",
        "conversation_turns": 1,
        "conversation_history": list(history),
        "open_feedback": "",
        "included_in_balanced_subset": number == 0,
    }


def _person(name, **changes):
    return {
        "user_id": name,
        "age": "25-34 years old",
        "gender": "Female",
        "education": "University Bachelors Degree",
        "employment_status": "Student",
        "marital_status": "Never been married",
        "english_proficiency": "Fluent",
        "study_locale": "chile",
        "lm_familiarity": "Very familiar",
        "religion": {"self_described": "none", "categorised": "No Affiliation", "simplified": "Non-religious"},
        "ethnicity": {"self_described": "", "categorised": "", "simplified": None},
        "location": {
            "birth_country": "Chile",
            "birth_region": "Americas",
            "reside_country": "Spain",
            "reside_region": "Europe",
        },
        "system_string": "Be brief.",
        **changes,
    }


#: Two turns. Opening: four models, the last answer empty. Second: one model twice.
FULL = _conversation(
    0,
    "user7",
    _user(0, "Is rain wet?"),
    _model(0, "No.", 20, within=2),
    _model(0, "Yes.", 90, chosen=True, within=0),
    _model(0, "Perhaps.", 86, within=1),
    _model(0, "EMPTY STRING", 1, within=3),
    _user(1, "Why?"),
    _model(1, "Water.", 70, chosen=True, within=1),
    _model(1, "Clouds.", 70, within=0),
)
#: The second turn's answers are the same, so both are chosen; the third still follows.
TWICE = _conversation(
    1,
    "user8",
    _user(0, "Hi"),
    _model(0, "Hello", 50, chosen=True, within=0),
    _model(0, "Go away", 40, within=1),
    _user(1, "Again"),
    _model(1, "Hello", 60, chosen=True, within=0),
    _model(1, "Hello", 60, chosen=True, within=1),
    _user(2, "Bye"),
    _model(2, "Bye!", 99, chosen=True, within=0),
    _model(2, "Stay!", 1, within=1),
)
SURVEY = [_person("user7"), _person("user8", gender=None)]


def _read(conversations, survey=SURVEY, **options):
    tables = {"conversations": Dataset.from_list(conversations)}
    if survey is not None:
        tables["survey"] = Dataset.from_list(survey)
    return read_prism(tables, **options)


def test_chosen_against_the_others(brief):
    pairs, report = _read([FULL])
    assert brief(pairs) == [
        ("Is rain wet?", "Yes.", "Perhaps.", 0.5),
        ("Is rain wet?", "Yes.", "No.", 0.5),
        ("Why?", "Water.", "Clouds.", 1.0),
    ]
    assert pairs[2]["prompt"] == [
        {"role": "user", "content": "Is rain wet?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    assert pairs[2]["chosen"] == [{"role": "assistant", "content": "Water."}]
    assert pairs["turn"][:] == [0, 0, 1]
    assert pairs["interaction"][:] == ["c0/0", "c0/0", "c0/1"]
    assert (report.rows, report.choices, report.total, report.kept) == (1, 2, 4, 3)
    assert report.skipped == {"empty_answer": 1}
    assert not report.notes


def test_columns_and_demographics():
    row = _read([FULL])[0][0]
    assert {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")} == {
        "weight": 0.5,
        "annotator": "user7",
        "conversation": "c0",
        "interaction": "c0/0",
        "conversation_type": "unguided",
        "included_in_balanced_subset": "true",
        "age": "25-34 years old",
        "gender": "Female",
        "education": "University Bachelors Degree",
        "employment_status": "Student",
        "marital_status": "Never been married",
        "english_proficiency": "Fluent",
        "religion": "Non-religious",
        "ethnicity": "unknown",
        "birth_country": "Chile",
        "birth_region": "Americas",
        "reside_country": "Spain",
        "reside_region": "Europe",
        "study_locale": "chile",
        "lm_familiarity": "Very familiar",
        "turn": 0,
    }


def test_a_person_without_survey_is_unknown_and_counted():
    pairs, report = _read([FULL, TWICE], [_person("user8", gender=None)])
    assert pairs["gender"][:] == ["unknown"] * len(pairs)
    ages = {row["annotator"]: row["age"] for row in pairs}
    assert ages == {"user7": "unknown", "user8": "25-34 years old"}
    assert report.notes == {"no_survey": 1}


def test_equal_answers_that_are_both_chosen(brief):
    pairs, report = _read([TWICE])
    assert brief(pairs) == [("Hi", "Hello", "Go away", 1.0), ("Bye", "Bye!", "Stay!", 1.0)]
    assert [m["content"] for m in pairs[1]["prompt"]] == ["Hi", "Hello", "Again", "Hello", "Bye"]
    assert report.skipped == {"tie": 1}


def test_first_turns_only(brief):
    pairs, report = _read([FULL, TWICE], turns="first")
    assert [prompt for prompt, *_ in brief(pairs)] == ["Is rain wet?", "Is rain wet?", "Hi"]
    assert report.skipped == {"empty_answer": 1}


def test_all_pairs_of_scores(brief):
    # Scores Yes 90, Perhaps 86, No 20, and an empty answer: 90 and 86 are a tie at 5. Water and Clouds both have 70.
    pairs, report = _read([FULL], pairs="scores", tie_threshold=5)
    assert brief(pairs) == [("Is rain wet?", "Yes.", "No.", 0.5), ("Is rain wet?", "Perhaps.", "No.", 0.5)]
    assert report.skipped == {"score_tie": 2, "empty_answer": 3}
    assert report.total == 7  # 6 of four answers, 1 of two
    pairs, report = _read([FULL], pairs="scores")
    assert [weight for *_, weight in brief(pairs)] == [1 / 3] * 3
    assert report.skipped == {"score_tie": 1, "empty_answer": 3}


def test_extremes(brief):
    pairs, report = _read([FULL], pairs="extremes")
    assert brief(pairs) == [("Is rain wet?", "Yes.", "No.", 1.0)]
    assert report.skipped == {"score_tie": 1}


def _scored(*scores):
    answers = [_model(0, f"a{i}", score, chosen=i == 0, within=i) for i, score in enumerate(scores)]
    return [_user(0, "q"), *answers]


def test_standardised_scores(brief):
    # Wide: 10, 20, 30, mean 20, sd (n - 1) 10. Narrow: 49, 50, 51, mean 50, sd 1. Their z-scores are -1, 0, 1.
    # Flat: sd 0, all z-scores 0.
    rows = [
        _conversation(0, "wide", *_scored(10, 20, 30)),
        _conversation(1, "narrow", *_scored(49, 50, 51)),
        _conversation(2, "flat", *_scored(50, 50, 50)),
    ]
    options = {"pairs": "scores", "demographics": False}
    pairs, report = _read(rows, None, tie_threshold=1.5, standardize=True, **options)
    assert brief(pairs) == [("q", "a2", "a0", 1.0)] * 2
    assert pairs["annotator"][:] == ["wide", "narrow"]
    assert report.skipped == {"score_tie": 7}
    pairs, _ = _read(rows, None, tie_threshold=1.5, **options)
    assert pairs["annotator"][:] == ["wide"] * 3 + ["narrow"]


def test_standardised_over_the_turns_that_are_read():
    # Opening scores 40, 60: sd = sqrt(200) = 14.14, difference 20 = 1.414 sd. With the second turn's 0 and 100 the sd is
    # sqrt((100 + 100 + 2500 + 2500) / 3) = 41.63, and the opening's difference 0.48 sd.
    history = [*_scored(40, 60), _user(1, "r"), _model(1, "b0", 0), _model(1, "b1", 100, chosen=True, within=1)]
    rows = [_conversation(0, "user7", *history)]
    options = {"pairs": "scores", "tie_threshold": 1.0, "standardize": True}
    assert _read(rows, turns="first", **options)[0]["turn"][:] == [0]
    pairs, report = _read(rows, **options)
    assert pairs["turn"][:] == [1]
    assert report.skipped == {"score_tie": 1}


def test_a_missing_score():
    rows = [_conversation(0, "user7", *_scored(10, None, 30))]
    pairs, report = _read(rows, pairs="scores")
    assert len(pairs) == 1
    assert report.skipped == {"no_score": 2}
    pairs, report = _read(rows, pairs="extremes")
    assert (len(pairs), report.skipped) == (1, {})


@pytest.mark.parametrize(
    ("history", "reasons"),
    [
        # Nothing chosen in the opening turn: what follows has no history.
        (
            [
                *(_user(0, "q"), _model(0, "a", 1), _model(0, "b", 2, within=1)),
                *(_user(1, "r"), _model(1, "c", 1, chosen=True), _model(1, "d", 2, within=1)),
            ],
            {"no_choice": 1, "history": 1},
        ),
        # Two different answers chosen.
        ([_user(0, "q"), _model(0, "a", 1, True), _model(0, "b", 2, True, 1)], {"no_choice": 1}),
        # The chosen answer is empty.
        (
            [
                *(_user(0, "q"), _model(0, "EMPTY STRING", 1, chosen=True), _model(0, "b", 2, within=1)),
                *(_user(1, "r"), _model(1, "c", 1, chosen=True), _model(1, "d", 2, within=1)),
            ],
            {"empty_answer": 1, "history": 1},
        ),
        ([_user(0, "EMPTY STRING"), _model(0, "a", 1, True), _model(0, "b", 2, within=1)], {"no_prompt": 1}),
        ([_model(0, "a", 1, True), _model(0, "b", 2, within=1)], {"no_prompt": 1}),
        # Turns are counted from 0: here the first is missing.
        ([_user(1, "q"), _model(1, "a", 1, True), _model(1, "b", 2, within=1)], {"history": 1}),
        (
            [
                *(_user(0, "q"), _model(0, "a", 1, True), _model(0, "b", 2, within=1)),
                *(_user(2, "q"), _model(2, "a", 1, True), _model(2, "b", 2, within=1)),
                *(_user(3, "q"), _model(3, "a", 1, True), _model(3, "b", 2, within=1)),
            ],
            {"history": 2},
        ),
        ([_user(0, "q"), _model(0, "a", 1, True)], {"single_answer": 1}),
        ([], {"no_prompt": 1}),
    ],
)
def test_turns_that_cannot_be_used(history, reasons):
    pairs, report = _read([FULL, _conversation(3, "user7", *history)])
    assert set(pairs["conversation"]) - {"c3"} == {"c0"}
    assert len(pairs) == 3 + (reasons == {"history": 2})
    assert dict(report.skipped) == {**reasons, "empty_answer": reasons.get("empty_answer", 0) + 1}
    assert report.total == len(pairs) + 1 + sum(reasons.values())
    assert all(report.examples[reason][-1] == 1 for reason in reasons)


def test_an_opening_turn_that_is_missing_is_counted_where_it_is_asked_for():
    late = [_user(1, "q"), _model(1, "a", 1, True), _model(1, "b", 2, within=1)]
    _, report = _read([FULL, _conversation(3, "user7", *late)], turns="first")
    assert report.skipped == {"empty_answer": 1, "history": 1}


def test_nobody_named():
    pairs, report = _read([FULL, {**TWICE, "user_id": None}])
    assert len(pairs) == 3
    assert report.skipped == {"empty_answer": 1, "no_annotator": 1}


def test_unknown_role():
    history = [_user(0, "q"), {**_model(0, "a", 1), "role": "assistant"}]
    with pytest.raises(DataError, match="row 0: conversation_history has the role 'assistant'"):
        _read([_conversation(0, "user7", *history)])


def _utterances():
    rows = []
    for conversation in (TWICE, FULL):
        asked = None
        for item in conversation["conversation_history"]:
            if item["role"] == "user":
                asked = item["content"]
                continue
            rows.append(
                {
                    "utterance_id": f"ut{len(rows)}",
                    "interaction_id": f"int{conversation['conversation_id']}{item['turn']}",
                    "conversation_id": conversation["conversation_id"],
                    "user_id": conversation["user_id"],
                    "turn": item["turn"],
                    "within_turn_id": item["within_turn_id"],
                    "conversation_type": "unguided",
                    "user_prompt": asked,
                    "model_response": item["content"],
                    "model_name": "m",
                    "model_provider": "openai",
                    "score": item["score"],
                    "if_chosen": item["if_chosen"],
                    "included_in_balanced_subset": conversation["included_in_balanced_subset"],
                }
            )
    return rows[::2] + rows[1::2]  # not in order


@pytest.mark.parametrize("rule", ["chosen", "scores", "extremes"])
def test_utterances_give_the_same_pairs(rule):
    tables = {"utterances": Dataset.from_list(_utterances()), "survey": Dataset.from_list(SURVEY)}
    pairs, report = read_prism(tables, pairs=rule)
    same, same_report = _read([FULL, TWICE], pairs=rule)
    assert pairs.to_list() == same.to_list()
    assert report == same_report


@pytest.mark.parametrize("rule", ["chosen", "scores", "extremes"])
def test_utterances_in_a_csv_file(tmp_path, rule):
    """Everything in it is text, also flags, empty scores, and turns, of which the tenth comes after the second."""
    rows = [{**row, "turn": row["turn"] * 5} for row in _utterances()]
    assert {row["turn"] for row in rows} >= {5, 10}
    pd.DataFrame(rows).to_csv(tmp_path / "utterances.csv", index=False)
    pairs, report = read_prism(tmp_path / "utterances.csv", pairs=rule, demographics=False)
    same, same_report = read_prism(Dataset.from_list(rows), pairs=rule, demographics=False)
    assert pairs.to_list() == same.to_list()
    assert report == same_report


def test_a_flag_that_is_none(tmp_path):
    rows = [{**row, "if_chosen": "perhaps"} for row in _utterances()]
    pd.DataFrame(rows).to_csv(tmp_path / "utterances.csv", index=False)
    with pytest.raises(DataError, match="row 0: column 'if_chosen' is 'perhaps'"):
        read_prism(tmp_path / "utterances.csv", demographics=False)


def test_utterances_without_a_turn():
    rows = [{**row, "turn": None if i == 2 else row["turn"]} for i, row in enumerate(_utterances())]
    with pytest.raises(DataError, match="row 2: column 'turn' is empty"):
        read_prism(Dataset.from_list(rows), demographics=False)


@pytest.mark.parametrize("table", ["conversations", "utterances"])
def test_folder(tmp_path, write_lines, table):
    write_lines(tmp_path / "prism" / f"{table}.jsonl", [FULL, TWICE] if table == "conversations" else _utterances())
    write_lines(tmp_path / "prism" / "survey.jsonl", SURVEY)
    write_lines(tmp_path / "prism" / "metadata.jsonl", [{"column_id": "user_prompt"}])
    pairs, report = read_prism(tmp_path / "prism")
    same, same_report = _read([FULL, TWICE])
    assert pairs.to_list() == same.to_list()
    assert report == same_report


def test_file_without_survey(tmp_path, write_lines):
    path = write_lines(tmp_path / "conversations.jsonl", [FULL])
    with pytest.raises(DataError, match=r"survey is missing.*survey\.jsonl.*demographics=False"):
        read_prism(path)
    pairs, _ = read_prism(path, demographics=False)
    assert "age" not in pairs.column_names
    assert len(pairs) == 3


def test_hub(monkeypatch):
    asked = []

    def load(repo, config, *, data_dir, split, revision):
        asked.append((repo, config, data_dir, split, revision))
        return Dataset.from_list({"conversations": [FULL], "survey": SURVEY}[config])

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", load)
    assert len(read_prism()[0]) == 3
    assert sorted(asked) == [
        ("HannahRoseKirk/prism-alignment", "conversations", None, "train", None),
        ("HannahRoseKirk/prism-alignment", "survey", None, "train", None),
    ]
    asked.clear()
    read_prism("somebody/copy", demographics=False)
    assert asked == [("somebody/copy", "conversations", None, "train", None)]


def test_wrong_columns():
    without = {name: value for name, value in FULL.items() if name != "user_id"}
    with pytest.raises(DataError, match=r"missing 'user_id'; there are conversation_id, conversation_type"):
        _read([without])
    history = [{"turn": 0, "role": "user", "content": "q", "score": 1, "within_turn_id": 0}]
    with pytest.raises(DataError, match=r"missing 'conversation_history\.if_chosen'"):
        _read([_conversation(0, "user7", *history)])
    person = _person("user7")
    person["religion"] = "none"
    with pytest.raises(DataError, match=r"missing 'religion\.simplified'; there are user_id, age"):
        _read([FULL], [person])
    rows = [{name: value for name, value in row.items() if name != "score"} for row in _utterances()]
    with pytest.raises(DataError, match=r"utterances\): missing 'score'"):
        read_prism(Dataset.from_list(rows), demographics=False)


def test_wrong_columns_in_a_file(tmp_path, write_lines):
    history = [{"turn": 0, "role": "user", "content": "q"}, {"turn": 0, "role": "model", "content": "a", "score": 1}]
    path = write_lines(tmp_path / "conversations.jsonl", [_conversation(0, "user7", *history)])
    with pytest.raises(DataError, match=r"missing 'conversation_history\.if_chosen'"):
        read_prism(path, demographics=False)


def test_two_surveys_of_one_person():
    with pytest.raises(DataError, match="survey row 1: 'user7' is there already"):
        _read([FULL], [_person("user7"), _person("user7")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "best"}, "pairs='best': choose 'chosen', 'scores', 'extremes'"),
        ({"turns": "last"}, "turns='last': choose 'all', 'first'"),
        ({"tie_threshold": 5}, "tie_threshold has no effect with pairs='chosen'"),
        ({"standardize": True}, "standardize has no effect with pairs='chosen'"),
        ({"standardize": True, "pairs": "scores"}, "standardize has no effect without tie_threshold"),
        ({"tie_threshold": -1, "pairs": "scores"}, "tie_threshold=-1: expected"),
        ({"tie_threshold": math.nan, "pairs": "scores"}, "tie_threshold=nan: expected"),
        ({"demographics": False}, "demographics=False: the survey has no effect"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        _read([FULL], **options)


def test_bad_tables():
    one = Dataset.from_list([FULL])
    with pytest.raises(DataError, match="PRISM has no table 'conversation': choose conversations, utterances, survey"):
        read_prism({"conversation": one})
    with pytest.raises(DataError, match="neither conversations nor utterances"):
        read_prism({"survey": Dataset.from_list(SURVEY)})
    with pytest.raises(ConfigError, match="utterances have no effect beside conversations"):
        read_prism({"conversations": one, "utterances": one}, demographics=False)
    with pytest.raises(ConfigError, match="no split 'test'"):
        read_prism(DatasetDict(train=one), split="test", demographics=False)


def test_no_pair_left():
    with pytest.raises(DataError, match="no row can be used: 0 pairs of 0 choices from 1 rows; 1 skipped"):
        _read([_conversation(0, "user7", _user(0, "q"), _model(0, "a", 1, True))])
    empty = {"conversations": Dataset.from_list([FULL]).select([]), "survey": Dataset.from_list(SURVEY)}
    with pytest.raises(DataError, match="the data set has no rows"):
        read_prism(empty)
