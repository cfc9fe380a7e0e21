"""Two processes train as one does: DDP over gloo, on one machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import os
import sys

import torch
from datasets import Dataset, concatenate_datasets
from pyro import distributions as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

output, options = sys.argv[1], json.loads(sys.argv[2])
raw = Tokenizer(models.BPE())
raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
raw.decoder = decoders.ByteLevel()
raw.train_from_iterator(
    [],
    trainers.BpeTrainer(
        vocab_size=258, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    ),
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )
)
pairs = Dataset.from_list(
    [
        {
            "prompt": f"q{i}", "chosen": f" good {i}", "rejected": f" bad {i * i}", "annotator": f"p{i // 4}",
            "weight": 1.0 + i % 3, "topic": "ab"[i % 2],
        }
        for i in range(24)
    ]
)
strength = {
    "fixed": lambda: FixedStrength(0.5),
    "lognormal": lambda: LogNormalStrength(mean=0.5, cv=0.5),
    "gamma": lambda: GammaStrength(mean=0.5, cv=0.5),
    "priors": lambda: LogNormalStrength(dist.LogNormal(-1.0, 1.0), dist.HalfNormal(1.0)),
}[options.pop("strength")]()
resume, stop = options.pop("resume", False), options.pop("stop", None)
settings = dict(
    learning_rate=1e-3, strength_learning_rate=0.05, num_train_epochs=2, logging_steps=1, save_strategy="no",
    report_to="none", use_cpu=True, disable_tqdm=True, group_columns=["topic"], lr_scheduler_type="constant",
)
trainer = MixDPOTrainer(
    model, strength=strength, args=MixDPOConfig(output, **{**settings, **options}), train_dataset=pairs,
    eval_dataset=pairs.select(range(7)), processing_class=tokenizer,
)
if stop is not None:
    import signal
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step + 1 == stop and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_callback(Stop())
trainer.train(resume_from_checkpoint=True if resume else None)
found = {name: value for name, value in trainer.evaluate().items() if isinstance(value, float)}
# Pairs 3 to 6 twice, with the same rows, and then without rows.
twice = concatenate_datasets([trainer.eval_dataset, trainer.train_dataset.select(range(3, 8))])
for name, pairs in (("rows", twice), ("no_rows", twice.remove_columns("row"))):
    found |= {k: v for k, v in trainer.evaluate(pairs, metric_key_prefix=name).items() if isinstance(v, float)}
trainer.save_model()
state = {name: value.tolist() for name, value in trainer.strength_modules.state_dict().items()}
with open(f"{output}/rank{trainer.args.process_index}.json", "w") as file:
    json.dump({"eval": found, "strength": state}, file)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run(folder: Path, processes: int, check: bool = True, **options) -> int:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    output = folder / f"run{processes}"
    output.mkdir(exist_ok=True)
    launch = [sys.executable]
    if processes > 1:
        address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        launch += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *address]
        options["ddp_backend"] = "gloo"
    done = subprocess.run(
        [*launch, str(script), str(output), json.dumps(options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done.returncode


def results(folder: Path, processes: int):
    output = folder / f"run{processes}"
    ranks = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return ranks, lines, load_file(output / "model.safetensors")


CASES = {
    "fixed": {"strength": "fixed"},
    "lognormal": {"strength": "lognormal"},
    "gamma, accumulation": {"strength": "gamma", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "panel": {"strength": "lognormal", "panel": True, "per_device_train_batch_size": 4},
    "precomputed": {"strength": "lognormal", "precompute_ref_log_probs": True},
    "padded": {"strength": "lognormal", "attn_layout": "padded"},
    "gr_dpo": {"strength": "fixed", "loss_type": "gr_dpo", "gr_dpo_column": "topic", "gr_dpo_step_size": 0.5},
    # Four pairs a process, in as many parts as there are pairs, or as there are pairs longer than others.
    "parts": {"strength": "lognormal", "per_device_train_batch_size": 4, "max_tokens_per_batch": 60},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, tmp_path):
    """Half of each step's pairs in either process: losses, parameters, the law of beta, metrics, evaluation."""
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, **CASES[case]}
    run(tmp_path, 2, **options)
    run(tmp_path, 1, **{**options, "per_device_train_batch_size": 2 * options["per_device_train_batch_size"]})
    ranks, lines, weights = results(tmp_path, 2)
    (alone,), expected_lines, expected = results(tmp_path, 1)
    assert ranks[0]["strength"] == ranks[1]["strength"]
    assert ranks[0]["eval"].keys() >= {"eval_loss", "eval_rewards/margins", "eval_group/topic=a/rewards/accuracies"}
    # AdamW's first steps turn the sign of a gradient into a step, rounding included.
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-4)
    for name, value in alone["strength"].items():
        torch.testing.assert_close(torch.tensor(ranks[0]["strength"][name]), torch.tensor(value), rtol=1e-4, atol=1e-5)
    steps, expected_steps = ([line for line in found if "loss" in line] for found in (lines, expected_lines))
    assert len(steps) == len(expected_steps) > 3
    for one, other in zip(steps, expected_steps, strict=True):
        for name in ("loss", "margins", "logps/chosen", "rewards/margins", "beta/mean", "beta/cv", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-4), (one["step"], name)
        for name in other:
            if name.startswith("group/"):
                assert name in one
    # Seven pairs, which two processes can't share evenly: the doubled one counts once.
    for name in ("eval_loss", "eval_margins", "eval_rewards/accuracies", "eval_logps/chosen"):
        assert ranks[0]["eval"][name] == pytest.approx(ranks[1]["eval"][name], rel=1e-12)
        assert ranks[0]["eval"][name] == pytest.approx(alone["eval"][name], rel=1e-3, abs=2e-4)
    for name in ("loss", "margins", "logps/chosen"):
        for kind in ("rows", "no_rows"):
            assert ranks[0]["eval"][f"{kind}_{name}"] == pytest.approx(
                alone["eval"][f"rows_{name}"], rel=1e-3, abs=2e-4
            )


