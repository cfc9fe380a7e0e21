"""Data sets by name, their options as text, and what every reader has in common."""

import copy

import pytest
from datasets import Dataset

from pluralpref.data import known_datasets, load_named, load_preferences, read_dataset, tokenize_preferences
from pluralpref.data.sets.registry import READERS
from pluralpref.errors import ConfigError, DataError

SHP = {
    "post_id": "p1",
    "domain": "askculinary_train",
    "history": "How do I fix a salty soup?",
    "human_ref_A": "Add salt.",
    "human_ref_B": "Add a potato.",
    "labels": 0,
}


def _utterance(answer, score, within, chosen=False):
    return {
        "conversation_id": "c0",
        "user_id": "user7",
        "turn": 0,
        "within_turn_id": within,
        "conversation_type": "unguided",
        "user_prompt": "q",
        "model_response": answer,
        "score": score,
        "if_chosen": chosen,
        "included_in_balanced_subset": True,
    }


@pytest.fixture
def utterances(tmp_path, write_lines):
    rows = [_utterance("a", 10, 0), _utterance("b", 40, 1, chosen=True), _utterance("c", 100, 2)]
    return str(write_lines(tmp_path / "utterances.jsonl", rows))


def test_names():
    assert known_datasets() == [
        "community_alignment",
        "hh_rlhf",
        "multipref",
        "personal_llm_dpo",
        "prism",
        "psoups",
        "shp",
        "summarize_from_feedback",
        "ultrafeedback_binarized",
        "ultrafeedback_personalized",
    ]
    with pytest.raises(ConfigError, match="unknown data set 'SHP': choose community_alignment, hh_rlhf"):
        read_dataset("SHP")
    with pytest.raises(ConfigError, match="unknown data set 'SHP'"):
        load_named("SHP", None, {})


def test_read_dataset(brief):
    pairs, report = read_dataset("shp", Dataset.from_list([SHP]), unit="post")
    assert brief(pairs) == [("How do I fix a salty soup?", "Add a potato.", "Add salt.", 1.0)]
    assert report.kept == 1


@pytest.mark.parametrize("name", sorted(READERS))
def test_options_of_other_data_sets_are_refused(name):
    for option in ("tie_threshold", "turns", "subset", "annotators", "unit", "nonsense", "source"):
        known = READERS[name].__kwdefaults__
        if option not in known:
            with pytest.raises(ConfigError, match=f"{name} has no option '{option}': its options are split"):
                load_named(name, None, {option: "1"})
    with pytest.raises(ConfigError, match="has no option 'nonsense'"):
        read_dataset(name, None, nonsense=1)


def test_options_as_text(utterances, brief):
    # Mean 50, sd = sqrt((1600 + 100 + 2500) / 2) = 45.8: 10 and 40 are 0.65 apart, 40 and 100 1.31, 10 and 100 1.96.
    options = {"pairs": "scores", "tie_threshold": "1.2", "standardize": "true", "demographics": "False"}
    pairs, _ = load_named("prism", utterances, options)
    assert brief(pairs) == [("q", "c", "a", 0.5), ("q", "c", "b", 0.5)]
    pairs, _ = load_named("prism", utterances, {"demographics": "false", "turns": "first"})
    assert brief(pairs) == [("q", "b", "a", 0.5), ("q", "b", "c", 0.5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"standardize": "yes"}, "standardize='yes': expected true or false"),
        ({"tie_threshold": "five", "pairs": "scores"}, "tie_threshold='five': expected a number"),
        ({"tie_threshold": "inf", "pairs": "scores"}, "tie_threshold=inf: expected a finite number"),
        ({"pairs": "Chosen"}, "pairs='Chosen': choose 'chosen', 'scores', 'extremes'"),
        ({"split": "test", "demographics": "false"}, "split='test'.*single file"),
    ],
)
def test_bad_text(utterances, options, message):
    with pytest.raises(ConfigError, match=message):
        load_named("prism", utterances, options)


def test_hub_that_cannot_be_reached(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", fail)
    for source in (None, ""):
        with pytest.raises(
            DataError, match=r"'stanfordnlp/SHP' can't be loaded from the hub: no network\. Give its files"
        ):
            load_named("shp", source, {})


@pytest.mark.parametrize("source", ["missing.jsonl", "a/b/c", "./here", "/nowhere/shp.parquet"])
def test_missing_file(source):
    with pytest.raises(DataError, match="no such file"):
        load_named("shp", source, {})


def test_pairs_are_read_and_tokenised_like_any_other(tiny_tokenizer):
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no", "uid": 1}]
    pairs, _ = read_dataset("psoups", Dataset.from_list(rows))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    tokenized, _ = tokenize_preferences(load_preferences(pairs), tokenizer)
    assert tokenizer.decode(tokenized[0]["prompt_ids"]) == "u:q;"
    assert tokenizer.decode(tokenized[0]["chosen_ids"]) == "a:yes;"
    assert tokenized[0]["annotator"] == "1"
    assert tokenized[0]["weight"] == 1.0


def test_reading_twice_counts_twice(tmp_path, write_lines):
    """The pairs of a file are cached on disk, but never without being counted."""
    path = write_lines(tmp_path / "train.jsonl", [SHP, {**SHP, "labels": 3}])
    first, second = (read_dataset("shp", path) for _ in range(2))
    assert first[1] == second[1]
    assert second[1].skipped == {"no_choice": 1}
    assert first[0].to_list() == second[0].to_list()
    other, _ = read_dataset("shp", write_lines(tmp_path / "other.jsonl", [{**SHP, "labels": 1}]))
    assert other[0]["chosen"] != first[0][0]["chosen"]


def test_rows_are_numbered_through_batches():
    rows = [{**SHP, "labels": 7 if row in (0, 430) else 1} for row in range(450)]
    pairs, report = read_dataset("shp", Dataset.from_list(rows))
    assert len(pairs) == report.kept == 448
    assert report.examples == {"no_choice": [0, 430]}
