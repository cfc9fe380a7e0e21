"""Fixed strength against TRL's DPOTrainer: the same five steps. Needs the ``bench`` extra."""

import copy
import json

import pytest
import torch
from datasets import Dataset

from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

pytestmark = pytest.mark.bench

STEPS, PAIRS, BETA = 5, 32, 0.3


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    words = ["apple", "stone", "river", "cloud", "green", "quiet", "seven", "lamp"]

    def text(low, high):
        count = int(torch.randint(low, high, (), generator=generator))
        return " ".join(words[int(i)] for i in torch.randint(len(words), (count,), generator=generator))

    return Dataset.from_list(
        [{"prompt": text(2, 9), "chosen": " " + text(1, 8), "rejected": " " + text(1, 8)} for _ in range(PAIRS)]
    )


COMMON = {
    "learning_rate": 1e-3,
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 11,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture
def with_trl(tmp_path, pairs, tiny_llama, tiny_tokenizer):
    """(log of every step, parameters at the end) of TRL's trainer."""
    trl = pytest.importorskip("trl", reason="the bench extra is not installed")
    policy = tiny_llama(0)
    # Without a reference, TRL would load one from the path that an in-memory model doesn't have.
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        args=trl.DPOConfig(str(tmp_path / "trl"), beta=BETA, max_length=512, **COMMON),
        train_dataset=pairs,
        processing_class=copy.deepcopy(tiny_tokenizer),
    )
    trainer.train()
    return trainer.state.log_history, policy.state_dict()


def with_pluralpref(folder, strength, pairs, policy, tokenizer, **options):
    trainer = MixDPOTrainer(
        model=policy,
        strength=strength,
        args=MixDPOConfig(str(folder), **{**COMMON, **options}),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.state.log_history, policy.state_dict()


def worst(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_fixed_is_trls_dpo(tmp_path, with_trl, pairs, tiny_llama, tiny_tokenizer):
    log, state = with_trl
    ours, our_state = with_pluralpref(tmp_path / "ours", FixedStrength(BETA), pairs, tiny_llama(0), tiny_tokenizer)
    start = tiny_llama(0).state_dict()
    assert worst(our_state, start) > 1e-3  # something was learned
    assert worst(our_state, state) < 1e-5
    for step in range(STEPS):
        for name, tolerance in (
            ("loss", 1e-5), ("grad_norm", 1e-4), ("rewards/chosen", 1e-5), ("rewards/rejected", 1e-5),
            ("rewards/margins", 1e-5), ("rewards/accuracies", 1e-12), ("learning_rate", 1e-12),
        ):  # fmt: skip
            assert ours[step][name] == pytest.approx(log[step][name], abs=tolerance, rel=1e-5), (step, name)
    json.dumps(ours)


@pytest.mark.parametrize(
    ("family", "options"),
    [(LogNormalStrength, {}), (LogNormalStrength, {"num_samples": 16}), (GammaStrength, {})],
    ids=["lognormal", "lognormal-16", "gamma"],
)
def test_a_spread_of_almost_nothing_is_trls_dpo(tmp_path, with_trl, pairs, tiny_llama, tiny_tokenizer, family, options):
    _, state = with_trl
    strength = family(mean=BETA, cv=1e-4)
    _, ours = with_pluralpref(
        tmp_path / "ours", strength, pairs, tiny_llama(0), tiny_tokenizer, strength_learning_rate=0.0, **options
    )
    assert worst(ours, state) < 1e-4
