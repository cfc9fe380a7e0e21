"""From hidden states to the log-probabilities of given tokens, and to their sums over answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pluralpref.likelihood.linear_logps import is_plain_linear, linear_logps
from pluralpref.likelihood.token_logps import token_logps

#: Bytes of float32 logits that are kept for the backward pass; beyond it they are recomputed chunk by chunk.
LOGITS_BUDGET_BYTES = 256 * 2**20


def sum_dtype(device: torch.device) -> torch.dtype:
    """Dtype in which token log-probabilities are summed: float64, or float32 where the device has no float64.

    Hundreds of tokens at -10 nats make sums of -5,000, where neighbouring float32 numbers lie 5e-4 apart: more than
    the margins that a single step moves.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def answer_sums(logps: Tensor, scored: Tensor) -> Tensor:
    """Sums over each row's tokens, (rows,).

    :param logps: (tokens,) in row-major order.
    :param scored: (rows, length) bool, which entries they are.
    """
    # A dense sum: unlike index_add it adds in a fixed order on every device, so a resumed run repeats it bit by bit.
    dtype = sum_dtype(logps.device)
    dense = torch.zeros(scored.shape, dtype=dtype, device=logps.device)
    return dense.masked_scatter(scored, logps.to(dtype)).sum(dim=1)


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, budget: int) -> Tensor:
    """Apply the head to (tokens, hidden) and pick the targets, in chunks when the logits would exceed the budget."""
    if is_plain_linear(head, hidden):
        return linear_logps(head, hidden, targets, budget)

    def chunk_logps(chunk: Tensor, chunk_targets: Tensor) -> Tensor:
        return token_logps(head(chunk), chunk_targets)

    tokens = hidden.shape[0]
    size = max(1, budget // (4 * _vocabulary(head, hidden)))
    if tokens <= size:
        return chunk_logps(hidden, targets)
    recompute: dict[str, Any] = {"use_reentrant": False}
    parts = [
        checkpoint(chunk_logps, hidden[start : start + size], targets[start : start + size], **recompute)
        if torch.is_grad_enabled()
        else chunk_logps(hidden[start : start + size], targets[start : start + size])
        for start in range(0, tokens, size)
    ]
    return torch.cat(parts)


def _vocabulary(head: nn.Module, hidden: Tensor) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        with torch.no_grad():
            size = head(hidden[:1]).shape[-1]
    return int(size)
