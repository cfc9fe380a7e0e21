"""The log-probability of one token per row of logits, with one copy of the logits kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _TokenLogProb(torch.autograd.Function):
    """Gather minus log-sum-exp. Autograd's own version keeps the float32 logits and needs two more copies to go back.

    The derivative of log p(t) in the logits is onehot(t) - softmax, which needs the logits and their log-sum-exp only.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.float()
        normaliser = torch.logsumexp(wide, dim=-1, keepdim=True)
        picked = wide.gather(-1, targets.unsqueeze(-1))
        ctx.save_for_backward(logits, normaliser, targets)
        return (picked - normaliser).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        logits, normaliser, targets = ctx.saved_tensors
        grad_output = grad_outputs[0].unsqueeze(-1)
        grad = torch.sub(logits.float(), normaliser).exp_().mul_(-grad_output)
        grad.scatter_add_(-1, targets.unsqueeze(-1), grad_output.to(grad.dtype))
        return grad.to(logits.dtype), None


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Log-probabilities of given tokens, :math:`\log p(t) = x_t - \log\sum_v e^{x_v}`.

    :param logits: (tokens, vocabulary), any floating dtype.
    :param targets: (tokens,), the token ids.
    :returns: (tokens,) float32, in nats. Differentiable once in ``logits``.
    """
    return _TokenLogProb.apply(logits, targets)
