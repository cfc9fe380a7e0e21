"""What the objective costs: a whole training step with each law of beta against Fixed, interleaved, median ratio.

    python benchmarks/objective_overhead.py [--steps 60]

Every round takes one step of each trainer on the same batch, in a fresh random order, so that slow moments of the
machine hit all alike. The model is the demo's, so small that an overhead shows; on a real one it is smaller still.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pluralpref.demo.population import Population, build_tokenizer
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

PAIRS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="rounds that are timed")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size of the policy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    pairs = Population(1.0).choices(200, stream=0)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=arguments.hidden, intermediate_size=2 * arguments.hidden,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    laws = {
        "Fixed": (FixedStrength(0.3), None),
        "LogNormal, K=16": (LogNormalStrength(0.3, 0.5), 16),
        "LogNormal, quadrature": (LogNormalStrength(0.3, 0.5), None),
        "Gamma, closed form": (GammaStrength(0.3, 0.5), None),
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: _stepper(policy, law, k, pairs, tokenizer, folder) for name, (law, k) in laws.items()}
        times: dict[str, list[float]] = {name: [] for name in laws}
        for round_ in range(arguments.steps + 5):
            for name in random.Random(round_).sample(list(steps), len(steps)):
                started = time.perf_counter()
                steps[name](round_)
                if round_ >= 5:  # the first ones warm caches
                    times[name].append(time.perf_counter() - started)
    base = times["Fixed"]
    print(f"{PAIRS} pairs a step, {arguments.steps} interleaved rounds; Fixed: {1e3 * statistics.median(base):.1f} ms")
    for name, values in times.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:<24}{ratio:6.3f} of Fixed")


def _stepper(policy, law, num_samples, pairs, tokenizer, folder):
    config = MixDPOConfig(folder, num_samples=num_samples, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = MixDPOTrainer(copy.deepcopy(policy), None, law, config, pairs, processing_class=tokenizer)
    optimizer = trainer.create_optimizer()
    count = torch.tensor(float(PAIRS), dtype=torch.float64)

    def step(round_: int) -> None:
        rows = [trainer.train_dataset[(round_ * PAIRS + i) % len(trainer.train_dataset)] for i in range(PAIRS)]
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, trainer.data_collator(rows), count)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
