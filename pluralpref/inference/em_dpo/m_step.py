"""The M-step: one class's policy trained by DPO, every pair weighted by its annotator's responsibility."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.trainer import MixDPOTrainer
from pluralpref.models import FixedStrength

#: Pairs that weigh no more than this in a class are left out of its M-step, and counted.
MIN_WEIGHT = 1e-6


def class_weights(responsibility: Tensor, annotator: Tensor, weight: Tensor) -> Tensor:
    r"""How much each pair counts for a class: :math:`w_i \gamma_{a(i)k}`, (pairs,).

    :param responsibility: (annotators,) of the class.
    :param annotator: (pairs,) codes.
    :param weight: (pairs,) the pairs' own weights.
    """
    return responsibility[annotator] * weight


def class_options(args: MixDPOConfig, output_dir: Path, round_number: int) -> MixDPOConfig:
    """Options of one M-step: those of the run, with a folder of its own and another order of the data in every iteration.

    :param round_number: 0 for the first iteration, which has the run's own seed.
    """
    # A copy: a second configuration made from the first one would reset accelerate's state.
    options = copy.copy(args)
    options.output_dir = str(output_dir)
    options.seed = args.seed + round_number
    options.data_seed = None if args.data_seed is None else args.data_seed + round_number
    options.precompute_ref_log_probs = False
    options.precompute_ref_cache_dir = options.precompute_ref_batch_size = None
    return options


def train_class(
    policy: Any, pairs: Any, weight: Tensor, beta: float, options: MixDPOConfig, processing_class: Any
) -> None:
    """Train a policy on the pairs that count for its class; goes on from a checkpoint in ``options.output_dir``.

    :param policy: is trained in place.
    :param pairs: tokenised, with the reference's log-probabilities.
    :param weight: (pairs,) of :func:`class_weights`, not all of them negligible.
    :param beta: DPO's.
    """
    kept = (weight > MIN_WEIGHT).nonzero().flatten().tolist()
    chosen = pairs if len(kept) == len(pairs) else pairs.select(kept)
    chosen = chosen.remove_columns(["weight"] if "weight" in chosen.column_names else [])
    trainer = MixDPOTrainer(
        policy,
        strength=FixedStrength(beta),
        args=options,
        train_dataset=chosen.add_column("weight", weight[kept].tolist()),
        processing_class=processing_class,
    )
    trainer.train(resume_from_checkpoint=True)
    # The next trainer wraps the policy's forward for its precision again.
    trainer.accelerator.unwrap_model(policy, keep_fp32_wrapper=False)
