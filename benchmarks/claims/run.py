"""The claims about MixDPO, tried in populations that are known.

    python benchmarks/claims/run.py OUTPUT.jsonl [--short] [--processes 2]
    python benchmarks/claims/report.py OUTPUT.jsonl > report.md

Every line of the output is one method trained on one population. A run that was ended goes on with what is missing.

Each population's annotators choose between answers of a tiny language (see ``population.py``). A two-layer Llama that writes it
is trained by every method on the same pairs from the same start. Held out are other people. Per-pair log-loss is under the law
that the method ends with (of methods without a likelihood, under DPO's at their beta), and once more with the scale of beta
fitted to the held-out margins, which takes the scale of the policy out of the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import measures
from methods import EXPLAINED, METHODS, SHORT, Method
from mixtures import fit_prototypes, train_em
from population import Population
from scipy.optimize import minimize_scalar
from transformers.utils import logging as transformers_logging

from pluralpref.data import PreferenceCollator, tokenize_preferences
from pluralpref.demo.population import ANSWER_WORDS, TOPICS, WORDS, build_tokenizer
from pluralpref.demo.runs import tuned_policy
from pluralpref.diagnostics import IndependentChoices, compare
from pluralpref.errors import PluralPrefWarning
from pluralpref.inference import MixDPOConfig, MixDPOTrainer, fit_posterior
from pluralpref.likelihood import precompute_reference, score_margins
from pluralpref.models import FixedStrength, LogNormalStrength, OpposedStrength

LEVELS = {"strength": (0.0, 0.75, 1.5), "direction": (1.0,), "noise": (0.3,)}
SHORT_LEVELS = {"strength": (0.0, 1.5), "noise": (0.3,)}
FULL_SIZE = {"annotators": 1600, "held_out": 300, "epochs": 2.0, "tuning": 100, "answers": 64}
SHORT_SIZE = {"annotators": 200, "held_out": 100, "epochs": 2.0, "tuning": 50, "answers": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a JSON Lines file; goes on if it is there")
    parser.add_argument("--short", action="store_true", help="a few methods on small populations, a minute or two")
    parser.add_argument("--seeds", type=int, help="populations of each kind and level (3; short: 1)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    levels = SHORT_LEVELS if options.short else LEVELS
    seeds = options.seeds or (1 if options.short else 3)
    populations = [(kind, level, seed) for seed in range(seeds) for kind, values in levels.items() for level in values]
    # The methods of what is left over are dealt out, so that no process is idle for a whole population.
    whole = len(populations) - len(populations) % options.processes
    jobs = [(*population, options.short, options.output, 0, 1) for population in populations[:whole]]
    jobs += [
        (*population, options.short, options.output, part, options.processes)
        for population in populations[whole:]
        for part in range(options.processes)
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a+b") as file:  # close a line that a kill cut short
        file.seek(0, 2)
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for number, note in enumerate(pool.imap_unordered(run_population, jobs), 1):
            print(f"[{number}/{len(jobs)}] {note}", flush=True)


def run_population(job: tuple[str, float, int, bool, Path, int, int]) -> str:
    """Every method that isn't in the output yet, or of every so many methods one, on one population."""
    kind, level, seed, short, output, part, parts = job
    started = time.perf_counter()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore", PluralPrefWarning)
    size = SHORT_SIZE if short else FULL_SIZE
    key = {"kind": kind, "level": level, "seed": seed, "size": size}
    done = known(output, key)
    methods = [m for m in METHODS if not short or m.name in SHORT]
    wanted = [m for m in methods[part::parts] if m.name not in done]
    if not wanted:
        return f"{kind} {level} seed {seed}: done before"
    population, tokenizer = Population(kind, level, seed), build_tokenizer()
    with contextlib.redirect_stderr(io.StringIO()):
        train, _ = tokenize_preferences(population.choices(int(size["annotators"]), 0), tokenizer)
        held_out, _ = tokenize_preferences(population.choices(int(size["held_out"]), 1), tokenizer)
    base = tuned_policy(train, tokenizer, int(size["tuning"]), seed)
    collator = PreferenceCollator(tokenizer.pad_token_id)
    train, held_out = (
        precompute_reference(base, d, collator, batch_size=256, progress=False) for d in (train, held_out)
    )
    trained: dict[str, Any] = {}  # policies that a later method needs
    for method in wanted:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return "the run was killed"  # and may have been started again
        row = train_one(method, population, base, tokenizer, train, held_out, size, trained)
        # One write for a line: processes share the file, and a killed run leaves whole lines and perhaps a last part.
        with output.open("a") as file:
            file.write(json.dumps({**key, "method": method.name, **row}) + "\n")
    return f"{kind} {level} seed {seed}: {len(wanted)} methods in {time.perf_counter() - started:.0f} s"


def known(output: Path, key: dict[str, Any]) -> set[str]:
    """Methods that are in the output for this population."""
    found = set()
    for line in output.read_text().splitlines() if output.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
            row = json.loads(line)
            if all(row.get(name) == value for name, value in key.items()):
                found.add(row["method"])
    return found


