"""References that share the weights which aren't trained."""

import copy

import pytest
import torch
from datasets import Dataset

from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.likelihood import (
    FrozenParts,
    frozen_copy,
    log_ratio_margins,
    pair_logps,
    reference_pair_logps,
    score_margins,
    trains_a_part,
)
from pluralpref.models import LogNormalStrength

ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10, 11, 12]},
    {"prompt_ids": [20], "chosen_ids": [21, 22, 23, 24], "rejected_ids": [25]},
]


@pytest.fixture
def partly(tiny_llama):
    """A model of which only the last layer is trained."""
    model = tiny_llama(0)
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    return model


@pytest.fixture
def batch():
    return PreferenceCollator(0)(ROWS)


def test_which_models(tiny_llama, partly):
    assert trains_a_part(partly)
    assert not trains_a_part(tiny_llama(0))
    assert not trains_a_part(tiny_llama(0).requires_grad_(False))


def test_the_reference_stays_where_the_policy_was(partly, batch):
    whole, reference = frozen_copy(partly), FrozenParts(partly)
    assert 0 < reference.num_bytes() < sum(p.nbytes for p in partly.parameters())
    with torch.no_grad():
        for parameter in partly.model.layers[-1].parameters():
            parameter.add_(0.1)
    moved = torch.cat(pair_logps(partly, batch)).detach()
    for _ in range(2):
        found = reference_pair_logps(batch, reference)
        assert torch.equal(torch.cat(found), torch.cat(reference_pair_logps(batch, whole)))
        assert torch.equal(torch.cat(pair_logps(partly, batch)), moved)
    assert (torch.cat(found) - moved).abs().max() > 1e-3


def test_the_policy_is_given_back_after_an_error(partly):
    reference = FrozenParts(partly)
    with torch.no_grad():
        partly.model.layers[-1].mlp.down_proj.weight.add_(1)
    before = copy.deepcopy(partly.state_dict())
    with pytest.raises(KeyError), reference.active():
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in partly.state_dict().items())


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_those_beside_a_whole_copy(partly, batch, bf16):
    """Autocast keeps copies of parameters in 16 bits, which policy and reference mustn't share."""

    def gradients(reference):
        partly.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            theirs = reference_pair_logps(batch, reference)
            margins = log_ratio_margins(pair_logps(partly, batch), theirs)
        assert margins.abs().min() > 1e-3
        margins.exp().sum().backward()
        return [margins.detach(), *(p.grad.clone() for p in partly.parameters() if p.grad is not None)]

    references = [frozen_copy(partly), FrozenParts(partly)]
    with torch.no_grad():
        partly.model.layers[-1].mlp.down_proj.weight.mul_(3)
    for one, other in zip(*map(gradients, references), strict=True):
        assert torch.equal(one, other)


def test_scoring(partly):
    whole, reference = frozen_copy(partly), FrozenParts(partly)
    with torch.no_grad():
        partly.model.layers[-1].mlp.down_proj.weight.mul_(1.5)
    dataset, collator = Dataset.from_list(ROWS), PreferenceCollator(0)
    found, expected = (score_margins(partly, r, dataset, collator, progress=False) for r in (reference, whole))
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_a_wrapped_policy_is_refused(partly):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(ConfigError, match="Wrapper wraps the policy"):
        FrozenParts(Wrapper(partly))


def train(model, tokenizer, options, ref_model=None):
    rows = [{"prompt": f"q{i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(16)]
    trainer = MixDPOTrainer(
        model, ref_model, LogNormalStrength(mean=0.5, cv=0.5), MixDPOConfig(**options),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return trainer, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    "more", [{}, {"gradient_checkpointing": True}, {"precompute_ref_log_probs": True}, {"bf16": True}]
)
def test_training_equals_that_beside_a_whole_copy(partly, tiny_tokenizer, short_options, more):
    whole = copy.deepcopy(partly)
    reference = frozen_copy(partly)
    trainer, losses = train(partly, tiny_tokenizer, {**short_options, **more})
    _, expected = train(whole, tiny_tokenizer, {**short_options, **more}, reference)
    assert losses == expected
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[-1] < losses[0]
    assert abs(trainer.state.log_history[3]["margins"]) > 1e-3
    assert more.get("precompute_ref_log_probs") or isinstance(trainer.ref_model, FrozenParts)


@pytest.fixture
def short_options(tmp_path):
    return {
        "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_steps": 4,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


@pytest.mark.parametrize(("trained_before", "bf16"), [(False, False), (True, False), (True, True)])
def test_adapters(trained_before, bf16, tiny_llama, tiny_tokenizer, short_options):
    """Fresh ones have the base model as reference; those trained before belong to the reference."""
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "up_proj"])
    model = peft.get_peft_model(tiny_llama(0), config)
    if trained_before:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    trainer, losses = train(model, tiny_tokenizer, {**short_options, "bf16": bf16})
    assert isinstance(trainer.ref_model, FrozenParts)
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[-1] < losses[0]
    assert trainer.state.log_history[0]["margins"] == 0
    assert abs(trainer.state.log_history[3]["margins"]) > 1e-3
