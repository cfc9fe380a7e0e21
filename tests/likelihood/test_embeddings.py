"""Embeddings of answers and prompts against single rows through transformers."""

import logging

import pytest
import torch
from datasets import Dataset

import pluralpref.likelihood.embeddings as embeddings_module
import pluralpref.likelihood.row_cache as cache_module
from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError, DataError, InferenceError, UnsupportedError
from pluralpref.likelihood.embeddings import answer_embeddings, pair_embeddings

LENGTHS = [(3, 4, 2), (6, 1, 9), (2, 5, 5), (4, 2, 12), (1, 1, 1)]


@pytest.fixture
def tokenised():
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")

    def ids(count):
        return torch.randint(2, 300, (count,), generator=generator).tolist()

    return Dataset.from_list([dict(zip(names, map(ids, lengths), strict=True)) for lengths in LENGTHS])


def embed(model, dataset, batch_size=2, **options):
    return answer_embeddings(model, dataset, PreferenceCollator(0), batch_size=batch_size, progress=False, **options)


def one_by_one(model, body, dataset):
    """Each text alone, without padding; a prompt alone, without an answer."""
    model.eval()
    found = {"chosen": [], "rejected": [], "prompt": []}
    with torch.no_grad():
        for row in dataset:
            for name, answer in (("chosen", row["chosen_ids"]), ("rejected", row["rejected_ids"]), ("prompt", [])):
                hidden = body(input_ids=torch.tensor([row["prompt_ids"] + answer])).last_hidden_state
                found[name].append(hidden[0, -1])
    return {name: torch.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equals_single_rows(batch_size, tiny_llama, tiny_gpt2, tokenised):
    for model, body in ((tiny_llama(0), "model"), (tiny_gpt2(0), "transformer")):
        expected = one_by_one(model, getattr(model, body), tokenised)
        found = embed(model, tokenised, batch_size)
        assert list(found) == ["chosen", "rejected", "prompt"]
        for name, values in found.items():
            assert values.dtype == torch.float32
            assert not values.requires_grad
            assert torch.allclose(values, expected[name], atol=2e-6)
    assert (found["chosen"] - found["rejected"]).abs().max() > 0.1


def test_the_padding_side_changes_nothing(tiny_llama, tokenised):
    model = tiny_llama(0)
    batch = PreferenceCollator(0)(list(tokenised))
    width = batch["input_ids"].shape[1]
    left = {name: torch.zeros_like(batch[name]) for name in ("input_ids", "attention_mask", "completion_mask")}
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for name, rows in left.items():
            rows[i, width - length :] = batch[name][i, :length]
    with torch.no_grad():
        assert torch.allclose(pair_embeddings(model, left), pair_embeddings(model, batch), atol=2e-6)
    left["completion_mask"] = left["attention_mask"].clone()
    with pytest.raises(DataError, match="pair 0 of the batch has a prompt without tokens"):
        pair_embeddings(model, left)


def test_dropout_is_off_and_modes_come_back(tiny_gpt2, tokenised):
    model = tiny_gpt2(0, dropout=0.5).train()
    model.transformer.h[0].eval()
    state = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    found = embed(model, tokenised)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = one_by_one(model, model.transformer, tokenised)
    assert torch.allclose(found["chosen"], expected["chosen"], atol=2e-6)


def test_sixteen_bits_are_given_as_float32(tiny_llama, tokenised):
    found = embed(tiny_llama(0).to(torch.bfloat16), tokenised)
    assert {values.dtype for values in found.values()} == {torch.float32}
    exact = embed(tiny_llama(0), tokenised)
    assert torch.allclose(found["chosen"], exact["chosen"], atol=0.1)


@pytest.fixture
def embedded(monkeypatch):
    """How many pairs have been embedded, and after how many the machine is to go away."""
    state = {"pairs": 0, "limit": None}
    own = embeddings_module.pair_embeddings

    def counted(model, batch):
        if state["limit"] is not None and state["pairs"] >= state["limit"]:
            raise KeyboardInterrupt
        state["pairs"] += len(batch["input_ids"]) // 2
        return own(model, batch)

    monkeypatch.setattr(embeddings_module, "pair_embeddings", counted)
    return state


def test_an_interrupted_pass_goes_on_and_a_second_is_read(tiny_llama, tokenised, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_INTERVAL", -1.0)
    monkeypatch.setattr(cache_module, "_TIMES_WRITING", 0.0)
    expected = embed(tiny_llama(0), tokenised)
    embedded.update(pairs=0, limit=4)
    with pytest.raises(KeyboardInterrupt):
        embed(tiny_llama(0), tokenised, cache_dir=tmp_path / "cache")
    embedded["limit"] = None
    for _ in range(2):
        found = embed(tiny_llama(0), tokenised, cache_dir=tmp_path / "cache")
        assert embedded["pairs"] == 5
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    embed(tiny_llama(1), tokenised, cache_dir=tmp_path / "cache")  # other weights, another file
    assert embedded["pairs"] == 10
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_cache_is_made_again(tiny_llama, tokenised, embedded, tmp_path, caplog):
    expected = embed(tiny_llama(0), tokenised, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        found = embed(tiny_llama(0), tokenised, cache_dir=tmp_path)
    assert "can't be read" in caplog.text
    assert embedded["pairs"] == 10
    assert torch.equal(found["prompt"], expected["prompt"])


def test_what_cannot_be_embedded(tiny_llama, tokenised):
    with pytest.raises(DataError, match="has no column rejected_ids"):
        embed(tiny_llama(0), tokenised.remove_columns("rejected_ids"))
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        embed(tiny_llama(0), tokenised, 0)
    with pytest.raises(DataError, match="the data set is empty"):
        embed(tiny_llama(0), tokenised.select([]))
    with pytest.raises(UnsupportedError, match="Linear doesn't say which module is its body"):
        embed(torch.nn.Linear(2, 2), tokenised)
    model = tiny_llama(0)
    token = tokenised[2]["rejected_ids"][-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.inf
    with pytest.raises(InferenceError, match="the embeddings of row 2 aren't finite"):
        embed(model, tokenised.select([0, 1, 2]), 1)
