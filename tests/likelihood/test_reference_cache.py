"""Reference log-probabilities that are kept on disk."""

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset

import pluralpref.likelihood.reference as reference_module
import pluralpref.likelihood.row_cache as cache_module
from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError
from pluralpref.inference import MixDPOConfig
from pluralpref.likelihood import FrozenParts, precompute_reference
from pluralpref.likelihood.reference_key import reference_key

ROWS = [{"prompt_ids": [5, 6, 7 + i], "chosen_ids": [8, 9 + i], "rejected_ids": [10 + i, 11]} for i in range(9)]


@pytest.fixture
def dataset():
    return Dataset.from_list(ROWS)


@pytest.fixture
def passes(monkeypatch):
    """How many pairs the model has scored, and after how many it is to fail."""
    state = {"pairs": 0, "limit": None}
    own = reference_module.reference_pair_logps

    def counted(batch, *arguments, **options):
        if state["limit"] is not None and state["pairs"] >= state["limit"]:
            raise KeyboardInterrupt
        state["pairs"] += batch["input_ids"].shape[0] // 2
        return own(batch, *arguments, **options)

    monkeypatch.setattr(reference_module, "reference_pair_logps", counted)
    return state


def compute(model, dataset, folder, **options):
    found = precompute_reference(
        model, dataset, PreferenceCollator(0), batch_size=2, progress=False, cache_dir=folder, **options
    )
    return torch.tensor([found["ref_chosen_logps"], found["ref_rejected_logps"]], dtype=torch.float64)


def test_a_second_pass_is_read(tiny_llama, dataset, passes, tmp_path):
    expected = compute(tiny_llama(0), dataset, None)
    first = compute(tiny_llama(0), dataset, tmp_path / "cache")
    assert passes["pairs"] == 18
    second = compute(tiny_llama(0), dataset, tmp_path / "cache")
    assert passes["pairs"] == 18
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


def test_an_interrupted_pass_goes_on(tiny_llama, dataset, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_INTERVAL", -1.0)
    monkeypatch.setattr(cache_module, "_TIMES_WRITING", 0.0)
    expected = compute(tiny_llama(0), dataset, None)
    passes.update(pairs=0, limit=4)
    with pytest.raises(KeyboardInterrupt):
        compute(tiny_llama(0), dataset, tmp_path)
    assert passes["pairs"] == 4
    passes["limit"] = None
    assert torch.equal(compute(tiny_llama(0), dataset, tmp_path), expected)
    assert passes["pairs"] == 9
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_is_made_again(tiny_llama, dataset, passes, tmp_path, caplog):
    expected = compute(tiny_llama(0), dataset, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level("WARNING"):
        assert torch.equal(compute(tiny_llama(0), dataset, tmp_path), expected)
    assert "can't be read" in caplog.text
    assert passes["pairs"] == 18


def test_whatever_changes_the_numbers_changes_the_key(tiny_llama, dataset):
    def key(model=None, data=dataset, layout="auto", autocast=nullcontext):
        return reference_key(tiny_llama(0) if model is None else model, data, layout, autocast)

    other_weights = tiny_llama(0)
    with torch.no_grad():
        other_weights.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-6
    other_config = tiny_llama(0)
    other_config.config.rms_norm_eps = 1e-3
    moved = [{**ROWS[0], "chosen_ids": [8], "rejected_ids": [9, 10, 11]}, *ROWS[1:]]
    keys = [
        key(),
        key(other_weights),
        key(other_config),
        key(tiny_llama(0).to(torch.bfloat16)),
        key(data=Dataset.from_list(ROWS[:-1])),
        key(data=Dataset.from_list(ROWS[::-1])),
        key(data=Dataset.from_list(moved)),
        key(layout="padded"),
        key(autocast=lambda: torch.autocast("cpu", torch.bfloat16)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_parts_are_hashed_as_they_were(tiny_llama, dataset, passes, tmp_path):
    model = tiny_llama(0).requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    reference = FrozenParts(model)
    expected = compute(reference, dataset, tmp_path)
    before = passes["pairs"]
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(2)
    assert torch.equal(compute(reference, dataset, tmp_path), expected)
    assert passes["pairs"] == before > 0


def test_a_folder_without_a_pass_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="precompute_ref_cache_dir has no effect"):
        MixDPOConfig(str(tmp_path), precompute_ref_cache_dir="x", use_cpu=True)
