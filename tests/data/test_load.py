"""Reading preference pairs from files and data sets in memory."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from pluralpref.data import load_preferences
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
