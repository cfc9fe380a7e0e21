"""Rows as one batch."""

from types import SimpleNamespace

import pytest
import torch

from pluralpref.data import PreferenceCollator, padding_token
from pluralpref.errors import ConfigError, DataError

ROWS = [
    {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 9], "rejected_ids": [10], "topic": "art", "annotator": "ann"},
    {"prompt_ids": [11], "chosen_ids": [12], "rejected_ids": [13, 14], "topic": 3, "annotator": "bob"},
]


def test_ids_and_masks():
    batch = PreferenceCollator(0)(ROWS)
    # Chosen rows first, then rejected; padding on the right.
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 8, 9],
        [11, 12, 0, 0, 0],
        [5, 6, 10, 0, 0],
        [11, 13, 14, 0, 0],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]
    assert {batch[name].dtype for name in ("input_ids", "attention_mask", "completion_mask")} == {torch.int64}


def test_a_real_token_equal_to_the_padding_stays_visible():
    row = {"prompt_ids": [0], "chosen_ids": [1, 0], "rejected_ids": [0]}
    batch = PreferenceCollator(0)([row])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_columns():
    plain = PreferenceCollator(0)(ROWS)
    assert plain["weight"].tolist() == [1.0, 1.0]
    assert plain["preferred"].tolist() == [1.0, 1.0]
    assert not {"annotator", "groups", "ref_chosen_logps"} & set(plain)
    rows = [
        {**row, "weight": w, "preferred": p, "ref_chosen_logps": -w, "ref_rejected_logps": -p}
        for row, w, p in zip(ROWS, (2, 0.5), (0, 0.25), strict=True)
    ]
    batch = PreferenceCollator(0, annotators={"bob": 0, "ann": 1}, group_columns=["topic"])(rows)
    assert batch["weight"].tolist() == [2.0, 0.5]
    assert batch["preferred"].tolist() == [0.0, 0.25]
    assert batch["ref_chosen_logps"].tolist() == [-2.0, -0.5]
    assert batch["ref_rejected_logps"].tolist() == [0.0, -0.25]
    assert batch["annotator"].tolist() == [1, 0]
    assert batch["groups"] == {"topic": ["art", "3"]}
    assert batch["weight"].dtype == batch["ref_chosen_logps"].dtype == torch.float64


def test_padding_token():
    assert padding_token(SimpleNamespace(pad_token_id=0, eos_token_id=2)) == 0
    assert padding_token(SimpleNamespace(pad_token_id=None, eos_token_id=2)) == 2
    with pytest.raises(ConfigError, match=r"neither a pad nor an EOS token: set tokenizer\.pad_token"):
        padding_token(SimpleNamespace(pad_token_id=None, eos_token_id=None))


def test_rows_and_unknown_annotators():
    rows = [{**row, "row": i} for i, row in zip((7, 3), ROWS, strict=True)]
    batch = PreferenceCollator(0)(rows)
    assert batch["row"].tolist() == [7, 3]
    assert batch["row"].dtype == torch.int64
    with pytest.raises(DataError, match="annotator 'bob' is not among the 1 known ones"):
        PreferenceCollator(0, annotators={"ann": 0})(ROWS)
