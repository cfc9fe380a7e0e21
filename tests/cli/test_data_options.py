"""Pairs that commands read: rows of a part keep the numbers that they have in their source."""

import json

from pluralpref.cli.data_options import DataOptions, HeldOutOptions, load_training_pairs
from pluralpref.data import tokenize_preferences


def test_rows_of_held_out_people_keep_their_numbers(tmp_path, tiny_tokenizer):
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "a" if i == 7 else "b", "annotator": f"p{i % 5}"}
        for i in range(20)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = load_training_pairs(DataOptions(dataset_name=str(path)), HeldOutOptions(held_out_by="annotator"), seed=0)[
        :2
    ]
    seen, skipped = [], []
    for part in parts:
        tokenized, report = tokenize_preferences(part, tiny_tokenizer)
        assert "source_row" not in tokenized.column_names
        for number, prompt in zip(tokenized["row"], tokenized["prompt_ids"], strict=True):
            assert tiny_tokenizer.decode(prompt) == f"q{number}"
        seen += tokenized["row"][:]
        skipped += report.examples.get("tie", [])
    assert sorted(seen) == [i for i in range(20) if i != 7]
    assert skipped == [7]
