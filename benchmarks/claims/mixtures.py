"""Rivals that are mixtures over people: a policy for each class (EM-DPO), and prototypes on frozen embeddings (PAL)."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pluralpref.data import PreferenceCollator
from pluralpref.inference import MixDPOConfig
from pluralpref.inference.em_dpo import EMDPO
from pluralpref.inference.pal import PalConfig, fit_pal, pal_pairs, predict_unknown
from pluralpref.likelihood import answer_embeddings

CLASSES = 2
#: M-steps of EM-DPO, each one pass over the pairs for each class: three times as much training as the other methods have.
ITERATIONS = 3


def train_em(base: Any, tokenizer: Any, train: Any, held_out: Any, beta: float, args: MixDPOConfig) -> dict[str, Any]:
    """Two classes with a policy each; :returns: the row's numbers, and the policies with their shares."""
    args.num_train_epochs = 1.0
    started = time.perf_counter()
    found = EMDPO(
        base, beta=beta, num_classes=CLASSES, iterations=ITERATIONS, args=args, train_dataset=train,
        eval_dataset=held_out, processing_class=tokenizer, report=lambda line: None,
    ).train()  # fmt: skip
    steps = ITERATIONS * CLASSES * math.ceil(len(train) / args.per_device_train_batch_size)
    seconds = (time.perf_counter() - started) / steps
    margins = found.margins("held_out")
    policies = []
    for folder in found.policies:
        policy = copy.deepcopy(base)
        policy.load_state_dict(type(base).from_pretrained(Path(folder)).state_dict())
        policies.append(policy)
    known = found.metrics(margins, list(held_out["annotator"]))
    return {
        **measures(found.log_prob(margins), found.log_prob(-margins), held_out),
        "log_loss_sequential": known["log_loss/sequential"],
        "classes": found.eta.tolist(),
        "seconds": seconds,
        "policies": policies,
    }


def fit_prototypes(policy: Any, train: Any, held_out: Any, collator: PreferenceCollator, seed: int) -> dict[str, Any]:
    """PAL-B with two prototypes on a policy's embeddings; held-out people are unknown to it."""
    config = PalConfig(num_prototypes=CLASSES, stopping_fraction=0.1, seed=seed)
    pairs = [
        pal_pairs(
            answer_embeddings(policy, data, collator, batch_size=256, progress=False), annotator=list(data["annotator"])
        )
        for data in (train, held_out)
    ]
    found = predict_unknown(fit_pal(pairs[0], config, progress=False), pairs[1])
    return measures(found.chosen, found.rejected, held_out)


def measures(chosen: torch.Tensor, rejected: torch.Tensor, pairs: Any) -> dict[str, float]:
    """Of the log-probabilities of both outcomes of held-out choices, every choice as one of a person of its own."""
    table = pd.DataFrame({"loss": -chosen.numpy(), "right": (chosen > rejected).numpy().astype(float)})
    people, groups = np.array(pairs["annotator"]), np.array(pairs["group"])
    return {
        "log_loss": float(table.loss.mean()),
        "log_loss_macro": float(table.loss.groupby(people).mean().mean()),
        "log_loss_macro_group": float(table.loss.groupby(groups).mean().mean()),
        "accuracy": float(table.right.mean()),
        "accuracy_worst": float(table.right.groupby(groups).mean().min()),
    }
