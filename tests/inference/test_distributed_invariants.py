"""Layout, reference, accumulation and number of processes, each with each: none of them changes what is learned.

Once a layer of the model is trained and once adapters are; so a reference that isn't given shares what isn't trained, or is the
model with its adapters off.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

#: Trains every combination in turn, in one process or in each of two, and writes what the first of them found.
SCRIPT = """
import itertools
import json
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from pluralpref.demo.population import build_tokenizer
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

STEP = 8
STRENGTHS = {
    "fixed": lambda: FixedStrength(0.5, learned=True),
    "lognormal": lambda: LogNormalStrength(mean=0.5, cv=0.5),
    "gamma": lambda: GammaStrength(mean=0.5, cv=0.5),
}


def model():
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2,
        )
    )
    made.requires_grad_(False)
    return made


def policy():
    made = model()
    if trained == "layer":
        made.model.layers[-1].requires_grad_(True)
        return made
    from peft import LoraConfig, get_peft_model

    return get_peft_model(made, LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"]))


random = torch.Generator().manual_seed(1)
names = ("prompt_ids", "chosen_ids", "rejected_ids")
pairs = Dataset.from_list(
    [
        {name: torch.randint(4, 60, (1 + (i * (n + 2)) % 7,), generator=random).tolist() for n, name in enumerate(names)}
        | {"weight": 1.0 + i % 2}
        for i in range(24)
    ]
)
output, world, trained = sys.argv[1], int(sys.argv[2]), sys.argv[3]
found = {}
for strength, layout, reference, accumulation in itertools.product(
    STRENGTHS, ["padded", "shared"], ["live", "precomputed", "not_given"], [1, 4]
):
    args = MixDPOConfig(
        tempfile.mkdtemp(), attn_layout=layout, precompute_ref_log_probs=reference == "precomputed", optim="sgd",
        learning_rate=0.05, strength_learning_rate=0.05, lr_scheduler_type="constant", max_steps=3, logging_steps=1,
        per_device_train_batch_size=STEP // (accumulation * world), gradient_accumulation_steps=accumulation,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=3,
        ddp_backend="gloo" if world > 1 else None,
    )
    whole = model().eval() if reference == "live" else None
    trainer = MixDPOTrainer(
        policy(), whole, STRENGTHS[strength](), args, train_dataset=pairs, processing_class=build_tokenizer()
    )
    trainer.train()
    names = ("loss", "margins", "grad_norm", "logps/chosen", "beta/mean", "beta/cv")
    found["/".join([strength, layout, reference, str(accumulation)])] = {
        "steps": [{n: line[n] for n in names} for line in trainer.state.log_history if "loss" in line],
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]).tolist(),
        "law": [float(p.detach()) for p in trainer.strength_modules.parameters()],
    }
if args.process_index == 0:
    with open(output, "w") as file:
        json.dump(found, file)
"""


def train(folder: Path, processes: int, trained: str) -> dict[str, dict]:
    script, output = folder / "train.py", folder / f"{processes}.json"
    script.write_text(SCRIPT)
    launch = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    done = subprocess.run(
        [*launch, str(script), str(output), str(processes), trained],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("trained", ["layer", "adapter"])
def test_every_combination_learns_the_same(tmp_path, trained):
    if trained == "adapter":
        pytest.importorskip("peft", reason="needs the peft extra")
    one, two = (train(tmp_path, processes, trained) for processes in (1, 2))
    assert len(one) == len(two) == 3 * 2 * 3 * 2
    for processes, found in ((1, one), (2, two)):
        for way, result in found.items():
            expected = one[f"{way.split('/')[0]}/padded/live/1"]
            assert len(result["steps"]) == 3
            for step, other in zip(result["steps"], expected["steps"], strict=True):
                assert step == pytest.approx(other, rel=2e-4, abs=2e-5), (processes, way)
            torch.testing.assert_close(
                torch.tensor(result["weights"]),
                torch.tensor(expected["weights"]),
                rtol=0,
                atol=1e-5,
                msg=f"{processes} {way}",
            )
            assert result["law"] == pytest.approx(expected["law"], abs=2e-5), (processes, way)
    # There was something to learn: the steps moved policy and strength.
    for strength in ("fixed", "lognormal", "gamma"):
        steps = one[f"{strength}/padded/live/1"]["steps"]
        assert abs(steps[-1]["margins"]) > 0.01
        assert steps[-1]["beta/mean"] != steps[0]["beta/mean"]
