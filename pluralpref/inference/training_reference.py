"""What a policy in training is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig
from pluralpref.likelihood import (
    NO_REFERENCE,
    FrozenParts,
    frozen_copy,
    is_reward_model,
    precompute_reference,
    trains_a_part,
)
from pluralpref.likelihood.reference import REFERENCE_COLUMNS


def choose_reference(model: Any, ref_model: Any, args: MixDPOConfig, sets: Sequence[Any]) -> Any:
    """What the policy is compared with; ``None`` if the data sets bring its log-probabilities."""
    columns = bool(sets) and all(set(REFERENCE_COLUMNS) <= set(d.column_names) for d in sets)
    if is_reward_model(model):
        if ref_model is not None or args.precompute_ref_log_probs or columns:
            raise ConfigError(
                "a reward model has no reference: leave out ref_model, precompute_ref_log_probs and the columns "
                f"{' and '.join(REFERENCE_COLUMNS)}"
            )
        return NO_REFERENCE
    if columns:
        if ref_model is not None or args.precompute_ref_log_probs:
            raise ConfigError(
                "the data set has ref_chosen_logps and ref_rejected_logps, so ref_model and precompute_ref_log_probs "
                "have no effect: leave them out, or drop the columns"
            )
        return None
    # Copied before anything trains: the reference is the policy as it was handed over.
    if ref_model is not None:
        return frozen_copy(ref_model)
    return FrozenParts(model) if trains_a_part(model) else frozen_copy(model)


def precompute_in_shares(
    reference: Any,
    dataset: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    args: MixDPOConfig,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Any:
    """The data set with the reference's log-probabilities as columns, each process having computed its share.

    :param autocast: the precision in which the policy is trained.
    """
    rank, ranks = args.process_index, args.world_size
    part = dataset.shard(num_shards=ranks, index=rank, contiguous=True)
    if len(part):
        part = precompute_reference(
            reference,
            part,
            collator,
            batch_size=args.precompute_ref_batch_size or args.per_device_eval_batch_size,
            device=args.device,
            autocast=autocast,
            progress=not args.disable_tqdm,
            cache_dir=args.precompute_ref_cache_dir or Path(str(args.output_dir)) / "reference",
            attn_layout=args.attn_layout,
            logits_budget_bytes=args.logits_budget_bytes,
        )
    if ranks == 1:
        return part
    for name in REFERENCE_COLUMNS:
        values = gather_object(list(part[name]) if len(part) else [])
        dataset = dataset.remove_columns([name] if name in dataset.column_names else [])
        dataset = dataset.add_column(name, values)
    return dataset
