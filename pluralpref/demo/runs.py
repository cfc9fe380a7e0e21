"""The demo's training runs on one population."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.utils import logging as transformers_logging

from pluralpref.data import MarginsTable, PreferenceCollator, tokenize_preferences, write_margins
from pluralpref.demo.population import Population, build_tokenizer
from pluralpref.errors import PluralPrefWarning
from pluralpref.evaluation import held_out_metrics
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.posterior import fit_posterior
from pluralpref.inference.trainer import MixDPOTrainer
from pluralpref.likelihood import answer_logps, precompute_reference, score_margins
from pluralpref.models import LogNormalStrength, StrengthModel, make_strength

START_MEAN, START_CV = 0.3, 0.5
#: (label, family, Monte Carlo draws)
OBJECTIVES = (
    ("Fixed, constant (DPO)", "fixed", None),
    ("Fixed, learned", "fixed_learned", None),
    ("LogNormal, K=16", "lognormal", 16),
    ("Gamma, closed form", "gamma", None),
)


@dataclass(frozen=True)
class DemoSize:
    """How much is trained and drawn."""

    annotators: int = 1600
    held_out_annotators: int = 300
    epochs: float = 2.0
    tuning_steps: int = 100
    num_warmup: int = 120
    num_samples: int = 200


class _Clock(TrainerCallback):
    """When each optimiser step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        """Seconds a step; first steps and other processes' busy moments hardly move it."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.ends))


def run_population(cv: float, folder: str, size: DemoSize, seed: int) -> list[dict[str, Any]]:
    """Train every objective on the population with this cv; one row of results for each.

    :param folder: gets a run folder for each objective.
    :returns: rows with the columns of the demo's table, and the folder of the run under ``folder``.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore", PluralPrefWarning)  # they are in the report, as text
    population = Population(cv, seed)
    tokenizer = build_tokenizer()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of two processes would mix
        train, _ = tokenize_preferences(population.choices(size.annotators, stream=0), tokenizer)
        held_out, _ = tokenize_preferences(population.choices(size.held_out_annotators, stream=1), tokenizer)
    base = tuned_policy(train, tokenizer, size.tuning_steps, seed)
    collator = PreferenceCollator(tokenizer.pad_token_id)
    # Every objective starts from the same policy, so the reference is run once for all.
    train, held_out = (
        precompute_reference(base, pairs, collator, batch_size=256, progress=False) for pairs in (train, held_out)
    )
    print(f"  true cv {cv:g}: policy tuned on text, {time.perf_counter() - started:.0f} s", flush=True)
    rows = []
    for label, family, num_samples in OBJECTIVES:
        run = Path(folder) / f"cv-{cv:g}-{family}"
        strength = make_strength(family, START_MEAN, START_CV if family in ("lognormal", "gamma") else None)
        rows.append(_run(label, cv, run, strength, num_samples, base, tokenizer, train, held_out, size, seed))
        print(f"  true cv {cv:g}: {label}, {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def _run(
    label: str,
    cv: float,
    run: Path,
    strength: StrengthModel,
    num_samples: int | None,
    base: Any,
    tokenizer: Any,
    train: Any,
    held_out: Any,
    size: DemoSize,
    seed: int,
) -> dict[str, Any]:
    config = MixDPOConfig(
        str(run),
        learning_rate=2e-3,
        strength_learning_rate=5e-2,
        per_device_train_batch_size=64,
        num_train_epochs=size.epochs,
        num_samples=num_samples,
        logging_steps=25,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=True,
    )
    policy = copy.deepcopy(base)
    clock = _Clock()
    trainer = MixDPOTrainer(policy, None, strength, config, train, processing_class=tokenizer, callbacks=[clock])
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    collator = PreferenceCollator(tokenizer.pad_token_id)
    scores = score_margins(policy, None, held_out, collator, batch_size=256, progress=False)
    annotators = list(held_out["annotator"])
    write_margins(run / "margins.parquet", MarginsTable(scores["margins"], annotator=annotators))
    policy.save_pretrained(run / "policy")
    tokenizer.save_pretrained(run / "policy")
    trainer.save_strength(run / "strength")
    metrics = held_out_metrics(strength, scores["margins"], annotator=annotators)
    posterior = fit_posterior(
        LogNormalStrength(START_MEAN, START_CV),
        scores["margins"],
        annotator=annotators,
        num_warmup=size.num_warmup,
        num_samples=size.num_samples,
        num_chains=2,
        seed=seed,
        progress_bar=False,
    )
    posterior.save(run / "posterior.nc")
    low, high = posterior.interval("beta_cv", 0.95)
    return {
        "objective": label,
        "true_cv": cv,
        "training_cv": float(strength.cv),
        "posterior_cv": float(posterior.draws("beta_cv").mean()),
        "low": low,
        "high": high,
        "log_loss": metrics["log_loss"],
        "accuracy": metrics["accuracy"],
        "micro": metrics["margins"],
        "macro": metrics["margins/macro"],
        "seconds": clock.median(),
        "folder": str(run),
        "history": trainer.state.log_history,
    }


def tuned_policy(train: Any, tokenizer: Any, steps: int, seed: int) -> Any:
    """A small model that has learned to write answers, all words alike: the policy before preferences."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    collator = PreferenceCollator(tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = torch.randperm(len(train))
    for step in range(steps):
        rows = [train[int(i)] for i in order[torch.arange(step * 64, step * 64 + 64) % len(train)]]
        batch = collator(rows)
        loss = -answer_logps(model, batch["input_ids"], batch["attention_mask"], batch["completion_mask"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
