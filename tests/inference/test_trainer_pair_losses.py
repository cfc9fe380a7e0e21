"""Other methods' losses in the trainer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, LogNormalStrength

OPTIONS = {
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "ipo": {},
    "gr_dpo": {"gr_dpo_column": "topic", "gr_dpo_step_size": 0.5},
    "beta_dpo": {"beta_dpo_scaling": 0.3, "beta_dpo_filtered": 0.25},
}


def rows(count=24):
    return [
        {
            "prompt": f"q{i} " + "so " * (i % 5), "chosen": f" good {i}", "rejected": f" bad {i * i}", "topic": "abc"[i % 3],
            "weight": 1.0 + i % 2,
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training):
    def build(loss_type, strength=None, data=None, **options):
        settings = {**short_training, "learning_rate": 1e-2, "optim": "sgd", "loss_type": loss_type}
        return MixDPOTrainer(
            tiny_llama(0),
            strength=FixedStrength(0.5) if strength is None else strength,
            args=MixDPOConfig(**{**settings, **options}),
            train_dataset=Dataset.from_list(rows() if data is None else data),
            eval_dataset=Dataset.from_list(rows(8)),
            processing_class=tiny_tokenizer,
        )

    return build


def result(trainer):
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return trainer.state.log_history, weights


@pytest.mark.parametrize("loss_type", OPTIONS)
def test_division_into_micro_batches_changes_nothing(loss_type, make):
    options = {**OPTIONS[loss_type], "logging_steps": 1}
    history, weights = result(make(loss_type, per_device_train_batch_size=8, **options))
    for division in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 8, "max_tokens_per_batch": 80},
        {"per_device_train_batch_size": 8, "attn_layout": "padded"},
    ):
        other, other_weights = result(make(loss_type, **options, **division))
        torch.testing.assert_close(other_weights, weights, rtol=0, atol=3e-5)
        for one, two in zip(history, other, strict=True):
            for name in set(one) & {"loss", "grad_norm", "beta_dpo/beta", "beta_dpo/threshold", "gr_dpo/weight/a"}:
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=2e-5), (division, name)


def test_the_first_losses(make):
    """At margins of 0 every loss is known."""
    log2 = 0.693147
    for loss_type, expected in {"cdpo": log2, "robust": log2, "ipo": 1.0, "gr_dpo": log2, "beta_dpo": log2}.items():
        # All pairs in one step, whose mean weight is that of all pairs then.
        trainer = make(loss_type, max_steps=1, logging_steps=1, per_device_train_batch_size=24, **OPTIONS[loss_type])
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5), loss_type


@pytest.mark.parametrize("loss_type", ["gr_dpo", "beta_dpo"])
def test_a_resumed_run_goes_on_with_its_state(loss_type, make, tmp_path):
    options = {**OPTIONS[loss_type], "logging_steps": 1, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make(loss_type, output_dir=str(tmp_path / "whole"), **options)
    history, weights = result(whole)
    resumed = make(loss_type, output_dir=str(tmp_path / "whole"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    found = torch.cat([p.detach().flatten() for p in resumed.model.parameters()])
    assert torch.equal(found, weights)
    last = {k: v for k, v in history[-2].items() if k.startswith(("gr_dpo", "beta_dpo"))}
    again = {k: v for k, v in resumed.state.log_history[-2].items() if k in last}
    assert last == again
    assert last


@pytest.mark.parametrize("loss_type", OPTIONS)
def test_evaluation_changes_no_state(loss_type, make):
    trainer = make(loss_type, max_steps=2, **OPTIONS[loss_type])
    trainer.train()
    before = {name: value.clone() for name, value in trainer.strength_modules.state_dict().items()}
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    for name, value in trainer.strength_modules.state_dict().items():
        assert torch.equal(value, before[name]), name
    if loss_type == "gr_dpo":  # the groups' losses with their weights, over all pairs whatever the batches
        trainer.args.per_device_eval_batch_size = 3
        assert trainer.evaluate()["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)


def test_what_is_refused(make):
    for options, message in (
        ({"loss_type": "cdpo"}, "loss_type='cdpo' needs label_smoothing"),
        ({"loss_type": "mixdpo", "label_smoothing": 0.1}, "label_smoothing has no effect with loss_type='mixdpo'"),
        ({"loss_type": "hinge"}, "loss_type='hinge': choose one of mixdpo, cdpo"),
        ({"loss_type": "gr_dpo"}, "needs gr_dpo_column"),
        ({"loss_type": "ipo", "strength": LogNormalStrength(mean=0.1, cv=0.5)}, "one constant beta"),
        ({"loss_type": "ipo", "strength": FixedStrength(0.1, learned=True)}, "one constant beta"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    with pytest.raises(DataError, match="no column country for gr_dpo_column"):
        make("gr_dpo", gr_dpo_column="country", gr_dpo_step_size=0.1)
