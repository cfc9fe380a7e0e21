"""Rivals that are mixtures over people: a policy for each class (EM-DPO), and prototypes on frozen embeddings (PAL)."""

from __future__ import annotations

import math
import time
from typing import Any

from measures import measures_of_log_odds

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
    known = found.metrics(margins, list(held_out["annotator"]))
    return {
        **measures_of_log_odds(found.log_prob(margins) - found.log_prob(-margins), held_out),
        "log_loss_sequential": known["log_loss/sequential"],
        "classes": found.eta.tolist(),
        "seconds": seconds,
        "policies": [type(base).from_pretrained(folder) for folder in found.policies],
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
    return measures_of_log_odds(found.log_odds, held_out)
