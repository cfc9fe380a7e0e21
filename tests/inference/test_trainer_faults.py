"""Numbers that stop being numbers, and requests to stop."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.checkpoints import last_complete_checkpoint
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


class Evaluations(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_evaluate(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def test_sigterm_within_an_epoch_saves_once_and_evaluates_no_more(make, tmp_path, monkeypatch):
    """Epochs of four steps, broken off after the sixth step; transformers ends that epoch like any other."""
    options = {
        "save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 12, "metric_for_best_model": "eval_loss",
        "greater_is_better": False, "load_best_model_at_end": True,
    }  # fmt: skip
    expected = make(output_dir=str(tmp_path / "whole"), **options)
    expected.train()
    saved, save = [], MixDPOTrainer._save_checkpoint

    def count(self, model, *args):
        saved.append(self.state.global_step)
        return save(self, model, *args)

    monkeypatch.setattr(MixDPOTrainer, "_save_checkpoint", count)
    seen = Evaluations()
    stop = At(6, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    trainer = make([stop, seen], output_dir=str(tmp_path / "stopped"), **options)
    with pytest.raises(SystemExit):
        trainer.train()
    assert saved == [4, 6]
    assert seen.steps == [4]
    again = make([seen], output_dir=str(tmp_path / "stopped"), **options)
    again.train(resume_from_checkpoint=True)
    assert saved == [4, 6, 8, 12]
    assert seen.steps == [4, 8, 12]
    assert again.state.best_metric == expected.state.best_metric
    for one, other in zip(again.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(again.strength.cv, expected.strength.cv)


def test_a_signal_after_an_epochs_last_step_lets_its_end_be_saved():
    control, args = TrainerControl(should_save=True, should_evaluate=True), SimpleNamespace(world_size=1)
    with Termination() as termination:
        termination.on_step_end(args, None, control)
        termination.received = True
        termination.on_epoch_end(args, None, control)
        assert control.should_save
        assert control.should_evaluate
        termination.on_step_end(args, None, control)
        termination.on_epoch_end(args, None, control)
        assert not control.should_save


def test_only_checkpoints_that_were_cut_off_are_removed(tmp_path, caplog):
    for name, state in (("checkpoint-2", '{"global_step": 2}'), ("checkpoint-4", '{"glob'), ("checkpoint-6", None)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "model.safetensors").write_text("mine")
    (tmp_path / "checkpoint-8").write_text("a file")
    assert last_complete_checkpoint(tmp_path, remove=False) == str(tmp_path / "checkpoint-2")
    assert len(list(tmp_path.iterdir())) == 5
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-best", "checkpoint-8"}
    assert [record.args[0].name for record in caplog.records] == ["checkpoint-4", "checkpoint-6"]


def test_a_state_that_can_not_be_read_now_is_not_removed(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2").mkdir()

    def fail(self, *args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(tmp_path), "read_text", fail)
    with pytest.raises(OSError, match="Input/output"):
        last_complete_checkpoint(tmp_path)
    assert (tmp_path / "checkpoint-2").is_dir()


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
