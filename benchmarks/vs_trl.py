"""A whole DPO step beside TRL's: time, memory, and the same losses.

    python benchmarks/vs_trl.py --tokenizer FOLDER --pairs pairs.jsonl.gz [--model small|FOLDER] [--rounds 5]
    python benchmarks/vs_trl.py --lengths 384 64 [--model small|FOLDER]

TRL is the one that is installed; another version is compared by putting it first (``pip install --no-deps --target DIR
trl==1.9.0`` and ``PYTHONPATH=DIR``). Both trainers get the same token ids, the same policy (the reference with its weights
perturbed by one percent) and a strength fixed at the same beta; a step is their own ``training_step`` and their own optimiser
with a learning rate of 0, so that every step's loss can be compared: the script fails where two of them differ by more than
1e-3. Prompts that are too long lose their oldest tokens, so no pair is left out for its length. Steps are interleaved, in a
fresh order on each micro-batch; the ratio is that of the summed times, its range over the rounds in brackets.

Live reference is compared with live reference, and precomputed with precomputed. Peak memory (resident set, on a GPU what was
allocated there; with the optimiser's state) is of a process of its own for each, on the micro-batch with the most tokens. Useful
operations are those of matrix products that no layout can do without: the body on every token once, the head on answers, forward
and twice that backward; their rate is a share of a large matrix product's.

On a GPU: ``--device cuda --bf16 --model 1b``, and ``--liger trl`` or ``--liger both`` for Liger's fused kernels.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llamas import MODEL_HELP, build_model
from transformers import AutoTokenizer

from pluralpref.data import PreferenceCollator, load_preferences, tokenize_preferences
from pluralpref.demo.population import build_tokenizer
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.likelihood import pair_logps
from pluralpref.likelihood.batches import device_of, to_device
from pluralpref.models import FixedStrength

BETA = 0.1
VARIANTS = ("TRL, live", "pluralpref, live", "TRL, precomputed", "pluralpref, precomputed")
#: Losses of one micro-batch may differ by so much: TRL sums hundreds of float32 log-probabilities in float32.
MOST_APART = {"float32": 1e-3, "bfloat16": 0.1}
Step = Callable[[int], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help=MODEL_HELP)
    parser.add_argument("--tokenizer", help="folder of the tokenizer of --pairs; default: the model's")
    parser.add_argument("--pairs", help="preference pairs, as pluralpref train reads them")
    parser.add_argument("--lengths", type=int, nargs=2, metavar=("PROMPT", "ANSWER"), help="random tokens instead")
    parser.add_argument("--batches", type=int, default=8, help="micro-batches of a round")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, both sides")
    parser.add_argument("--liger", choices=("trl", "both"), help="who gets use_liger_kernel")
    parser.add_argument("--no_memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if (options.pairs is None) == (options.lengths is None):
        parser.error("give either --pairs or --lengths")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = read_rows(options)
    if options.only:
        steps, _ = make(options, rows, [options.only])
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # that of the steps, not of what made their models
        heaviest = max(range(len(rows)), key=lambda i: sum(map(tokens, rows[i])))
        for _ in range(2):
            steps[options.only](heaviest)
        print(json.dumps(peak_of_this_process(options.device)))
        return
    report(options, rows)


def report(options: argparse.Namespace, rows: list[list[dict[str, Any]]]) -> None:
    steps, sizes = make(options, rows, list(VARIANTS))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    worst = 0.0
    for round_ in range(options.rounds + 1):
        spent = dict.fromkeys(VARIANTS, 0.0)
        for batch in range(len(rows)):
            losses = {}
            for name in random.Random(1000 * round_ + batch).sample(VARIANTS, len(VARIANTS)):
                start = time.perf_counter()
                losses[name] = steps[name](batch)
                spent[name] += time.perf_counter() - start
            worst = max(worst, max(losses.values()) - min(losses.values()))
        for name, value in spent.items():
            if round_:  # the first warms up
                seconds[name].append(value)
        print(f"round {round_}: " + ", ".join(f"{name} {value:.1f} s" for name, value in spent.items()), flush=True)
    fastest = peak_rate(options)
    steps.clear()  # the models of four trainers, beside which another process might not find room
    gc.collect()
    torch.cuda.empty_cache()
    memory: dict[str, float] = {}
    if not options.no_memory:
        # What is allocated on a GPU doesn't depend on who else is there.
        with ThreadPoolExecutor(2 if options.device == "cuda" else 1) as pool:
            memory = dict(zip(VARIANTS, pool.map(peak, VARIANTS), strict=True))
    every = [row for batch in rows for row in batch]
    print(f"\n{hardware(options.threads)}")
    print(
        f"{sum(sizes) / 1e6:.1f} million parameters; {len(rows)} micro-batches of {options.batch_size} pairs; {describe(every)}\n"
    )
    print("| step | pairs/s | against TRL (range of rounds) | useful operations | peak memory, MiB | against TRL |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in VARIANTS:
        rate = len(every) / statistics.median(seconds[name])
        other = f"TRL, {name.split(', ')[1]}"
        ratios = [a / b for a, b in zip(seconds[other], seconds[name], strict=True)]
        speed = "1" if name == other else f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"
        used = f"{memory[name]:,.0f} | {memory[name] / memory[other]:.2f}" if memory else "– | –"
        share = useful_operations(every, sizes, 4 if "live" in name else 3) * rate / len(every) / fastest
        print(f"| {name} | {rate:.2f} | {speed} | {share:.0%} | {used} |")
    print(
        f"\nLarge matrix products: {fastest / 1e9:.0f} GFLOP/s. Largest difference of a micro-batch's losses: {worst:.1e}."
    )
    if not worst <= MOST_APART["bfloat16" if options.bf16 else "float32"]:
        raise SystemExit(f"the losses differ by {worst:.1e}, more than {MOST_APART}")


def make(
    options: argparse.Namespace, rows: list[list[dict[str, Any]]], names: list[str]
) -> tuple[dict[str, Step], tuple[int, int]]:
    """A step of each variant on a micro-batch of a given number; the numbers of weights that the body and the head multiply."""
    reference = build_model(options.model, options.device)
    policy = copy.deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    head = policy.get_output_embeddings().weight.numel()
    # An input embedding that isn't the head's matrix is looked up, not multiplied.
    tied = policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
    sizes = (sum(p.numel() for p in policy.parameters()) - head * (1 if tied else 2), head)
    known = (
        [own_logps(options, reference, batch) for batch in rows]
        if any("precomputed" in name for name in names)
        else None
    )
    if len(names) == 1 and known is not None:
        reference = None  # measuring memory: nothing that training wouldn't hold
    steps = {}
    for name in names:
        ours, kept = name.startswith("pluralpref"), "precomputed" in name
        builder = pluralpref_step if ours else trl_step
        models = (policy, reference) if len(names) == 1 else copy.deepcopy((policy, reference))
        steps[name] = builder(options, models[0], None if kept else models[1], rows, known if kept else None)
    return steps, sizes


def common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "report_to": "none",
        "use_cpu": options.device == "cpu",
        "disable_tqdm": True,
        "learning_rate": 0.0,
        "bf16": options.bf16,
    }


def pluralpref_step(options: argparse.Namespace, policy: Any, reference: Any, rows: Any, known: Any) -> Step:
    args = MixDPOConfig(tempfile.mkdtemp(), use_liger_kernel=options.liger == "both", **common(options))
    columns = {"prompt_ids": [[5]], "chosen_ids": [[6]], "rejected_ids": [[7]]}
    if known is not None:
        columns |= {"ref_chosen_logps": [0.0], "ref_rejected_logps": [0.0]}
    trainer = MixDPOTrainer(
        policy, reference, FixedStrength(BETA), args, Dataset.from_dict(columns), processing_class=build_tokenizer()
    )
    collator, count = PreferenceCollator(0), torch.tensor(float(len(rows[0])), dtype=torch.float64)
    batches = [with_reference(collator(batch), None if known is None else known[i]) for i, batch in enumerate(rows)]
    return stepper(trainer, batches, count)


def trl_step(options: argparse.Namespace, policy: Any, reference: Any, rows: Any, known: Any) -> Step:
    import trl
    from trl.trainer import dpo_trainer

    # Without a path TRL can't load a reference of its own, and it wants one even with precomputed numbers.
    stand_in = copy.deepcopy(policy) if reference is None else reference
    args = trl.DPOConfig(
        tempfile.mkdtemp(), beta=BETA, gradient_checkpointing=False, precompute_ref_log_probs=known is not None,
        # Its fused loss, where it has one, can't take precomputed numbers.
        use_liger_kernel=options.liger is not None and (known is None or not hasattr(dpo_trainer, "LigerFusedLinearDPOLoss")),
        **common(options),
    )  # fmt: skip
    pairs = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2)
    trainer = trl.DPOTrainer(
        model=policy, ref_model=stand_in, args=args, train_dataset=pairs, processing_class=build_tokenizer()
    )
    if known is not None:
        trainer.ref_model = None
    batches = [
        with_reference(trainer.data_collator(batch), None if known is None else known[i])
        for i, batch in enumerate(rows)
    ]
    return stepper(trainer, batches, None)


def with_reference(batch: dict[str, Any], logps: Any) -> dict[str, Any]:
    if logps is not None:
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = logps
    return batch


def stepper(trainer: Any, batches: list[dict[str, Any]], count: Any) -> Step:
    optimiser = trainer.create_optimizer()
    # As train() does: what is wrapped here is, among other things, the precision in which the policy runs.
    model = trainer.accelerator.prepare_model(trainer.model)
    trainer.current_gradient_accumulation_steps = 1

    def step(number: int) -> float:
        loss = trainer.training_step(model, dict(batches[number]), count)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss)  # waits for a GPU

    return step


@torch.no_grad()
def own_logps(options: argparse.Namespace, model: Any, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = to_device(PreferenceCollator(0)(rows), device_of(model))
    with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
        found = pair_logps(model, batch, attn_layout="padded")
    return found.chosen.float().cpu(), found.rejected.float().cpu()


def read_rows(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Micro-batches of token ids."""
    count = options.batches * options.batch_size
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    if options.lengths:
        prompt, answer = options.lengths
        generator = torch.Generator().manual_seed(0)

        def draw(length: int) -> list[int]:
            return torch.randint(10, 40_000, (length,), generator=generator).tolist()

        rows = [dict(zip(names, map(draw, (prompt, answer, answer)), strict=True)) for _ in range(count)]
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model)
        data, _ = tokenize_preferences(
            load_preferences(options.pairs), tokenizer, max_length=options.max_length, truncation_mode="keep_end"
        )
        order = random.Random(0).sample(range(len(data)), count)
        rows = [{name: data[i][name] for name in names} for i in order]
    size = options.batch_size
    return [rows[start : start + size] for start in range(0, count, size)]