def train_one(
    method: Method, population: Population, base: Any, tokenizer: Any, train: Any, held_out: Any,
    size: dict[str, float], trained: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """:param trained: policies by method, of those that another one uses; its own is added."""
    collator = PreferenceCollator(tokenizer.pad_token_id)
    if method.then == "pal" and method.policy_of in trained:
        return fit_prototypes(trained[method.policy_of], train, held_out, collator, population.seed)
    strength = method.strength()
    policy = copy.deepcopy(base)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        args = MixDPOConfig(
            folder, learning_rate=2e-3, strength_learning_rate=1e-2 if method.then == "em_dpo" else 5e-2,
            per_device_train_batch_size=64, per_device_eval_batch_size=256, num_train_epochs=size["epochs"],
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=population.seed,
            logging_strategy="no", **method.options,
        )  # fmt: skip
        if method.then == "em_dpo":
            row = train_em(policy, tokenizer, train, held_out, float(strength.mean), args)
            policies, shares = row.pop("policies"), row["classes"]
            return row | {"win_rate": win_rate(population, policies, shares, base, tokenizer, int(size["answers"]))}
        trainer = MixDPOTrainer(policy, None, strength, args, train, processing_class=tokenizer)
        started = time.perf_counter()
        trainer.train()
        seconds = (time.perf_counter() - started) / trainer.state.global_step
    if method.then == "pal":
        return fit_prototypes(policy, train, held_out, collator, population.seed)
    if any(other.policy_of == method.name for other in METHODS):
        trained[method.name] = policy
    margins = score_margins(policy, None, held_out, collator, batch_size=256, progress=False)["margins"]
    people = list(held_out["annotator"])
    single = fit_posterior(LogNormalStrength(mean=0.3, cv=0.5), margins, progress_bar=False, seed=0)
    panel = fit_posterior(LogNormalStrength(mean=0.3, cv=0.5), margins, annotator=people, progress_bar=False, seed=0)
    return {
        "cv_training": float(strength.cv),
        "cv_single": summary(single),
        "cv_panel": summary(panel),
        "explained": explained(margins, people) if method.name in EXPLAINED else None,
        **measures(strength, margins, held_out),
        "log_loss_scaled": scaled_log_loss(margins),
        "win_rate": win_rate(population, [policy], [1.0], base, tokenizer, int(size["answers"])),
        "seconds": seconds,
    }


def explained(margins: torch.Tensor, people: list[str]) -> dict[str, Any]:
    """How well one strength, label noise and a spread of strengths predict people who are left out, elpd in nats."""
    models = {
        "fixed": FixedStrength(0.3, learned=True),
        "label_noise": IndependentChoices(OpposedStrength(FixedStrength(0.3, learned=True), share=0.05)),
        "lognormal": LogNormalStrength(mean=0.3),
    }
    found = compare(margins, annotator=people, models=models, level="annotator", progress_bar=False)
    pointwise = found.pointwise["annotator"]
    spread_over_noise = pointwise["lognormal"] - pointwise["label_noise"]
    return {
        **{name: float(values.sum()) for name, values in pointwise.items()},
        "spread_over_noise": float(spread_over_noise.sum()),
        "spread_over_noise_se": float(spread_over_noise.std(ddof=1) * len(spread_over_noise) ** 0.5),
        "p_value": None if found.ratio is None else found.ratio.p_value,
    }


def summary(posterior: Any) -> list[float]:
    """Posterior mean of the cv, and its central 95 %."""
    return [float(posterior.draws("beta_cv").mean()), *posterior.interval("beta_cv", 0.95)]


def scaled_log_loss(margins: torch.Tensor) -> float:
    """Of plain DPO's link at the beta that suits the margins best: the policy's ranking without its scale."""
    h = margins.double()

    def loss(log_beta: float) -> float:
        return float(-torch.nn.functional.logsigmoid(np.exp(log_beta) * h).mean())

    return float(minimize_scalar(loss, bounds=(-8, 4), method="bounded").fun)


@torch.no_grad()
def win_rate(
    population: Population, policies: list[Any], shares: list[float], base: Any, tokenizer: Any, answers: int
) -> dict[str, float]:
    """Of the answers of a mixture of policies against the reference's, by the people's true utilities."""
    topic = np.repeat(np.arange(len(TOPICS)), answers)
    torch.manual_seed(population.seed)
    counts = [count_words(model, topic, tokenizer) for model in (*policies, base)]
    whose = np.random.default_rng(population.seed).choice(len(policies), size=len(topic), p=shares)
    written = np.stack(counts[:-1])[whose, np.arange(len(topic))]
    return population.win_rate(topic, written, counts[-1], stream=2)


def count_words(model: Any, topic: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Sample an answer for each topic: how often each word is in it, (answers, words)."""
    prompt = torch.tensor([[tokenizer.convert_tokens_to_ids(TOPICS[i])] for i in topic])
    ids = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=ANSWER_WORDS,
        pad_token_id=tokenizer.pad_token_id,
    )[:, 1:]  # fmt: skip
    words = torch.tensor(tokenizer.convert_tokens_to_ids(list(WORDS)))
    return (ids[:, :, None] == words).sum(1).numpy().astype(float)


if __name__ == "__main__":
    main()
