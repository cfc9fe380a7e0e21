"""Score a data set of pairs: margins and the log-probabilities they come from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pluralpref.likelihood.batches import batches_by_length, device_of, to_device
from pluralpref.likelihood.dropout import no_dropout
from pluralpref.likelihood.frozen_parts import FrozenParts
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES
from pluralpref.likelihood.margins import log_ratio_margins, pair_logps
from pluralpref.likelihood.reference import reference_pair_logps
from pluralpref.likelihood.reward import NoReference


def score_margins(
    policy: nn.Module,
    reference: nn.Module | FrozenParts | NoReference | None,
    dataset: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    batch_size: int = 8,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: bool = True,
    attn_layout: str = "auto",
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> dict[str, Tensor]:
    """Margins of all pairs of a tokenised data set under policy and reference, without gradients and dropout.

    :param policy: the policy; its mode is left as it is.
    :param reference: the reference; None when the data set has the columns ``ref_chosen_logps`` and ``ref_rejected_logps``;
        ``NO_REFERENCE`` where the policy is a reward model.
    :param dataset: a tokenised ``datasets.Dataset``.
    :param collator: makes a batch from rows.
    :param batch_size: pairs per batch; changes the numbers by rounding only.
    :param device: where to run; None for the policy's device. Both models must be there.
    :param autocast: called for each batch, returns the context in which the models run.
    :param progress: show a progress bar.
    :param attn_layout: see :func:`~pluralpref.likelihood.pair_logps`.
    :param logits_budget_bytes: see :func:`~pluralpref.likelihood.answer_logps`.
    :returns: ``margins``, ``chosen_logps``, ``rejected_logps``, ``ref_chosen_logps``, ``ref_rejected_logps``: each
        (pairs,) float64 on the CPU, in nats, in the data set's order.
    :raises ConfigError: when there is no reference of either kind.
    :raises DataError: when the data set isn't tokenised.
    """
    device = device_of(policy) if device is None else device
    names = ("margins", "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    scores = {name: torch.zeros(len(dataset), dtype=torch.float64) for name in names}
    with (
        torch.no_grad(),
        no_dropout(policy),
        tqdm(total=len(dataset), desc="Margins", unit="pair", disable=not progress) as bar,
    ):
        for indices, rows in batches_by_length(dataset, batch_size):
            batch = to_device(collator(rows), device)
            with autocast():
                ours = pair_logps(policy, batch, attn_layout=attn_layout, logits_budget_bytes=logits_budget_bytes)
                theirs = reference_pair_logps(
                    batch, reference, attn_layout=attn_layout, logits_budget_bytes=logits_budget_bytes
                )
            margins = log_ratio_margins(ours, theirs)
            for name, values in zip(names, (margins, *ours, *theirs), strict=True):
                scores[name][indices] = values.to(device="cpu", dtype=torch.float64)
            bar.update(len(indices))
    return scores