def tokens(row: dict[str, Any]) -> int:
    return sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


def useful_operations(rows: list[dict[str, Any]], sizes: tuple[int, int], passes: int) -> float:
    """Of matrix products with weights, for these rows; a backward pass counts as two, a reference as one."""
    body, head = sizes
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return 2.0 * passes * (body * sum(map(tokens, rows)) + head * answers)


def peak_rate(options: argparse.Namespace) -> float:
    """Operations a second of a large matrix product: the best of ten."""
    kind = torch.bfloat16 if options.bf16 else torch.float32
    size = 8192 if options.device == "cuda" else 2048
    one, other = (torch.randn(size, size, device=options.device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((one @ other)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def describe(rows: list[dict[str, Any]]) -> str:
    parts = []
    for name in ("prompt", "chosen", "rejected"):
        lengths = sorted(len(row[f"{name}_ids"]) for row in rows)
        parts.append(f"{name} {statistics.fmean(lengths):.0f} ({lengths[0]} to {lengths[-1]})")
    return "tokens on average (range): " + ", ".join(parts)


def peak_of_this_process(device: str) -> float:
    """MiB. Not getrusage, whose maximum a process inherits from the one that started it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def peak(name: str) -> float:
    command = [sys.executable, *sys.argv, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def hardware(threads: int) -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = found[0] if found else model
    if torch.cuda.is_available():
        model = f"{torch.cuda.get_device_name()}, {model}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    return f"{model}, {os.cpu_count()} cores, {threads} threads, load {os.getloadavg()[0]:.1f}; {packages}."


if __name__ == "__main__":
    main()
