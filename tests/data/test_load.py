"""Reading preference pairs from files and data sets in memory."""

import gzip
import json

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from pluralpref.data import load_preferences, tokenize_preferences
from pluralpref.errors import ConfigError, DataError

ROWS = [
    {"prompt": "q0", "chosen": "a0", "rejected": "b0", "annotator": "ann"},
    {"prompt": "q1", "chosen": "a1", "rejected": "b1", "annotator": "bob"},
]


def _lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the data sets' cache out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _write(path):
    dataset = Dataset.from_list(ROWS)
    if path.name.endswith(".jsonl"):
        path.write_text(_lines())
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(_lines().encode()))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif path.name.endswith(".csv"):
        dataset.to_pandas().to_csv(path, index=False)
    elif path.name.endswith(".csv.gz"):
        dataset.to_pandas().to_csv(path, index=False, compression="gzip")
    else:
        dataset.to_parquet(str(path))
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv", "d.csv.gz", "d.parquet"])
def test_files(tmp_path, name):
    path = _write(tmp_path / name)
    assert load_preferences(path).to_list() == ROWS
    assert load_preferences(str(path)).to_list() == ROWS


def test_dataset_in_memory_and_folder(tmp_path):
    dataset = Dataset.from_list(ROWS)
    assert load_preferences(dataset).to_list() == ROWS
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert load_preferences(tmp_path / "saved").to_list() == ROWS
    with pytest.raises(ConfigError, match="split='train'"):
        load_preferences(dataset, split="train")


def test_dataset_dict_needs_a_split():
    one = Dataset.from_list(ROWS)
    both = DatasetDict(train=one, test=one.select([1]))
    with pytest.raises(ConfigError, match=r"several splits \(train, test\).*split="):
        load_preferences(both)
    with pytest.raises(ConfigError, match="no split 'dev': there are train, test"):
        load_preferences(both, split="dev")
    assert load_preferences(both, split="test").to_list() == ROWS[1:]
    assert load_preferences(DatasetDict(train=one)).to_list() == ROWS


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "a/b/c"])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError, match="no such file"):
        load_preferences(tmp_path / name)


def test_unknown_kind_and_damaged_file(tmp_path):
    (tmp_path / "d.xyz").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file"):
        load_preferences(tmp_path / "d.xyz")
    (tmp_path / "d.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="can't be read as parquet"):
        load_preferences(tmp_path / "d.parquet")


def test_missing_columns_list_those_that_are_there():
    dataset = Dataset.from_dict({"question": ["q"], "better": ["a"], "rejected": ["b"]})
    with pytest.raises(DataError, match=r"missing column 'chosen': there are question, better, rejected\. .*columns="):
        load_preferences(dataset)
    both = Dataset.from_dict({"text": ["q"]})
    with pytest.raises(DataError, match="missing column 'chosen' and 'rejected': there are text"):
        load_preferences(both)


def test_columns_rename():
    dataset = Dataset.from_dict({"question": ["q"], "better": ["a"], "rejected": ["b"]})
    loaded = load_preferences(dataset, columns={"chosen": "better", "prompt": "question"})
    assert loaded.to_list() == [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="no column 'best' to use as 'chosen': there are question, better, rejected"):
        load_preferences(dataset, columns={"chosen": "best"})
    with pytest.raises(DataError, match="already is a column 'rejected'"):
        load_preferences(dataset, columns={"rejected": "better"})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("annotator", ["ann", None], "row 1: column 'annotator' is empty"),
        ("weight", [1.0, -0.5], r"row 1: column 'weight' is -0\.5; expected a finite number of at least 0"),
        ("weight", [float("nan"), 1.0], "row 0: column 'weight' is nan"),
        ("weight", [1.0, float("inf")], "row 1: column 'weight' is inf"),
        ("preferred", [0.5, 1.5], r"row 1: column 'preferred' is 1\.5; expected a number in \[0, 1\]"),
        ("preferred", ["yes", "no"], "row 0: column 'preferred' is 'yes'"),
    ],
)
def test_bad_values_are_named(column, values, message):
    dataset = Dataset.from_dict({"chosen": ["a", "b"], "rejected": ["c", "d"], column: values})
    with pytest.raises(DataError, match=message):
        load_preferences(dataset)


def test_csv_cells_that_look_like_something_else(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("question,chosen,rejected,annotator,weight\nq,NA,42,007,1\n1e3,None,,8,0.5\n")
    loaded = load_preferences(path, columns={"prompt": "question"})
    assert loaded.to_list() == [
        {"prompt": "q", "chosen": "NA", "rejected": "42", "annotator": "007", "weight": 1.0},
        {"prompt": "1e3", "chosen": "None", "rejected": "", "annotator": "8", "weight": 0.5},
    ]


def test_conversations_in_csv_are_json(tmp_path):
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in ("a", "b", "[{")]
    table = pd.DataFrame({"chosen": [json.dumps(messages[0])] * 2, "rejected": [json.dumps(m) for m in messages[1:]]})
    table.to_csv(tmp_path / "d.csv", index=False)
    assert load_preferences(tmp_path / "d.csv").to_list() == [
        {"chosen": messages[0], "rejected": messages[1]},
        {"chosen": messages[0], "rejected": messages[2]},
    ]
    # Text that merely starts like JSON stays text.
    (tmp_path / "t.csv").write_text("chosen,rejected\n[{x,[{y\n")
    assert load_preferences(tmp_path / "t.csv").to_list() == [{"chosen": "[{x", "rejected": "[{y"}]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_a_file_is_one_split(tmp_path, name):
    path = _write(tmp_path / name)
    assert load_preferences(path, split="train").to_list() == ROWS
    assert load_preferences(path, split="train[1:]").to_list() == ROWS[1:]
    with pytest.raises(ConfigError, match=r"split='test': .* is a single file"):
        load_preferences(path, split="test")


def test_folder_of_files(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text(_lines())
    (tmp_path / "files" / "test.jsonl").write_text(_lines(ROWS[1:]))
    assert load_preferences(tmp_path / "files", split="test").to_list() == ROWS[1:]
    with pytest.raises(ConfigError, match="several splits"):
        load_preferences(tmp_path / "files")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither written by save_to_disk nor a folder"):
        load_preferences(tmp_path / "empty")


def test_one_column_of_text_and_messages_is_refused(tmp_path, tiny_tokenizer):
    messages = [{"role": "assistant", "content": "b"}]
    path = tmp_path / "d.jsonl"
    path.write_text(_lines([ROWS[0], {**ROWS[1], "rejected": messages}]))
    with pytest.raises(DataError, match="row 1: chosen is text but rejected is a list"):
        tokenize_preferences(load_preferences(path), tiny_tokenizer)
