"""Batches in parts with a bounded number of tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralpref.data import PreferenceCollator
from pluralpref.likelihood.token_budget import split_by_tokens, take_pairs

LENGTHS = st.lists(st.tuples(*[st.integers(1, 60)] * 3), min_size=1, max_size=20)


def tokens(lengths, shared):
    """Of a part, padding included."""
    if shared:
        return len(lengths) * max(sum(row) for row in lengths)
    return 2 * len(lengths) * max(prompt + max(answers) for prompt, *answers in lengths)


@given(LENGTHS, st.integers(1, 500), st.booleans())
def test_every_pair_once_within_the_budget(lengths, budget, shared):
    parts = split_by_tokens(torch.tensor(lengths), budget, shared=shared)
    assert sorted(pair for part in parts for pair in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or tokens([lengths[pair] for pair in part], shared) <= budget


@given(LENGTHS, st.integers(1, 500), st.data())
def test_what_belongs_together_stays_together(lengths, budget, data):
    names = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(lengths), max_size=len(lengths)))
    parts = split_by_tokens(torch.tensor(lengths), budget, shared=True, together=names)
    assert sorted(pair for part in parts for pair in part) == list(range(len(lengths)))
    for name in set(names):
        assert sum(any(names[pair] == name for pair in part) for part in parts) == 1
    for part in parts:
        alone = len({names[pair] for pair in part}) == 1
        assert alone or tokens([lengths[pair] for pair in part], True) <= budget


def test_by_hand():
    lengths = torch.tensor([[2, 3, 1], [10, 5, 5], [2, 2, 2], [9, 1, 8]])
    # 20 and 18 tokens in rows of 20; 6 and 6 in rows of 6.
    assert split_by_tokens(lengths, 40, shared=True) == [[1, 3], [0, 2]]
    assert split_by_tokens(lengths, 39, shared=True) == [[1], [3, 0], [2]]
    assert split_by_tokens(lengths, 10_000, shared=True) == [[1, 3, 0, 2]]
    # Twice 17 and twice 15 in rows as long as the longest: 4 rows of 17.
    assert split_by_tokens(lengths, 68, shared=False) == [[3, 1], [0, 2]]


def test_some_pairs_are_those_pairs_collated():
    rows = [
        {
            "prompt_ids": list(range(1, 2 + i)), "chosen_ids": [7] * (3 - i % 3), "rejected_ids": [8] * (1 + i % 2), "row": i,
            "annotator": f"p{i % 2}", "country": "x" * i, "weight": 1.0 + i, "preferred": 0.5, "ref_chosen_logps": -i,
            "ref_rejected_logps": -2 * i,
        }
        for i in range(6)
    ]  # fmt: skip
    collate = PreferenceCollator(0, {"p0": 0, "p1": 1}, ["country"], ["weight"], panel=True)
    picked = [4, 0, 2]
    found, expected = take_pairs(collate(rows), picked), collate([rows[i] for i in picked])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name
