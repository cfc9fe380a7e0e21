"""Splits that keep groups whole."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralpref.data import disjoint_split
from pluralpref.errors import ConfigError, DataError


def _data(people, **columns):
    return Dataset.from_dict({"annotator": people, "pair": list(range(len(people))), **columns})


_PEOPLE = st.lists(st.sampled_from([f"user{i}" for i in range(12)]), min_size=2, max_size=40)


@settings(deadline=None, max_examples=50)
@given(_PEOPLE, st.floats(0.01, 0.99), st.integers(0, 5), st.randoms(use_true_random=False))
def test_properties(people, fraction, seed, random):
    count = round(fraction * len(set(people)))
    if not 0 < count < len(set(people)):
        with pytest.raises(DataError, match="leaves one side empty"):
            disjoint_split(_data(people), fraction=fraction, seed=seed)
        return
    train, held_out = disjoint_split(_data(people), fraction=fraction, seed=seed)
    names = set(held_out["annotator"])
    assert not names & set(train["annotator"])
    assert len(names) == count
    assert sorted([*train["pair"], *held_out["pair"]]) == list(range(len(people)))
    assert list(train["pair"]) == sorted(train["pair"])
    assert list(held_out["pair"]) == sorted(held_out["pair"])
    # Neither the order of the rows nor how many there are of each person matters.
    shuffled = [*people, people[0]]
    random.shuffle(shuffled)
    again = disjoint_split(_data(shuffled), fraction=fraction, seed=seed)
    assert set(again[1]["annotator"]) == names


def test_seed_and_fraction():
    data = _data([f"user{i % 100}" for i in range(300)])
    first, second = (set(disjoint_split(data, seed=seed)[1]["annotator"]) for seed in (0, 1))
    assert len(first) == len(second) == 20
    assert first != second
    # More held out of the same seed: the same people and further ones.
    assert first < set(disjoint_split(data, fraction=0.5)[1]["annotator"])


def test_other_columns():
    data = _data(["a", "a", "b", "b"], conversation=["c0", "c1", "c1", "c2"], turn=[0, 1, 0, 1])
    train, held_out = disjoint_split(data, by="conversation", fraction=0.34)
    assert len(set(held_out["conversation"])) == 1
    assert not set(held_out["conversation"]) & set(train["conversation"])
    train, held_out = disjoint_split(data, by="turn", fraction=0.5)
    assert sorted([train["turn"][:], held_out["turn"][:]]) == [[0, 0], [1, 1]]


def test_more_rows_than_a_batch(monkeypatch):
    monkeypatch.setattr("pluralpref.data.sets.splits._BATCH", 3)
    people = [f"user{i % 4}" for i in range(11)]
    train, held_out = disjoint_split(_data(people), fraction=0.5)
    assert [people[i] for i in held_out["pair"]] == held_out["annotator"][:]
    assert len(train) + len(held_out) == 11
    with pytest.raises(DataError, match="row 7: column 'annotator' is empty"):
        disjoint_split(_data([*people[:7], None]))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(ConfigError, match="fraction="):
        disjoint_split(_data(["a", "b"]), fraction=fraction)


def test_impossible():
    with pytest.raises(DataError, match=r"fraction=0\.5 of 1 values of 'annotator' leaves one side empty"):
        disjoint_split(_data(["a", "a"]), fraction=0.5)
    with pytest.raises(DataError, match="of 0 values"):
        disjoint_split(_data([]), fraction=0.5)
    with pytest.raises(DataError, match="no column 'person' to split by: there are annotator, pair"):
        disjoint_split(_data(["a", "b"]), by="person")
    messages = [[{"role": "user", "content": "q"}]] * 2
    with pytest.raises(DataError, match="row 0: column 'prompt' is a list"):
        disjoint_split(_data(["a", "b"], prompt=messages), by="prompt")
