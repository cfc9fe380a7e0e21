"""Tables of margins on disk."""

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from pluralpref.data import MarginsTable, read_margins, write_margins
from pluralpref.errors import DataError


def test_parquet_round_trip(tmp_path):
    table = MarginsTable(
        margins=torch.tensor([0.1, -2.5, 1e-300], dtype=torch.float64),
        annotator=["ann", "bob", "ann"],
        weight=[1.0, 0.0, 2.0],
        preferred=[1.0, 0.25, 0.0],
        groups={"topic": ["art", "maths", "art"], "turn": [1, 2, 3]},
        metadata={"policy": "p", "options": {"max_length": 12}},
    )
    path = tmp_path / "deep" / "margins.parquet"
    write_margins(path, table)
    back = read_margins(path)
    assert torch.equal(back.margins, table.margins)
    assert back.margins.dtype == torch.float64
    assert list(back.annotator) == ["ann", "bob", "ann"]
    assert back.weight.tolist() == [1.0, 0.0, 2.0]
    assert back.preferred.tolist() == [1.0, 0.25, 0.0]
    assert back.groups == {"topic": ["art", "maths", "art"], "turn": [1, 2, 3]}
    assert back.metadata == {"policy": "p", "options": {"max_length": 12}}
    assert len(back) == 3
    assert [p.name for p in path.parent.iterdir()] == ["margins.parquet"]


def test_margins_alone(tmp_path):
    write_margins(tmp_path / "m.parquet", MarginsTable([1.0, 2.0]))
    back = read_margins(tmp_path / "m.parquet")
    assert back.margins.tolist() == [1.0, 2.0]
    assert (back.annotator, back.weight, back.preferred, back.groups, back.metadata) == (None, None, None, {}, {})


def test_csv(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("margin,annotator,topic,weight\n0.5,ann,art,1\n-1,bob,maths,2\n")
    table = read_margins(path)
    assert table.margins.tolist() == [0.5, -1.0]
    assert list(table.annotator) == ["ann", "bob"]
    assert table.weight.tolist() == [1.0, 2.0]
    assert table.groups == {"topic": ["art", "maths"]}


def test_bad_margins_are_named(tmp_path):
    with pytest.raises(DataError, match="'margin' has 2 values that are NaN or infinite, first in row 1"):
        MarginsTable([0.0, float("nan"), 1.0, float("inf")])
    with pytest.raises(DataError, match="at least one row"):
        MarginsTable([])
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        MarginsTable([[1.0, 2.0]])
    path = tmp_path / "m.csv"
    path.write_text("margin,annotator\n0.5,a\n,b\n")
    with pytest.raises(DataError, match="row 1: column 'margin' is empty"):
        read_margins(path)
    path.write_text("margin\n0.5\nhigh\n")
    with pytest.raises(DataError, match=r"row 0: column 'margin' is '0\.5'|row 1: column 'margin' is 'high'"):
        read_margins(path)


def test_lengths_are_compared():
    with pytest.raises(DataError, match="'annotator' has 2 entries but there are 3 margins"):
        MarginsTable([0.0, 1.0, 2.0], annotator=["a", "b"])
    with pytest.raises(DataError, match="'weight' has 1 entries but there are 3 margins"):
        MarginsTable([0.0, 1.0, 2.0], weight=[1.0])
    with pytest.raises(DataError, match="'topic' has 4 entries but there are 3 margins"):
        MarginsTable([0.0, 1.0, 2.0], groups={"topic": list("abcd")})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("weight", [1.0, -1.0], r"row 1: column 'weight' is -1\.0"),
        ("weight", [float("inf"), 1.0], "row 0: column 'weight' is inf"),
        ("preferred", [1.0, 1.1], r"row 1: column 'preferred' is 1\.1"),
    ],
)
def test_bad_values_are_named(column, values, message):
    with pytest.raises(DataError, match=message):
        MarginsTable([0.0, 1.0], **{column: values})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_margins(tmp_path / "missing.parquet")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        read_margins(tmp_path / "bad.parquet")
    pyarrow.parquet.write_table(pa.table({"h": [1.0], "annotator": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no column 'margin': there are h, annotator"):
        read_margins(tmp_path / "other.parquet")