def test_guides_are_the_same_everywhere(tmp_path):
    run(tmp_path, 2, strength="priors", per_device_train_batch_size=2)
    ranks, _, _ = results(tmp_path, 2)
    assert ranks[0]["strength"] == ranks[1]["strength"]
    assert any("guide" in name or "locs" in name for name in ranks[0]["strength"])


def test_a_signal_to_one_process_stops_all_with_one_checkpoint(tmp_path):
    options = {"strength": "lognormal", "per_device_train_batch_size": 2}
    assert run(tmp_path, 2, check=False, stop=3, **options) != 0
    output = tmp_path / "run2"
    assert [folder.name for folder in output.glob("checkpoint-*")] == ["checkpoint-3"]
    run(tmp_path, 2, resume=True, **options)
    resumed = results(tmp_path, 2)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, 2, **options)
    expected = results(whole, 2)
    assert resumed[0][0]["strength"] == expected[0][0]["strength"]
    for name, value in expected[2].items():
        assert torch.equal(resumed[2][name], value), name
    steps = [line["step"] for line in resumed[1] if "loss" in line]
    assert steps == [line["step"] for line in expected[1] if "loss" in line]


def test_the_command_writes_once(tmp_path, tiny_llama, tiny_tokenizer):
    tiny_llama(0).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model_name_or_path": tmp_path / "model", "dataset_name": tmp_path / "pairs.jsonl",
        "eval_dataset_name": tmp_path / "pairs.jsonl", "output_dir": tmp_path / "run", "max_steps": 3,
        "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": "True", "ddp_backend": "gloo",
    }  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [
        *launch,
        "-m",
        "pluralpref.cli.main",
        "train",
        *(x for k, v in options.items() for x in (f"--{k}", str(v))),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("24 of 24 rows used") == 2  # training and held-out pairs
    assert done.stdout.count("trained 3 steps") == 1
    assert done.stdout.count("margins of 24 held-out pairs") == 1
    assert (tmp_path / "run" / "config.yaml").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps))
