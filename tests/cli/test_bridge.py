"""``pluralpref bridge``: two camps, from preferences to pairs that can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from pluralpref.cli import bridge
from pluralpref.data import load_preferences, tokenize_preferences
from pluralpref.errors import ConfigError, DataError

PEOPLE = [f"a{i:02}" for i in range(12)] + [f"b{i:02}" for i in range(8)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _choice(who, prompt, first, second, prefers_first):
    chosen, rejected = (first, second) if prefers_first else (second, first)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator": who}


@pytest.fixture
def preferences():
    """12 people of one camp prefer " left", 8 of another " right"; " fair" against " rude" is no matter of camps.

    At the last prompt the answers are compared with one that nobody is sure about: " left" wins for all of the larger
    camp (60 %), " fair" for 6 of it and 5 of the smaller one (55 %).
    """
    rows = []
    for n in range(6):
        rows += [_choice(who, f"topic {n}", " left", " right", who[0] == "a") for who in PEOPLE]
    rows += [_choice(who, "manners", " fair", " rude", int(who[1:]) % 5 != 0) for who in PEOPLE]
    rows += [_choice(who, "last", " left", " other", who[0] == "a") for who in PEOPLE]
    rows += [_choice(who, "last", " fair", " other", int(who[1:]) < {"a": 6, "b": 5}[who[0]]) for who in PEOPLE]
    _write("pairs.jsonl", rows)
    return rows


def test_preferences_to_pairs(preferences, capsys, tiny_tokenizer):
    files = ["--output", "bridging.jsonl", "--items", "out/items.parquet", "--people", "people.jsonl"]
    assert bridge.main(["--dataset_name", "pairs.jsonl", *files]) == 0
    shown = capsys.readouterr().out
    assert "180 of 180 rows used" in shown
    # Of "last", " other" was rated twice by each, which is one rating.
    assert "340 ratings of 17 answers by 20 people\n" in shown
    assert "people who rated an answer: 20 to 20, mean 20" in shown
    assert "of 5 starts" in shown
    rows = _lines("bridging.jsonl")
    assert len(rows) == 10
    assert f"the intercepts' order is not that of the plain means in {_reversed(rows)} pairs" in shown
    last = {(row["chosen"], row["rejected"]): row for row in rows if row["prompt"] == "last"}
    found = last[" fair", " left"]  # though more people preferred " left" to the other answer
    assert found["chosen_bridging"] > found["rejected_bridging"] + 0.01
    assert found["weight"] == pytest.approx(1 / 3)
    assert next(row["chosen"] for row in rows if row["prompt"] == "manners") == " fair"
    items = {(row["prompt"], row["answer"]): row for row in pyarrow.parquet.read_table("out/items.parquet").to_pylist()}
    assert items["last", " left"]["mean"] == pytest.approx(0.6)
    assert items["last", " fair"]["mean"] == pytest.approx(0.55)
    assert found["chosen_bridging"] == items["last", " fair"]["intercept"]
    people = _lines("people.jsonl")
    assert {row["annotator"]: row["factor"] < 0 for row in people} == {who: who[0] == "a" for who in PEOPLE}
    tokenized, report = tokenize_preferences(load_preferences("bridging.jsonl"), tiny_tokenizer)
    assert report.kept == len(tokenized) == 10
    assert tokenized["chosen_bridging"][:] == [row["chosen_bridging"] for row in rows]
    first = Path("bridging.jsonl").read_text()
    _write("pairs.jsonl", preferences[::-1])
    assert bridge.main(["--dataset_name", "pairs.jsonl", "--overwrite", "True"]) == 0
    assert Path("bridging.jsonl").read_text() == first


def _reversed(rows):
    table = pyarrow.parquet.read_table("out/items.parquet").to_pylist()
    means = {(row["prompt"], row["answer"]): row["mean"] for row in table}
    return sum(means[r["prompt"], r["chosen"]] < means[r["prompt"], r["rejected"]] - 1e-12 for r in rows)


def test_table_of_ratings(capsys):
    rows = [
        {"annotator": who, "prompt": "q", "completion": answer, "rating": rating}
        for who in PEOPLE
        for answer, rating in ((" good", 0.9), (" fair", 0.6), (" poor", 0.2))
    ]
    _write("ratings.jsonl", [*rows, rows[0] | {"annotator": "once"}])
    assert bridge.main(["--ratings", "ratings.jsonl", "--output", "pairs.parquet"]) == 0
    shown = capsys.readouterr().out
    assert "60 ratings of 3 answers by 20 people; 1 ratings are by people who rated too few answers, left out" in shown
    found = [(row["chosen"], row["rejected"]) for row in pyarrow.parquet.read_table("pairs.parquet").to_pylist()]
    assert found == [(" good", " fair"), (" fair", " poor"), (" good", " poor")]
    assert "in 0 pairs (0.0%); the means are equal in 0" in shown
    options = ["--ratings", "ratings.jsonl", "--output", "fewer.jsonl", "--tie_threshold", "0.2"]
    assert bridge.main(options) == 0
    assert [row["rejected"] for row in _lines("fewer.jsonl")] == [" poor"]
    assert "2 left out: the scores differ by no more than tie_threshold" in capsys.readouterr().out
    files = ["--output", "none.jsonl", "--items", "items.jsonl", "--tie_threshold", "1"]
    with pytest.raises(DataError, match="no pair of answers is left"):
        bridge.main(["--ratings", "ratings.jsonl", *files])
    assert not Path("none.jsonl").exists()
    assert [row["answer"] for row in _lines("items.jsonl")] == [" fair", " good", " poor"]  # which shows why


def test_factor_of_noise(capsys):
    generator = np.random.default_rng(0)
    rows = [
        _choice(PEOPLE[i], f"q{n}", "x", "y", bool(generator.random() < 0.5))
        for n in range(60)
        for i in generator.choice(20, 4, replace=False)
    ]
    _write("pairs.jsonl", rows)
    assert bridge.main(["--dataset_name", "pairs.jsonl", "--num_starts", "2"]) == 0
    shown = capsys.readouterr().out
    assert "mean squared error of 48 held-out ratings" in shown  # of 10 % of 240 choices
    assert "note: the factor fits noise, as it predicts worse than the intercepts alone" in shown


def test_public_data_set(capsys):
    def annotation(who, preferred):
        return {"evaluator": who, "overall_pref": f"{preferred}-is-clearly-better"}

    rows = [
        {
            "comparison_id": f"c{n}",
            "prompt_id": f"p{n}",
            "text": f"Question {n}",
            "completion_a": "Yes",
            "completion_b": "No",
            "normal_worker_annotations": [annotation("n1", "A"), annotation("n2", "AB"[n % 2])],
            "expert_worker_annotations": [annotation("e1", "A"), annotation("e2", "BA"[n % 2])],
        }
        for n in range(4)
    ]
    _write("multipref.jsonl", rows)
    assert bridge.main(["--dataset", "multipref", "--dataset_name", "multipref.jsonl", "--output", "out.jsonl"]) == 0
    assert "multipref: 16 pairs of 16 choices" in capsys.readouterr().out
    found = _lines("out.jsonl")
    assert [row["chosen"] for row in found] == [[{"role": "assistant", "content": "Yes"}]] * 4
    assert found[0]["prompt"] == [{"role": "user", "content": "Question 0"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset_name is missing"),
        (["--dataset_name", "pairs.jsonl", "--output", "pairs.csv"], "--output pairs.csv: the name must end in"),
        (["--dataset_name", "pairs.jsonl", "--output", "pairs.jsonl"], "--output pairs.jsonl exists: choose another"),
        (["--dataset_name", "pairs.jsonl", "--items", "bridging.jsonl"], "is the file of --output too"),
        (["--dataset_name", "pairs.jsonl", "--num_factors", "0"], "--num_factors 0: must be at least 1"),
        (["--dataset_name", "pairs.jsonl", "--seed", "-1"], "seed=-1: must be at least 0"),
        (["--dataset_name", "pairs.jsonl", "--lambda_factor", "0"], "lambda_factor=0.0: must be greater than 0"),
        (["--dataset_name", "pairs.jsonl", "--ratings", "pairs.jsonl"], "--dataset_name has no effect with --ratings"),
        (["--ratings", "pairs.jsonl", "--transcripts", "True"], "--transcripts has no effect with --ratings"),
        (["--dataset_name", "pairs.jsonl", "--hh_format", "chat"], "hh_format='chat' has no effect"),
        (["--dataset_name", "pairs.jsonl", "--tie_threshold", "-1"], "tie_threshold=-1.0: expected"),
    ],
)
def test_options_that_are_refused(preferences, arguments, message):
    with pytest.raises(ConfigError, match=message):
        bridge.main(arguments)
    assert not Path("bridging.jsonl").exists()


def test_data_that_are_refused(preferences):
    _write("alone.jsonl", [_choice("ann", "q", "x", "y", True), _choice("bob", "p", "x", "y", True)])
    with pytest.raises(DataError, match="each of the 4 answers was rated by one person only"):
        bridge.main(["--dataset_name", "alone.jsonl"])
    _write("nobody.jsonl", [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    with pytest.raises(DataError, match="no column 'annotator'"):
        bridge.main(["--dataset_name", "nobody.jsonl"])
    with pytest.raises(DataError, match="no column 'answer' in the ratings"):
        bridge.main(["--ratings", "pairs.jsonl"])
    with pytest.raises(DataError, match="no rating is left"):
        bridge.main(["--dataset_name", "pairs.jsonl", "--min_ratings_per_item", "21"])


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        bridge.main(["--help"])
    assert "pluralpref bridge --dataset multipref" in " ".join(capsys.readouterr().out.split())
