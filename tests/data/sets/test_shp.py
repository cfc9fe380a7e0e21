"""SHP: labels, posts, domains."""

import pytest
from datasets import Dataset

from pluralpref.data.sets.shp import read_shp
from pluralpref.errors import ConfigError, DataError


def _row(
    post, labels, a="Add salt.", b="Add a potato.", history="How do I fix a salty soup?", domain="askculinary_train"
):
    return {
        "post_id": post,
        "domain": domain,
        "upvote_ratio": 0.98,
        "history": history,
        "c_root_id_A": "h1",
        "c_root_id_B": "h2",
        "created_at_utc_A": 1637000000,
        "created_at_utc_B": 1637000600,
        "score_A": 12,
        "score_B": 40,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": labels,
        "seconds_difference": 600.0,
        "score_ratio": 3.333333,
    }


ROWS = [
    _row("p1", 0),
    _row("p1", 1, b="Add sugar."),
    _row("p2", 1, domain="askdocs_validation"),
    _row("p2", 1, a=""),
    _row("p3", 2),
    _row("p3", None),
    _row("p3", 1, history=" "),
    _row("p3", 1, a="Same", b="Same "),
]


def test_pairs(brief):
    pairs, report = read_shp(Dataset.from_list(ROWS))
    soup = "How do I fix a salty soup?"
    assert brief(pairs) == [
        (soup, "Add a potato.", "Add salt.", 1.0),  # 0 means B
        (soup, "Add salt.", "Add sugar.", 1.0),
        (soup, "Add salt.", "Add a potato.", 1.0),
    ]
    assert pairs["conversation"][:] == ["p1", "p1", "p2"]
    assert pairs["domain"][:] == ["askculinary", "askculinary", "askdocs"]
    assert "annotator" not in pairs.column_names
    assert report.skipped == {"empty_answer": 1, "no_choice": 2, "no_prompt": 1, "tie": 1}
    assert report.examples == {"empty_answer": [3], "no_choice": [4, 5], "no_prompt": [6], "tie": [7]}
    assert (report.rows, report.total, report.kept, report.choices) == (8, 8, 3, 3)


def test_a_post_counts_once(brief):
    pairs, _ = read_shp(Dataset.from_list(ROWS), unit="post")
    assert [weight for *_, weight in brief(pairs)] == [0.5, 0.5, 1.0]


def test_file_and_csv(tmp_path, write_lines):
    rows = Dataset.from_list(ROWS[:3])
    same = read_shp(rows)[0].to_list()
    assert read_shp(write_lines(tmp_path / "train.json", ROWS[:3]))[0].to_list() == same
    rows.to_parquet(str(tmp_path / "train.parquet"))
    assert read_shp(tmp_path / "train.parquet")[0].to_list() == same
    rows.to_csv(str(tmp_path / "train.csv"))
    assert read_shp(tmp_path / "train.csv")[0].to_list() == same
    rows.save_to_disk(str(tmp_path / "saved"))
    assert read_shp(tmp_path / "saved")[0].to_list() == same


def test_wrong_columns_and_options(tmp_path):
    with pytest.raises(DataError, match="columns of stanfordnlp/SHP: missing 'labels'; there are post_id"):
        read_shp(Dataset.from_list(ROWS).remove_columns("labels"))
    with pytest.raises(ConfigError, match="unit='pair': choose 'comparison', 'post'"):
        read_shp(Dataset.from_list(ROWS), unit="pair")
    with pytest.raises(DataError, match="no such file"):
        read_shp(tmp_path / "train.json")
    with pytest.raises(ConfigError, match="split='train' has no effect on a Dataset"):
        read_shp(Dataset.from_list(ROWS), split="train")
