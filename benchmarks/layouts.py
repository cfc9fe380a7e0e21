"""Padded, batched and ragged rows beside each other: what the choice between them (``attn_layout="auto"``) rests on.

    python benchmarks/layouts.py [--model small|FOLDER] [--rounds 7] [--threads 2] [--device cuda --bf16]

For pairs of several lengths: the time of a forward and backward pass in each layout, interleaved in a fresh order, as a ratio of
the padded one's (median over rounds); the tokens that each layout runs, likewise; and a token's cost, which is the one divided
by the other. ``pair_layout._COST`` holds what these come to.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time

import torch
from llamas import MODEL_HELP, build_model

from pluralpref.data import PreferenceCollator
from pluralpref.likelihood.batches import to_device
from pluralpref.likelihood.logprobs import answer_logps
from pluralpref.likelihood.pair_layout import layout_tokens
from pluralpref.likelihood.shared_attention import install_shared_attention
from pluralpref.likelihood.shared_prefix import shared_answer_logps

LAYOUTS = ("padded", "batched", "ragged")
#: Prompt, chosen and rejected answer, as ranges; pairs in a batch.
CASES = {
    "32 + 128": ((32, 32), (128, 128), 4),
    "128 + 128": ((128, 128), (128, 128), 4),
    "384 + 64": ((384, 384), (64, 64), 4),
    "32 + 32, 16 pairs": ((32, 32), (32, 32), 16),
    "16 to 400 + 4 to 130": ((16, 400), (4, 130), 4),
    "16 to 400 + 4 to 130, 16 pairs": ((16, 400), (4, 130), 16),
    "one pair, 128 + 40 to 60": ((128, 128), (40, 60), 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help=MODEL_HELP)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build_model(options.model, options.device)
    install_shared_attention(model)
    print(
        "| lengths (prompt + answer) | layout | tokens | time (range) | cost of a token |\n| --- | --- | --- | --- | --- |"
    )
    for name, (prompt, answer, pairs) in CASES.items():
        batch = PreferenceCollator(0)([draw(prompt, answer) for _ in range(pairs)])
        counts = layout_tokens(batch["pair_lengths"])
        seconds = measure(model, to_device(batch, torch.device(options.device)), options)
        for layout in LAYOUTS:
            tokens = counts[layout] / counts["padded"]
            ratios = [a / b for a, b in zip(seconds[layout], seconds["padded"], strict=True)]
            ratio = statistics.median(ratios)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"| {name} | {layout} | {tokens:.2f} | {ratio:.2f} ({spread}) | {ratio / tokens:.2f} |", flush=True)


def draw(prompt: tuple[int, int], answer: tuple[int, int]) -> dict[str, list[int]]:
    lengths = {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": answer}
    return {name: torch.randint(10, 40_000, (random.randint(*length),)).tolist() for name, length in lengths.items()}


def measure(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], options: argparse.Namespace
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for round_ in range(options.rounds + 1):
        for layout in random.sample(LAYOUTS, len(LAYOUTS)):
            start = time.perf_counter()
            with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
                if layout == "padded":
                    logps = answer_logps(model, batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
                else:
                    logps = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], layout)
            logps.sum().backward()
            model.zero_grad()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first warms up
                seconds[layout].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    random.seed(0)
    main()
