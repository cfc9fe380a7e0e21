"""A batch of pairs in parts with a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def split_by_tokens(
    lengths: Tensor, budget: int, *, shared: bool, together: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Which pairs make up each part; pairs of similar length come together, so that little is padded.

    A part's tokens are counted with its padding: rows times the longest. What can't be divided and has more tokens than the
    budget is a part of its own.

    :param lengths: (pairs, 3) lengths of prompt, chosen and rejected answer.
    :param budget: most tokens of a part.
    :param shared: whether a prompt is run once for both answers, or twice in rows of one length.
    :param together: for each pair, what it has in common with those that it mustn't be parted from (its annotator).
    :returns: each pair's number once; the same for the same arguments.
    """
    prompt, chosen, rejected = lengths.unbind(1)
    tokens = (prompt + chosen + rejected if shared else 2 * (prompt + torch.maximum(chosen, rejected))).tolist()
    units: dict[Hashable, list[int]] = {}
    for pair in range(len(tokens)):
        units.setdefault(pair if together is None else together[pair], []).append(pair)
    parts: list[list[int]] = []
    longest = 0
    for unit in sorted(units.values(), key=lambda unit: -max(tokens[pair] for pair in unit)):
        if parts and (len(parts[-1]) + len(unit)) * longest <= budget:
            parts[-1].extend(unit)
        else:
            parts.append(list(unit))
            longest = max(tokens[pair] for pair in unit)
    return parts


def take_pairs(batch: Mapping[str, Any], pairs: Sequence[int]) -> dict[str, Any]:
    """The batch of some of a batch's pairs, in this order, without the padding that only the others need.

    :param batch: as :class:`~pluralpref.data.PreferenceCollator` gives it.
    """
    count = len(batch["pair_lengths"])
    index = torch.as_tensor(pairs)
    lengths = batch["pair_lengths"][index.to(batch["pair_lengths"].device)]
    width = int((lengths[:, 0] + lengths[:, 1:].amax(1)).max())

    def take(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: take(inner) for name, inner in value.items()}
        if not isinstance(value, Tensor):
            return [value[pair] for pair in pairs]
        if len(value) == count:
            return value[index.to(value.device)]
        return value[torch.cat([index, index + count]).to(value.device), :width]

    return {name: take(value) for name, value in batch.items()}
