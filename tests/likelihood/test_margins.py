"""Margins, references and scoring of a data set."""

import pytest
import torch
from datasets import Dataset

from pluralpref.errors import ConfigError, DataError
from pluralpref.likelihood import (
    PairLogps,
    frozen_copy,
    log_ratio_margins,
    pair_logps,
    precompute_reference,
    reference_pair_logps,
    score_margins,
)

LENGTHS = [(3, 4, 2), (6, 1, 9), (2, 5, 5), (4, 2, 12), (1, 1, 1)]


@pytest.fixture
def tokenised():
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")

    def ids(count):
        return torch.randint(2, 300, (count,), generator=generator).tolist()

    return Dataset.from_list([dict(zip(names, map(ids, lengths), strict=True)) for lengths in LENGTHS])


def collate(rows):
    sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    width = max(len(prompt) + len(answer) for prompt, answer in sides)
    batch = {name: torch.zeros(len(sides), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["completion_mask"] = torch.zeros(len(sides), width, dtype=torch.long)
    for i, (prompt, answer) in enumerate(sides):
        end = len(prompt) + len(answer)
        batch["input_ids"][i, :end] = torch.tensor(prompt + answer)
        batch["attention_mask"][i, :end] = 1
        batch["completion_mask"][i, len(prompt) : end] = 1
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float64)
    return batch


def test_the_formula():
    policy = PairLogps(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -1.0]))
    reference = PairLogps(torch.tensor([-2.0, -7.0]), torch.tensor([-6.0, -1.5]))
    assert log_ratio_margins(policy, reference).tolist() == [-3.0, 1.5]


def test_the_first_margin_is_exactly_zero(tiny_gpt2, tiny_llama, tokenised):
    for policy in (tiny_gpt2(0, dropout=0.5).train(), tiny_llama(0, attention_dropout=0.5).train()):
        with torch.no_grad():  # the policy is not the checkpoint that its config names
            next(iter(policy.parameters())).mul_(1.5)
        reference = frozen_copy(policy)
        scores = score_margins(policy, reference, tokenised, collate, batch_size=2, progress=False)
        assert torch.equal(scores["margins"], torch.zeros(5, dtype=torch.float64))
        assert (scores["chosen_logps"] < -1).all()
        assert policy.training


def test_frozen_copy(tiny_llama):
    policy = tiny_llama(0, tie_word_embeddings=True).train()
    policy.gradient_checkpointing_enable()
    policy(input_ids=torch.ones(1, 2, dtype=torch.long)).logits.sum().backward()
    reference = frozen_copy(policy)
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    assert not any(m.training or getattr(m, "gradient_checkpointing", False) for m in reference.modules())
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert all(p.requires_grad and p.grad is not None for p in policy.parameters())
    assert policy.is_gradient_checkpointing
    assert policy.training
    before = reference.lm_head.weight.clone()
    with torch.no_grad():
        policy.lm_head.weight.add_(1.0)
    assert torch.equal(reference.lm_head.weight, before)
    with pytest.raises(ConfigError, match="wraps the policy for distributed training"):
        frozen_copy(torch.nn.DataParallel(policy))


def test_precomputed_equals_live(tiny_llama, tokenised):
    policy, reference = tiny_llama(0), tiny_llama(1)
    live = score_margins(policy, reference, tokenised, collate, batch_size=2, progress=False)
    table = precompute_reference(reference, tokenised, collate, batch_size=2, progress=False)
    assert table.column_names == [*tokenised.column_names, "ref_chosen_logps", "ref_rejected_logps"]
    assert table["prompt_ids"][:] == tokenised["prompt_ids"][:]
    assert table["ref_chosen_logps"][:] == live["ref_chosen_logps"].tolist()
    assert table["ref_rejected_logps"][:] == live["ref_rejected_logps"].tolist()
    from_table = score_margins(policy, None, table, collate, batch_size=2, progress=False)
    assert torch.equal(from_table["margins"], live["margins"])
    # Old columns are replaced, not trusted.
    again = precompute_reference(policy, table, collate, batch_size=2, progress=False)
    assert again["ref_chosen_logps"][:] == live["chosen_logps"].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_scores_do_not_depend_on_the_batch_size(batch_size, tiny_llama, tokenised):
    policy, reference = tiny_llama(0), tiny_llama(1)
    scores = score_margins(policy, reference, tokenised, collate, batch_size=batch_size, progress=False)
    for i, row in enumerate(tokenised):
        with torch.no_grad():
            ours, theirs = pair_logps(policy, collate([row])), pair_logps(reference, collate([row]))
        expected = (ours.chosen - theirs.chosen) - (ours.rejected - theirs.rejected)
        assert scores["margins"][i].item() == pytest.approx(expected.item(), abs=2e-5)
        assert scores["chosen_logps"][i].item() == pytest.approx(ours.chosen.item(), abs=2e-5)
        assert scores["ref_rejected_logps"][i].item() == pytest.approx(theirs.rejected.item(), abs=2e-5)
    assert scores["margins"].abs().min() > 1e-3


def test_references_that_are_missing(tiny_llama, tokenised):
    batch = collate(list(tokenised))
    with pytest.raises(ConfigError, match="no reference: give a reference model, or a data set with the columns"):
        reference_pair_logps(batch)
    half = {**batch, "ref_chosen_logps": torch.zeros(5)}
    with pytest.raises(ConfigError, match="the batch has ref_chosen_logps but not the other"):
        reference_pair_logps(half, tiny_llama(0))
    with pytest.raises(DataError, match=r"has no column rejected_ids .*tokenise it first"):
        score_margins(tiny_llama(0), tiny_llama(1), tokenised.remove_columns("rejected_ids"), collate, progress=False)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        score_margins(tiny_llama(0), tiny_llama(1), tokenised, collate, batch_size=0, progress=False)
