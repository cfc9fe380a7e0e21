"""``pluralpref inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pluralpref.cli.data_options import DataOptions, load_pairs
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse
from pluralpref.data import PreferenceCollator, padding_token, tokenize_preferences
from pluralpref.errors import ConfigError


@dataclass
class InspectOptions:
    """What is shown."""

    max_length: int = field(default=1024, metadata={"help": "Longest prompt plus answer, in tokens."})
    truncation_mode: str = field(default="drop", metadata={"help": "drop or keep_end, see train."})
    rows: int = field(default=3, metadata={"help": "Rows to show decoded."})
    step0: bool = field(
        default=False, metadata={"help": "Load the model and check that margins are 0 before any training."}
    )


def main(argv: Sequence[str]) -> int:
    """Show how pairs are read: row accounting, lengths, decoded rows with the scored tokens in brackets."""
    data, model, options = parse("inspect", (DataOptions, ModelOptions, InspectOptions), argv, main.__doc__ or "")
    need(model.model_name_or_path, "model_name_or_path")
    data.source()
    pairs, note = load_pairs(data, data.dataset_train_split)
    tokenizer = load_tokenizer(model)
    tokenized, report = tokenize_preferences(
        pairs,
        tokenizer,
        max_length=options.max_length,
        truncation_mode=options.truncation_mode,
        hh_format=data.hh_format,
    )
    if note is not None:
        print(note)
    print(report.summary())
    print(f"columns: {', '.join(pairs.column_names)}")
    print(f"{'tokens':<10}{'median':>8}{'95 %':>8}{'max':>8}")
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        lengths = np.array([len(ids) for ids in tokenized[column]])
        middle, high = np.quantile(lengths, [0.5, 0.95])
        print(f"{column[:-4]:<10}{middle:>8.0f}{high:>8.0f}{lengths.max():>8d}")
    for i in range(min(options.rows, len(tokenized))):
        row = tokenized[i]
        print(f"\nrow {row['row']}")
        print(f"  prompt   {tokenizer.decode(row['prompt_ids'])!r}")
        for side in ("chosen", "rejected"):
            print(f"  {side:<8} [{tokenizer.decode(row[side + '_ids'])!r}] ({len(row[side + '_ids'])} tokens scored)")
    if options.step0 and model.reward_model:
        raise ConfigError("--step0 has no effect with --reward_model, which has no reference to start from")
    if options.step0:
        _step0(model, tokenizer, tokenized.select(range(min(8, len(tokenized)))))
    return 0


def _step0(model: ModelOptions, tokenizer: Any, tokenized: Any) -> None:
    from pluralpref.likelihood import frozen_copy, score_margins

    policy = load_model(model)
    collator = PreferenceCollator(padding_token(tokenizer))
    scores = score_margins(policy, frozen_copy(policy), tokenized, collator, progress=False)
    largest = float(scores["margins"].abs().max())
    verdict = "as it must be" if largest == 0 else "which must be 0: the model isn't deterministic"
    print(f"\nstep-0 margin: largest |h| {largest:.3g} nats, {verdict}")
    print(f"log-probability of the chosen answers: mean {scores['chosen_logps'].mean():.4g} nats")
