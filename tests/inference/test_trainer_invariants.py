"""What must not change a training run: layout of batches, kind of reference, division into micro-batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, LlamaConfig, LlamaForCausalLM

import pluralpref.likelihood.reference as reference_module
from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.likelihood import FrozenParts, pair_logps
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
        if isinstance(eval_data, dict):
            evaluation = {name: Dataset.from_list(one) for name, one in eval_data.items()}
        else:
            evaluation = None if eval_data is None else Dataset.from_list(eval_data)
        return MixDPOTrainer(
            policy,
            strength=strength,
            args=MixDPOConfig(**{**short_training, "learning_rate": 1e-4, **options}),
            train_dataset=Dataset.from_list(rows() if data is None else data),
            eval_dataset=evaluation,
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


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("panel", [False, True])
def test_parts_of_a_batch_change_nothing(make, tiny_llama, monkeypatch, layout, panel):
    data = [{**row, "annotator": f"p{i % 5}"} for i, row in enumerate(rows())]
    held = []

    def run(budget):
        trainer = make(
            LogNormalStrength(mean=0.5, cv=0.5), policy=tiny_llama(0), data=data, panel=panel, attn_layout=layout,
            optim="sgd", learning_rate=1e-2, per_device_train_batch_size=6, gradient_accumulation_steps=2,
            max_tokens_per_batch=budget,
        )  # fmt: skip
        whole = trainer.compute_loss
        held.clear()
        monkeypatch.setattr(
            trainer, "compute_loss", lambda m, part, *a, **k: held.append(part) or whole(m, part, *a, **k)
        )
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        return trainer.state.log_history, weights, [float(p.detach()) for p in trainer.strength_modules.parameters()]

    history, weights, law = run(None)
    assert len(held) == 2 * history[-1]["step"]
    budget = 120
    other_history, other_weights, other_law = run(budget)
    assert len(held) > 2 * history[-1]["step"]
    for part in held:
        people = set(part.get("annotator_names", range(len(part["weight"]))))
        size = (
            part["input_ids"].numel() if layout == "padded" else len(part["weight"]) * part["pair_lengths"].sum(1).max()
        )
        assert size <= budget or len(people) == 1
    for one, other in zip(history, other_history, strict=True):
        for name in ("loss", "margins", "grad_norm", "logps/chosen", "rewards/accuracies", "beta/mean"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=2e-5), name
    torch.testing.assert_close(other_weights, weights, rtol=0, atol=3e-5)
    assert other_law == pytest.approx(law, abs=1e-4)


@pytest.mark.parametrize("panel", [False, True])
def test_parts_of_an_evaluation_batch_change_nothing(make, tiny_llama, panel):
    """Metrics and predictions, which stay in the order of the rows, when batches are evaluated in parts."""
    data = [{**row, "annotator": f"p{i % 5}"} for i, row in enumerate(rows(11))]

    def evaluated(budget, batch_size):
        trainer = make(
            LogNormalStrength(mean=0.5, cv=0.5), policy=tiny_llama(0), data=data, eval_data=data, panel=panel,
            max_tokens_per_batch=budget, per_device_eval_batch_size=batch_size,
        )  # fmt: skip
        with torch.no_grad():
            trainer.ref_model = tiny_llama(1)
        held = []
        inner = trainer._pair_logps
        trainer._pair_logps = lambda model, part: held.append(len(part["weight"])) or inner(model, part)
        metrics = {k: v for k, v in trainer.evaluate().items() if not k.endswith(("time", "second"))}
        return metrics, trainer.predict(trainer.eval_dataset).predictions, held

    metrics, predictions, held = evaluated(None, 8)
    other_metrics, other_predictions, other_held = evaluated(120, 8)
    assert held == [8, 3] * 2
    assert len(other_held) > 4
    assert sum(other_held) == 22
    assert metrics["eval_margins"] != 0
    assert len(set(predictions.round(4))) > 8
    torch.testing.assert_close(torch.tensor(other_predictions), torch.tensor(predictions), rtol=0, atol=2e-5)
    assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=2e-5)


def test_evaluation_sets_by_name_and_early_stopping(make, tmp_path):
    """A metric of one of the sets, which gets no better, ends training."""
    trainer = make(
        LogNormalStrength(mean=0.5, cv=0.5), eval_data={"easy": rows(8), "hard": rows(12)[8:]}, output_dir=str(tmp_path),
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True, max_steps=20,
        metric_for_best_model="eval_hard_loss", greater_is_better=True,
        trainer={"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]},
    )  # fmt: skip
    trainer.train()
    values = {line["step"]: line["eval_hard_loss"] for line in trainer.state.log_history if "eval_hard_loss" in line}
    assert (
        trainer.state.global_step == max(values) == 3 < 20
    )  # the loss falls: the first is the largest, two more don't beat it
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    for name in ("easy", "hard"):
        for metric in ("loss", "margins", "rewards/accuracies", "runtime"):
            assert any(f"eval_{name}_{metric}" in line for line in trainer.state.log_history), (name, metric)
    # The strength goes back with the policy.
    best = LogNormalStrength.from_pretrained(tmp_path / "checkpoint-1")
    assert float(trainer.strength.mean) == pytest.approx(float(best.mean), abs=0)


def test_an_empty_evaluation_set_is_refused(make):
    same = [{"prompt": "a", "chosen": " b", "rejected": " b"}]
    with pytest.raises(DataError, match=r"no usable|no row|0 of 1"):
        make(LogNormalStrength(mean=0.5, cv=0.5), eval_data=same)


def test_a_prompt_of_ten_thousand_tokens(tiny_tokenizer):
    """Beside short ones, and answers of one token beside a thousand: both layouts give one number."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=16_384,
        )
    )  # fmt: skip
    ids = torch.randint(3, 250, (10_000,)).tolist()
    pairs = [
        {"prompt_ids": ids, "chosen_ids": ids[:1], "rejected_ids": ids[:1000]},
        {"prompt_ids": ids[:2], "chosen_ids": ids[:1000], "rejected_ids": ids[5:6]},
    ]
    batch = PreferenceCollator(0)(pairs)
    with torch.no_grad():
        padded, shared = (pair_logps(model, batch, attn_layout=layout) for layout in ("padded", "shared"))
    for one, other in zip(padded, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-3)
