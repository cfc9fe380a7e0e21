"""What must not change a training run: layout of batches, kind of reference, division into micro-batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from datasets import Dataset

import pluralpref.likelihood.reference as reference_module
from pluralpref.errors import ConfigError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.likelihood import FrozenParts
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

STRENGTHS = {"fixed": FixedStrength, "lognormal": LogNormalStrength, "gamma": GammaStrength}
WAYS = list(itertools.product(["padded", "shared"], ["live", "precomputed", "parts"], [1, 4]))


def rows(count=24):
    made = []
    for i in range(count):
        answers = [" good" + "!" * (i % 4), f" bad {i}"]
        chosen, rejected = answers if i % 3 else answers[::-1]
        made.append({"prompt": "what is " + "so " * (i % 5) + f"{i}", "chosen": chosen, "rejected": rejected})
    return made


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training):
    def build(strength, *, policy=None, data=None, eval_data=None, trainer=None, **options):
        policy = tiny_llama(0) if policy is None else policy
        return MixDPOTrainer(
            policy,
            strength=strength,
            args=MixDPOConfig(**{**short_training, "learning_rate": 1e-4, **options}),
            train_dataset=Dataset.from_list(rows() if data is None else data),
            eval_dataset=None if eval_data is None else Dataset.from_list(eval_data),
            processing_class=tiny_tokenizer,
            **(trainer or {}),
        )

    return build


def partly(model):
    """A policy of which a part is trained, so that the reference shares the rest."""
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    return model


def run(make, tiny_llama, strength, layout, reference, accumulation):
    trainer = make(
        STRENGTHS[strength](0.5) if strength == "fixed" else STRENGTHS[strength](mean=0.5, cv=0.5),
        policy=partly(tiny_llama(0)),
        attn_layout=layout,
        # Not Adam, whose first step is the sign of a gradient: at margins of 0 that is rounding.
        optim="sgd",
        learning_rate=1e-2,
        precompute_ref_log_probs=reference == "precomputed",
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    if reference == "live":  # of a whole copy
        trainer.ref_model = tiny_llama(0).requires_grad_(False).eval()
    else:
        assert reference == "precomputed" or isinstance(trainer.ref_model, FrozenParts)
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.model.layers[-1].parameters()])
    law = [float(p.detach()) for p in trainer.strength_modules.parameters()]
    return trainer.state.log_history, weights, law


@pytest.mark.parametrize("strength", STRENGTHS)
def test_layout_reference_and_accumulation_change_nothing(strength, make, tiny_llama):
    expected = run(make, tiny_llama, strength, *WAYS[0])
    for way in WAYS[1:]:
        history, weights, law = run(make, tiny_llama, strength, *way)
        for one, other in zip(history, expected[0], strict=True):
            for name in ("loss", "margins", "grad_norm", "logps/chosen", "beta/mean"):
                if name in other:
                    assert one[name] == pytest.approx(other[name], rel=1e-3, abs=2e-5), (way, name)
        torch.testing.assert_close(weights, expected[1], rtol=0, atol=3e-5, msg=str(way))
        assert law == pytest.approx(expected[2], abs=1e-4), way


def test_no_reference_runs_while_training_on_precomputed_numbers(make, monkeypatch):
    trainer = make(LogNormalStrength(mean=0.5, cv=0.5), precompute_ref_log_probs=True)
    assert trainer.ref_model is None

    def never(*arguments, **options):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(reference_module, "pair_logps", never)
    trainer.train()
    assert trainer.state.global_step == 4
    # Pairs without precomputed numbers can't be compared with a policy that has moved on.
    with pytest.raises(ConfigError, match="no reference"):
        trainer.evaluate(Dataset.from_list(rows(4)))


def test_precomputed_pairs_are_shuffled(make):
    seen = []
    trainer = make(FixedStrength(0.5), precompute_ref_log_probs=True, num_train_epochs=1, max_steps=-1)
    collate = trainer.data_collator
    trainer.data_collator = lambda batch: seen.extend(row["row"] for row in batch) or collate(batch)
    trainer.train()
    assert sorted(seen) == list(range(24))
    assert seen != list(range(24))


@pytest.mark.parametrize("reference", ["live", "precomputed"])
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_the_first_margin_in_sixteen_bits(make, layout, reference):
    """Both models in the same precision; batches of other pairs change a sum by its rounding only."""
    trainer = make(
        FixedStrength(1.0),
        bf16=True,
        attn_layout=layout,
        precompute_ref_log_probs=reference == "precomputed",
        max_steps=1,
    )
    trainer.train()
    assert abs(trainer.state.log_history[0]["margins"]) <= (0 if reference == "live" else 1e-4)


@pytest.mark.parametrize(
    ("metric", "greater"), [("eval_loss", False), ("eval_rewards/accuracies", True), ("rewards/margins", True)]
)
def test_the_best_checkpoint_by_any_metric(make, tmp_path, metric, greater):
    trainer = make(
        LogNormalStrength(mean=0.5, cv=0.5), eval_data=rows(8), output_dir=str(tmp_path), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model=metric,
        greater_is_better=greater,
    )  # fmt: skip
    trainer.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = {line["step"]: line[name] for line in trainer.state.log_history if name in line}
    best = max(values.values()) if greater else min(values.values())
    assert trainer.state.best_metric == pytest.approx(best)
    step = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    assert values[step] == pytest.approx(best)


@pytest.mark.parametrize("count", [1, 3])
def test_micro_batches_of_any_size(make, count):
    trainer = make(LogNormalStrength(mean=0.5, cv=0.5), data=rows(7), per_device_train_batch_size=count, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


def test_very_long_beside_very_short(make, tiny_llama, tiny_tokenizer):
    """An answer of one token and one of a hundred in a batch, by either layout."""
    data = [
        {"prompt": "q", "chosen": "!", "rejected": " word" * 20},
        {"prompt": "a longer question " * 5, "chosen": " word" * 15, "rejected": "?"},
    ]
    losses = []
    for layout in ("padded", "shared"):
        trainer = make(FixedStrength(0.5), data=data, attn_layout=layout, max_steps=2, per_device_train_batch_size=2)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
