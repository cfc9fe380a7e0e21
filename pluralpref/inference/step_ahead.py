"""How much each pair of an optimiser step counts, where that depends on all of its pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pluralpref.inference.pair_losses import PairLoss


def weigh_pairs(
    loss: PairLoss,
    batches: Sequence[dict[str, Any]],
    margins: Callable[[dict[str, Any]], Tensor],
    group_column: str | None,
    gather: Callable[[list[Any]], list[Any]] | None,
    rank: int = 0,
) -> None:
    """Begin a step of a loss that looks ahead: every batch gets ``loss_weight``, (pairs,).

    :param batches: the micro-batches of this process.
    :param margins: gives a batch's margins under the policy as it is before the step.
    :param group_column: whose values are the groups.
    :param gather: joins what the processes have, in the order of their ranks; ``None`` for a single one.
    """
    own: dict[str, Any] = {
        "margins": torch.cat([margins(batch).detach().cpu() for batch in batches]),
        "preferred": torch.cat([batch["preferred"].cpu() for batch in batches]),
        "weight": torch.cat([batch["weight"].cpu() for batch in batches]),
        "groups": [name for batch in batches for name in batch["groups"][group_column]] if group_column else None,
    }
    every = [own] if gather is None else gather([own])
    device = next((buffer.device for buffer in loss.buffers()), torch.device("cpu"))
    columns = [torch.cat([one[name] for one in every]).to(device) for name in ("margins", "preferred", "weight")]
    groups = [name for one in every for name in one["groups"]] if group_column else None
    found = loss.begin_step(columns[0], columns[1], columns[2], groups).cpu()
    start = sum(len(one["weight"]) for one in every[:rank])
    for batch in batches:
        batch["loss_weight"] = found[start : start + len(batch["weight"])]
        start += len(batch["weight"])
