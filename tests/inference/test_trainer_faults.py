"""Numbers that stop being numbers, and requests to stop."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.termination import Termination
from pluralpref.models import LogNormalStrength


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training):
    def build(callbacks=(), **options):
        rows = [{"prompt": f"q{i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(16)]
        return MixDPOTrainer(
            tiny_llama(0),
            strength=LogNormalStrength(mean=0.3, cv=0.5),
            args=MixDPOConfig(
                **{**short_training, "save_strategy": "steps", "save_steps": 2, "max_steps": 6, **options}
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:4]),
            processing_class=tiny_tokenizer,
            callbacks=list(callbacks),
        )

    return build


class At(TrainerCallback):
    """Do something when a step begins."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)


def spoil_weights(model):
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


def spoil_gradient(model):
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))


def test_a_margin_that_is_no_number_stops_training_and_names_the_rows(make, tmp_path):
    trainer = make([At(4, spoil_weights)], output_dir=str(tmp_path))
    with pytest.raises(InferenceError, match=r"step 4: \d+ of \d+ margins .* aren't finite \(row \d+: nan") as caught:
        trainer.train()
    assert "checkpoint-2" in str(caught.value)
    assert {entry.name for entry in tmp_path.glob("checkpoint-*")} == {"checkpoint-2"}
    again = make(output_dir=str(tmp_path))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6


def test_a_gradient_that_is_not_finite_is_not_applied(make, tmp_path):
    trainer = make([At(3, spoil_gradient)], output_dir=str(tmp_path))
    with pytest.raises(InferenceError, match=r"step 3: the gradient isn't finite \(norm nan|inf"):
        trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    assert trainer.state.global_step == 2


def test_a_gradient_of_the_strength_counts_as_well(make):
    def spoil(model):
        trainer.strength.beta_cv_unconstrained.register_hook(lambda gradient: gradient * float("nan"))

    trainer = make([At(2, spoil)])
    with pytest.raises(InferenceError, match="step 2: the gradient isn't finite"):
        trainer.train()
    assert torch.isfinite(trainer.strength.cv)


def test_evaluation_is_checked_too(make):
    trainer = make()
    trainer.evaluate()
    spoil_weights(trainer.model)
    with pytest.raises(InferenceError, match="evaluation after step 0: 4 of 4 margins"):
        trainer.evaluate()
    trainer = make()
    spoil_weights(trainer.model)
    with pytest.raises(InferenceError, match="hidden states of LlamaForCausalLM aren't finite on its first batch"):
        trainer.evaluate()


def test_sigterm_saves_and_exits(make, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = make([At(3, lambda model: os.kill(os.getpid(), signal.SIGTERM))], output_dir=str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()
    assert (tmp_path / "checkpoint-3" / "strength.safetensors").is_file()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_signal_is_given_back_and_a_second_one_is_not_held_up():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *a: calls.append(1))
    try:
        with Termination() as termination:
            assert not termination.received
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.received
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with Termination() as termination:
            seen.append((signal.getsignal(signal.SIGTERM), termination.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


@pytest.fixture
def checkpoint(make, tmp_path):
    make(output_dir=str(tmp_path / "first"), max_steps=2).train()
    return tmp_path / "first" / "checkpoint-2"


@pytest.mark.parametrize("name", ["model.safetensors", "strength.safetensors"])
def test_a_truncated_checkpoint_says_so(make, checkpoint, tmp_path, name):
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:-40])
    trainer = make(output_dir=str(tmp_path / "second"))
    with pytest.raises(DataError, match=r"can't be (loaded|read)"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_model_says_so(make, checkpoint, tmp_path, tiny_llama):
    trainer = make(output_dir=str(tmp_path / "second"))
    trainer.model.resize_token_embeddings(64)
    with pytest.raises(DataError, match="is damaged, or of another model"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_what_is_no_checkpoint(make, checkpoint, tmp_path):
    (checkpoint / "trainer_state.json").write_text("{")
    trainer = make(output_dir=str(tmp_path / "second"))
    with pytest.raises(DataError, match="is no complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ConfigError, match="there is no such folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_full_disk_leaves_the_checkpoint_before(make, tmp_path, monkeypatch):
    """The third checkpoint breaks off in the middle; the run goes on from the second."""
    trainer = make(output_dir=str(tmp_path))
    save = type(trainer.strength).save_pretrained

    def full(self, folder):
        if "checkpoint-6" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(type(trainer.strength), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-6").is_dir()
    again = make(output_dir=str(tmp_path), max_steps=8)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (
        steps == sorted(set(steps)) or len(steps) == len(set(steps)) + 1
    )  # the summary of a run repeats its last step


def test_transformers_own_switch_is_refused(short_training):
    with pytest.raises(ConfigError, match="enable_jit_checkpoint has no effect"):
        MixDPOConfig(**short_training, enable_jit_checkpoint=True)


@pytest.mark.parametrize("option", [{"torch_compile": True}, {"torch_compile_mode": "reduce-overhead"}])
def test_compiling_a_forward_that_is_not_run_is_refused(short_training, option):
    before = dict(os.environ)
    with pytest.raises(ConfigError, match="torch_compile has no effect"):
        MixDPOConfig(**short_training, **option)
    assert dict(os.environ) == before
