"""Log-probabilities of given tokens straight from hidden states, for a head that is one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

#: Bytes of the logits of one block of the vocabulary. They should stay in a core's cache between the passes over them; a GPU,
#: whose kernels take some microseconds to start, needs larger ones.
_BLOCK_BYTES, _GPU_BLOCK_BYTES = 2 * 2**20, 64 * 2**20
_FEWEST_COLUMNS = 256


def is_plain_linear(head: nn.Module, hidden: Tensor) -> TypeGuard[nn.Linear]:
    """Whether the head's logits are ``linear(hidden, weight, bias)`` in float32, with nobody listening in."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)  # replaced, as accelerate's hooks do
        and not any(hooks)
        and hidden.dtype == head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled(hidden.device.type)
    )


def linear_logps(head: nn.Linear, hidden: Tensor, targets: Tensor, budget: int) -> Tensor:
    r"""Log-probabilities of given tokens, :math:`\log p(t) = x_t - \log\sum_v e^{x_v}` with :math:`x = W h + b`.

    Equal to ``token_logps(head(hidden), targets)``, block by block of the vocabulary: only the sums of :math:`e^{x_v}` over
    blocks are combined, so the logits needn't exist together. With :math:`\partial \log p(t) / \partial x = e_t - p` the
    backward pass needs the exponentials, which are kept up to a budget and beyond it computed again; where the matrix isn't
    trained it needs no more than :math:`p W`, which the forward pass sums up. The result is the same to the last bit
    whichever of these is the case.

    :param head: one that :func:`is_plain_linear`.
    :param hidden: (tokens, hidden).
    :param targets: (tokens,), the token ids.
    :param budget: bytes of exponentials that are kept for the backward pass.
    :returns: (tokens,) float32, in nats. Differentiable once.

    Reference: E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009.
    """
    if torch.is_grad_enabled():
        return _LinearTokenLogProb.apply(hidden, head.weight, head.bias, targets, budget)
    return _forward(hidden, head.weight, head.bias, targets).logps


class _Forward(NamedTuple):
    """:param logps: (tokens,).

    :param largest: (tokens, blocks), each block's largest logit.
    :param normaliser: (tokens, 1), the log of the sum over the whole vocabulary.
    :param kept: for each block the exponentials of the logits less its largest one, if asked for.
    :param expected: (tokens, hidden), the mean of the matrix's rows under the probabilities, if asked for.
    """

    logps: Tensor
    largest: Tensor
    normaliser: Tensor
    kept: list[Tensor]
    expected: Tensor | None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, keep: bool = False, expect: bool = False
) -> _Forward:
    kept, largest, total = [], [], []
    picked = hidden.new_zeros(len(targets))
    expected = torch.zeros_like(hidden) if expect else None
    reached = hidden.new_full((len(targets), 1), -torch.inf)
    for block in _blocks(len(targets), weight):
        logits = linear(hidden, weight[block], None if bias is None else bias[block])
        inside = (targets - block.start).clamp(0, logits.shape[1] - 1)
        is_inside = (targets >= block.start) & (targets < block.stop)
        picked = torch.where(is_inside, logits.gather(1, inside[:, None])[:, 0], picked)
        # Finite also for a block of tokens that can't come, whose logits are all -inf.
        largest.append(logits.amax(1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min))
        exponentials = logits.sub_(largest[-1]).exp_()
        total.append(exponentials.sum(1, keepdim=True))
        if keep:
            kept.append(exponentials)
        if expected is not None:
            new = torch.maximum(reached, largest[-1])
            expected.mul_((reached - new).exp_())
            expected.add_((exponentials @ weight[block]).mul_((largest[-1] - new).exp_()))
            reached = new
    every = torch.cat(largest, 1)
    normaliser = torch.logsumexp(every + torch.cat(total, 1).log_(), 1, keepdim=True)
    if expected is not None:
        expected.mul_((reached - normaliser).exp_())
    return _Forward(picked - normaliser[:, 0], every, normaliser, kept, expected)


def _blocks(tokens: int, weight: Tensor) -> Iterator[slice]:
    size = max(_FEWEST_COLUMNS, _block_bytes(weight) // (4 * max(1, tokens)))
    for start in range(0, weight.shape[0], size):
        yield slice(start, min(start + size, weight.shape[0]))


def _block_bytes(weight: Tensor) -> int:
    return _BLOCK_BYTES if weight.device.type == "cpu" else _GPU_BLOCK_BYTES


class _LinearTokenLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, budget: int) -> Tensor:
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        keep = trained and 4 * hidden.shape[0] * weight.shape[0] <= budget
        found = _forward(hidden, weight, bias, targets, keep=keep, expect=not trained)
        ctx.save_for_backward(
            hidden, weight, bias, targets, found.largest, found.normaliser, found.expected, *found.kept
        )
        return found.logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, largest, normaliser, expected, *kept = ctx.saved_tensors
        grad = grad_outputs[0].to(hidden.dtype).unsqueeze(1)
        if expected is not None:
            return (weight[targets] - expected) * grad, None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        expected = torch.zeros_like(hidden)
        to_weight = torch.empty_like(weight) if needs_weight else None
        to_bias = torch.empty_like(bias) if needs_bias else None
        for number, block in enumerate(_blocks(len(targets), weight)):
            if kept:
                exponentials, scale = kept[number], (largest[:, number, None] - normaliser).exp_()
            else:
                logits = linear(hidden, weight[block], None if bias is None else bias[block])
                exponentials, scale = logits.sub_(normaliser).exp_(), torch.ones_like(normaliser)
            if needs_hidden:
                expected.add_((exponentials @ weight[block]).mul_(scale))
            scale = scale.mul_(-grad)
            if to_weight is not None:
                torch.mm(exponentials.t(), hidden * scale, out=to_weight[block])
            if to_bias is not None:
                torch.mv(exponentials.t(), scale[:, 0], out=to_bias[block])
        if to_weight is not None:
            to_weight.index_add_(0, targets, hidden * grad)
        if to_bias is not None:
            to_bias.index_add_(0, targets, grad[:, 0])
        to_hidden = (weight[targets] - expected) * grad if needs_hidden else None
        return to_hidden, to_weight, to_bias, None, None
