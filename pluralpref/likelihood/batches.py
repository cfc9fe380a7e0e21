"""Batches of pairs of similar length, for passes over a data set whose order doesn't matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pluralpref.errors import ConfigError, DataError

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def pair_lengths(dataset: Any) -> list[int]:
    """Number of tokens of the longer side of each pair of a tokenised data set.

    :raises DataError: when the data set isn't tokenised.
    """
    missing = [name for name in TOKEN_COLUMNS if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"the data set has no column {', '.join(missing)} (it has {', '.join(dataset.column_names)}); "
            "tokenise it first: pluralpref.data.tokenize_preferences(dataset, tokenizer)"
        )
    if "length" in dataset.column_names:
        return [int(length) for length in dataset["length"]]
    columns = (dataset[name] for name in TOKEN_COLUMNS)
    return [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]


def batches_by_length(dataset: Any, batch_size: int) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Yield (row numbers, rows) in batches of similar length, the longest first.

    The longest come first so that a batch that doesn't fit in memory fails at once.

    :raises ConfigError: when ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    lengths = pair_lengths(dataset)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        columns = dataset[indices]
        yield indices, [{name: columns[name][i] for name in columns} for i in range(len(indices))]


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to ``device``; what isn't a tensor stays."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def device_of(model: Any) -> torch.device:
    """The device of the model's first parameter."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
