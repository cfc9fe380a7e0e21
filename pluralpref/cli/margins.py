"""``pluralpref margins``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralpref.cli.data_options import DataOptions, load_pairs
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse
from pluralpref.cli.scoring import refuse_columns_of_scores, write_scored
from pluralpref.data import PreferenceCollator, padding_token, tokenize_preferences
from pluralpref.errors import ConfigError
from pluralpref.likelihood import NO_REFERENCE


@dataclass
class MarginsOptions:
    """What is scored."""

    policy: str | None = field(default=None, metadata={"help": "Folder or hub name of the policy."})
    reference: str | None = field(
        default=None, metadata={"help": "Likewise of the reference; not needed with ref_*_logps columns in the data."}
    )
    output: str = field(default="margins.parquet", metadata={"help": "The table to write."})
    batch_size: int = field(default=8, metadata={"help": "Pairs in a batch."})
    max_length: int = field(default=1024, metadata={"help": "Longest prompt plus answer, in tokens."})
    truncation_mode: str = field(default="drop", metadata={"help": "drop or keep_end, see train."})
    strict: bool = field(default=False, metadata={"help": "Refuse rows that can't be used."})
    attn_layout: str = field(
        default="auto",
        metadata={
            "help": "How a batch is laid out: padded, shared (each prompt once), or auto, the faster; see train."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing table."})


def main(argv: Sequence[str]) -> int:
    """Score pairs under a policy, however it was trained, and its reference; write margins in nats as Parquet."""
    data, model_options, options = parse(
        "margins", (DataOptions, ModelOptions, MarginsOptions), argv, main.__doc__ or ""
    )
    policy_name = options.policy or need(model_options.model_name_or_path, "policy")
    if Path(options.output).exists() and not options.overwrite:
        raise ConfigError(f"--output {options.output} exists: choose another name or give --overwrite")
    source = data.source()
    pairs, note = load_pairs(data, data.dataset_train_split)
    if note is not None:
        print(note, flush=True)
    refuse_columns_of_scores(pairs)
    has_columns = {"ref_chosen_logps", "ref_rejected_logps"} <= set(pairs.column_names)
    if model_options.reward_model:
        if options.reference is not None:
            raise ConfigError("--reference has no effect with --reward_model: the margin is the difference of rewards")
    elif options.reference is None and not has_columns:
        raise ConfigError(
            "--reference is missing, and the data have no columns ref_chosen_logps and ref_rejected_logps"
        )
    tokenizer, policy = load_tokenizer(model_options, policy_name), load_model(model_options, policy_name)
    reference: Any = NO_REFERENCE if model_options.reward_model else None
    if options.reference is not None:
        reference = load_model(model_options, options.reference)
    tokenized, report = tokenize_preferences(
        pairs,
        tokenizer,
        max_length=options.max_length,
        truncation_mode=options.truncation_mode,
        strict=options.strict,
        hh_format=data.hh_format,
    )
    print(report.summary(), flush=True)
    table = write_scored(
        options.output,
        policy,
        reference,
        tokenized,
        PreferenceCollator(padding_token(tokenizer)),
        options.batch_size,
        {"policy": policy_name, "reference": options.reference, "dataset": source},
        options.attn_layout,
    )
    print(
        f"{options.output}: {len(table)} margins, mean {table.margins.mean():.4g} nats, "
        f"{(table.margins > 0).double().mean():.1%} greater than 0"
    )
    return 0
