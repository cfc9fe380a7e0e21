"""The pairs of a run, with the reference's log-probabilities, and their margins under a policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.trainer import MixDPOTrainer
from pluralpref.likelihood import score_margins
from pluralpref.likelihood.reference import REFERENCE_COLUMNS
from pluralpref.models import FixedStrength


class PairScorer:
    """Tokenises the pairs, runs the reference over them once, and scores them under any policy as the trainer would.

    :param policy: as it starts: the reference where none is given.
    :param reference: a model, or ``None``.
    :param args: of the run; the reference's numbers are kept in ``output_dir/reference`` unless another folder is named.
    :param train: the training pairs.
    :param held_out: held-out pairs, or ``None``.
    :param tokenizer: the policy's.
    :raises ConfigError: as the trainer, and where one data set has the reference's columns and the other hasn't.
    """

    def __init__(
        self, policy: Any, reference: Any, args: MixDPOConfig, train: Any, held_out: Any, tokenizer: Any
    ) -> None:
        sets = [dataset for dataset in (train, held_out) if dataset is not None]
        having = [set(REFERENCE_COLUMNS) <= set(dataset.column_names) for dataset in sets]
        if any(having) and not all(having):
            raise ConfigError(
                f"one data set has {' and '.join(REFERENCE_COLUMNS)} and the other hasn't: give both the columns, or none"
            )
        options = copy.copy(args)
        options.precompute_ref_log_probs = args.precompute_ref_log_probs or not all(having)
        if args.precompute_ref_cache_dir is None:
            options.precompute_ref_cache_dir = str(Path(str(args.output_dir)) / "reference")
        # The trainer is asked, so that tokens, precision and reference are what they are in training.
        trainer = MixDPOTrainer(
            policy, reference, FixedStrength(1.0), options, train, held_out, processing_class=tokenizer
        )
        self.args = args
        self.row_reports = dict(trainer.row_reports)
        #: The data sets by name, ``"train"`` and perhaps ``"held_out"``.
        self.pairs: dict[str, Any] = {"train": trainer.train_dataset}
        if trainer.eval_dataset is not None:
            self.pairs["held_out"] = trainer.eval_dataset
        self._collator, self._device = trainer.data_collator, trainer.args.device
        self._autocast = trainer.compute_loss_context_manager

    def margins(self, policy: Any, which: str) -> Tensor:
        """Margins of a data set under a policy, (pairs,), nats, beta-free.

        :param which: a key of :attr:`pairs`.
        """
        policy.to(self._device)
        return score_margins(
            policy,
            None,
            self.pairs[which],
            self._collator,
            batch_size=self.args.per_device_eval_batch_size,
            autocast=self._autocast,
            progress=not self.args.disable_tqdm,
            attn_layout=self.args.attn_layout,
            logits_budget_bytes=self.args.logits_budget_bytes,
        )["margins"]

    def labels(self, which: str) -> tuple[Tensor, Tensor]:
        """(soft labels, weights) of a data set, each (pairs,), 1 where it has no such column."""
        pairs = self.pairs[which]
        preferred, weight = (
            torch.tensor(pairs[name][:], dtype=torch.float64)
            if name in pairs.column_names
            else torch.ones(len(pairs)).double()
            for name in ("preferred", "weight")
        )
        return preferred, weight

    def reference_means(self) -> list[float]:
        """Mean log-probabilities of the chosen and rejected training answers under the reference, nats."""
        pairs = self.pairs["train"]
        return [float(torch.tensor(pairs[name][:], dtype=torch.float64).mean()) for name in REFERENCE_COLUMNS]
