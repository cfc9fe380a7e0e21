"""Labels that are missing: nobody unknown becomes a person."""

import pytest
import torch
from datasets import Dataset

from pluralpref.data import MarginsTable, PreferenceCollator, disjoint_split, load_preferences, read_margins
from pluralpref.data.labels import is_blank, refuse_blank_labels
from pluralpref.errors import DataError
from pluralpref.inference.choices import as_choices


@pytest.mark.parametrize(("value", "blank"), [(None, True), (float("nan"), True), ("", True), (" \t", True), ("a", False),
                                              (0, False), (False, False)])  # fmt: skip
def test_what_is_blank(value, blank):
    assert is_blank(value) is blank


def test_the_message_counts_and_names_the_first_row():
    refuse_blank_labels("annotator", ["a", 0])
    with pytest.raises(DataError, match=r"row 1: column 'annotator' is empty \(2 rows\)"):
        refuse_blank_labels("annotator", ["a", "", None])


def test_a_file_of_pairs_with_an_empty_cell(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,annotator\nq,a,b,ann\nq,a,b,\n")
    with pytest.raises(DataError, match="row 1: column 'annotator' is empty"):
        load_preferences(path)


def test_a_table_of_margins_with_an_empty_cell(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("margin,annotator\n1.0,ann\n2.0,\n")
    with pytest.raises(DataError, match="row 1: column 'annotator' is empty"):
        read_margins(path)
    with pytest.raises(DataError, match="row 0: column 'annotator' is empty"):
        MarginsTable([1.0], annotator=[" "])


def test_people_with_numbers_for_names_stay_apart(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("margin,annotator\n1.0,007\n2.0,7\n")
    assert read_margins(path).annotator == ["007", "7"]


def test_choices_panels_and_splits():
    with pytest.raises(DataError, match="1 of 2 labels are missing, the first in row 1"):
        as_choices(torch.ones(2), annotator=["a", ""])
    row = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "annotator": "", "row": 5}
    with pytest.raises(DataError, match="row 5 has no annotator"):
        PreferenceCollator(0, panel=True)([row])
    with pytest.raises(DataError, match="row 2: column 'annotator' is empty"):
        disjoint_split(Dataset.from_dict({"annotator": ["a", "b", " "]}))


@pytest.mark.parametrize("name", ["margin", "annotator", "weight", "preferred"])
def test_a_group_cant_take_the_place_of_a_column_of_the_table(name):
    with pytest.raises(DataError, match=f"groups has a column '{name}'"):
        MarginsTable([1.0, 2.0], groups={name: [5.0, 6.0]})
