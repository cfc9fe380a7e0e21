"""What the objective costs: a whole training step with each law of beta against Fixed, interleaved, median ratio.

    python benchmarks/objective_overhead.py [--size small|135m|1b|demo] [--steps 40] [--device cuda --bf16]

Every round takes one step of each trainer on the same batch, in a fresh random order, so that slow moments of the
machine hit all alike. ``small`` is a Llama of 4 layers, hidden size 256 and vocabulary 49,152, with 4 pairs of 256 tokens
each, likewise the larger ones with 8 pairs; ``demo`` is the demo's model, so tiny that what little the objective costs shows.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time
from functools import partial

import torch
from datasets import Dataset
from llamas import build_model
from transformers import LlamaConfig, LlamaForCausalLM

from pluralpref.demo.population import Population, build_tokenizer
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

DEMO = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
PAIRS = {"small": 4, "135m": 8, "1b": 8, "demo": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=PAIRS, default="small", help="the policy and its batches")
    parser.add_argument("--steps", type=int, default=40, help="rounds that are timed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    count = PAIRS[arguments.size]
    if arguments.size == "demo":
        settings = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "num_key_value_heads": 4, **DEMO}
        policy = LlamaForCausalLM(LlamaConfig(max_position_embeddings=512, **settings))
        pairs = Population(1.0).choices(200, stream=0)
    else:
        policy = build_model(arguments.size, arguments.device)
        pairs = _long_pairs(policy.config.vocab_size)
    laws = {
        "Fixed": (FixedStrength(0.3), None),
        "LogNormal, K=16": (LogNormalStrength(0.3, 0.5), 16),
        "LogNormal, quadrature": (LogNormalStrength(0.3, 0.5), None),
        "Gamma, closed form": (GammaStrength(0.3, 0.5), None),
    }
    with tempfile.TemporaryDirectory() as folder:
        on_device = {"use_cpu": arguments.device == "cpu", "bf16": arguments.bf16}
        config = partial(MixDPOConfig, folder, report_to="none", disable_tqdm=True, **on_device)
        steps = {
            name: _stepper(policy, law, pairs, tokenizer, count, config(num_samples=k))
            for name, (law, k) in laws.items()
        }
        times: dict[str, list[float]] = {name: [] for name in laws}
        for round_ in range(arguments.steps + 5):
            for name in random.Random(round_).sample(list(steps), len(steps)):
                started = time.perf_counter()
                steps[name](round_)
                if arguments.device == "cuda":
                    torch.cuda.synchronize()
                if round_ >= 5:  # the first ones warm caches
                    times[name].append(time.perf_counter() - started)
    base = times["Fixed"]
    milliseconds = 1e3 * statistics.median(base)
    print(f"{arguments.size}: {count} pairs a step, {arguments.steps} interleaved rounds; Fixed: {milliseconds:.1f} ms")
    for name, values in times.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:<24}{ratio:6.3f} of Fixed")


def _long_pairs(vocabulary: int) -> Dataset:
    """Tokenised pairs: 128 tokens of prompt, 128 of each answer."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (32, 3, 128), generator=generator).tolist()
    return Dataset.from_list([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in ids])


def _stepper(policy, law, pairs, tokenizer, count, config):
    trainer = MixDPOTrainer(copy.deepcopy(policy), None, law, config, pairs, processing_class=tokenizer)
    optimizer = trainer.create_optimizer()
    items = torch.tensor(float(count), dtype=torch.float64)

    def step(round_: int) -> None:
        rows = [trainer.train_dataset[(round_ * count + i) % len(trainer.train_dataset)] for i in range(count)]
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, trainer.data_collator(rows), items)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
