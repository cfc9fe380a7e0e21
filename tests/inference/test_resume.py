"""A run that is killed and resumed ends where the uninterrupted run ends, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

STEPS = 12
SCRIPT = """
import json
import os
import signal
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, TrainerState
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import GammaStrength, LogNormalStrength
from pyro import distributions as dist

output, case, kill, resume = sys.argv[1:]

raw = Tokenizer(models.BPE())
raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
raw.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
raw.train_from_iterator(
    [], trainers.BpeTrainer(vocab_size=258, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )
)
pairs = Dataset.from_list(
    [
        {"prompt": f"q{i}", "chosen": f" good {i}", "rejected": f" bad {i * i}", "annotator": f"p{i % 5}"}
        for i in range(23)
    ]
)
strength, options = {
    "lognormal_draws": lambda: (LogNormalStrength(mean=0.5, cv=0.5), {"num_samples": 16}),
    "gamma": lambda: (GammaStrength(mean=0.5, cv=0.5), {}),
    "panel": lambda: (LogNormalStrength(mean=0.5, cv=0.5), {"panel": True}),
    "priors": lambda: (LogNormalStrength(dist.LogNormal(-1.0, 1.0), dist.HalfNormal(1.0)), {}),
}[case]()


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if kill.startswith("step") and state.global_step == int(kill.removeprefix("step")):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args, state, control, **kwargs):
        if kill.startswith("term") and state.global_step + 1 == int(kill.removeprefix("term")):
            os.kill(os.getpid(), signal.SIGTERM)


def save_half(self, path):
    text = json.dumps(vars(self), default=str)
    if f"checkpoint-{kill.removeprefix('save')}" not in str(path):
        return whole(self, path)
    with open(path, "w") as file:
        file.write(text[: len(text) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


whole = TrainerState.save_to_json
callbacks = [Kill()] if kill.startswith(("step", "term")) else []
if kill.startswith("save"):
    TrainerState.save_to_json = save_half
args = MixDPOConfig(
    output, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
    strength_learning_rate=0.05, num_train_epochs=2, logging_steps=1, save_steps=3, eval_strategy="steps", eval_steps=4,
    report_to="none", use_cpu=True, disable_tqdm=True, **options,
)
trainer = MixDPOTrainer(
    model, strength=strength, args=args, train_dataset=pairs, eval_dataset=pairs.select(range(5)),
    processing_class=tokenizer, callbacks=callbacks,
)
trainer.train(resume_from_checkpoint=True if resume == "resume" else None)
trainer.save_model()
"""


def _run(script: Path, output: Path, case: str, kill: str = "never", resume: str = "fresh") -> int:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), str(output), case, kill, resume]
    done = subprocess.run(
        command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), done.stderr[-3000:]
    return done.returncode


def _final(output: Path) -> dict[str, torch.Tensor]:
    files = sorted(output.glob("*.safetensors"))
    names = {file.name for file in files}
    assert {"model.safetensors", "strength.safetensors"} <= names
    return {f"{file.name}:{name}": value for file in files for name, value in load_file(file).items()}


def _log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module", params=["lognormal_draws", "gamma", "panel", "priors"])
def uninterrupted(request, script, tmp_path_factory):
    output = tmp_path_factory.mktemp(request.param) / "run"
    assert _run(script, output, request.param) == 0
    return request.param, output


# Checkpoints are at 3, 6, 9 and 12: a kill before the first, between two, and while one is being written.
# SIGTERM in the middle of the fifth step.
@pytest.mark.parametrize(("kill", "left"), [("step2", None), ("step7", 6), ("save9", 6), ("term5", 5)])
def test_killed_and_resumed(uninterrupted, script, tmp_path, kill, left):
    case, reference = uninterrupted
    output = tmp_path / "run"
    assert _run(script, output, case, kill) == (143 if kill.startswith("term") else -signal.SIGKILL)
    complete = []
    for folder in output.glob("checkpoint-*"):
        try:
            complete.append(json.loads((folder / "trainer_state.json").read_text())["global_step"])
        except (OSError, ValueError):
            assert kill == "save9"
    assert max(complete, default=None) == left

    assert _run(script, output, case, resume="resume") == 0

    expected, got = _final(reference), _final(output)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    lines, reference_lines = _log_lines(output), _log_lines(reference)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    for name in ("loss", "margins", "beta/mean", "beta/cv"):
        assert [x[name] for x in lines if name in x] == [x[name] for x in reference_lines if name in x], name


def test_training_moved_something(uninterrupted):
    """Equal ends would prove nothing if the runs stood still."""
    _, output = uninterrupted
    lines = [line for line in _log_lines(output) if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["beta/mean"] != lines[0]["beta/mean"]
