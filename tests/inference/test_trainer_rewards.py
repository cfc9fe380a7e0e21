"""A reward model in the place of the policy."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForSequenceClassification

from pluralpref.cli.main import main
from pluralpref.data import PreferenceCollator, read_margins
from pluralpref.errors import ConfigError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.likelihood import pair_logps
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength


def rows(count=24):
    return [
        {
            "prompt": f"q{i} " + "so " * (i % 4),
            "chosen": f" good {i}",
            "rejected": f" bad {i}",
            "annotator": f"p{i % 4}",
        }
        for i in range(count)
    ]


@pytest.fixture
def reward_model(tiny_tokenizer):
    def build(seed=0):
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, num_labels=1, pad_token_id=tiny_tokenizer.pad_token_id,
            )
        )  # fmt: skip

    return build


@pytest.fixture
def make(reward_model, tiny_tokenizer, short_training):
    def build(strength=None, **options):
        return MixDPOTrainer(
            reward_model(),
            strength=GammaStrength(mean=1.0, cv=0.5) if strength is None else strength,
            args=MixDPOConfig(**{**short_training, "learning_rate": 1e-2, **options}),
            train_dataset=Dataset.from_list(rows()),
            eval_dataset=Dataset.from_list(rows(8)),
            processing_class=tiny_tokenizer,
        )

    return build


def test_it_is_bradley_terry_with_a_fixed_strength(make, reward_model):
    trainer = make(FixedStrength(2.0), max_steps=1, logging_steps=1, per_device_train_batch_size=24)
    with torch.no_grad():
        rewards = pair_logps(
            reward_model(), PreferenceCollator(trainer.processing_class.pad_token_id)(list(trainer.train_dataset))
        )
    trainer.train()
    logged = trainer.state.log_history[0]
    margins = rewards.chosen - rewards.rejected
    assert logged["loss"] == pytest.approx(float(-logsigmoid(2 * margins).mean()), rel=1e-5)
    assert logged["margins"] == pytest.approx(float(margins.mean()), abs=1e-6)
    assert not any(name.startswith("logps") for name in logged)


@pytest.mark.parametrize(
    "options", [{}, {"panel": True}, {"max_tokens_per_batch": 60}, {"gradient_accumulation_steps": 2}]
)
def test_rewards_are_learned(make, options):
    trainer = make(LogNormalStrength(mean=1.0, cv=0.5), max_steps=40, logging_steps=40, **options)
    before = trainer.evaluate()["eval_rewards/margins"]
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_rewards/accuracies"] == 1
    assert found["eval_rewards/margins"] > before + 0.5
    assert not any("logps" in name for name in found)


def test_a_resumed_run(make, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
    whole = make(**options)
    whole.train()
    resumed = make(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.strength.mean == resumed.strength.mean


def test_what_is_refused(make, reward_model, tiny_tokenizer, short_training):
    with pytest.raises(ConfigError, match="a reward model has no reference"):
        make(precompute_ref_log_probs=True)
    with pytest.raises(ConfigError, match="a reward model has no reference"):
        MixDPOTrainer(
            reward_model(), reward_model(1), args=MixDPOConfig(**short_training), train_dataset=Dataset.from_list(rows()),
            processing_class=tiny_tokenizer,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="no effect on a reward model"):
        make(attn_layout="shared", max_steps=1).train()


def test_the_commands(reward_model, tiny_tokenizer, tmp_path, capsys):
    reward_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    run, data = tmp_path / "run", str(tmp_path / "pairs.jsonl")
    train = [
        "train", "--reward_model", "True", "--model_name_or_path", str(tmp_path / "model"), "--dataset_name", data,
        "--eval_dataset_name", data, "--output_dir", str(run), "--max_steps", "3", "--logging_steps", "1",
        "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "True", "--disable_tqdm", "True", "--beta", "1",
    ]  # fmt: skip
    assert main(train) == 0
    assert "the difference of rewards" in (run / "policy" / "README.md").read_text()
    table = read_margins(run / "margins.parquet")
    assert {"chosen_rewards", "rejected_rewards"} <= set(table.groups)
    assert not any("logps" in name for name in table.groups)
    again = tmp_path / "again.parquet"
    score = ["margins", "--reward_model", "True", "--policy", str(run / "policy"), "--dataset_name", data]
    assert main([*score, "--output", str(again)]) == 0
    torch.testing.assert_close(read_margins(again).margins, table.margins, rtol=0, atol=1e-5)
    assert main([*score, "--reference", str(tmp_path / "model"), "--output", str(tmp_path / "x.parquet")]) == 2
    assert main([*train, "--ref_model_name_or_path", "x", "--output_dir", str(tmp_path / "y")]) == 2
    shown = capsys.readouterr().err
    assert "--reference has no effect with --reward_model" in shown
    assert "--ref_model_name_or_path has no effect with --reward_model" in shown
