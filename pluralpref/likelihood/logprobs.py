"""From a causal language model and token ids to the log-probability of each row's answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pluralpref.errors import DataError, UnsupportedError
from pluralpref.likelihood.causal_lm import find_head, last_hidden_state, logits_route, own_logits
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES, answer_sums, head_logps
from pluralpref.likelihood.token_logps import token_logps


def answer_logps(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> Tensor:
    r"""Log-probability of each row's answer, :math:`\sum_{t \in \text{answer}} \log p(x_t \mid x_{<t})`, in nats.

    The body of the model runs once; the head runs on the positions that predict answer tokens only, so the logits of
    prompts and padding never exist. Log-softmax is in float32 whatever the model's dtype, the sum over tokens in
    float64. Positions are counted over real tokens, so a row's number doesn't depend on the padding side or on the
    other rows of the batch (up to the rounding of the model's own arithmetic).

    A model whose logits are not simply its head's output (soft caps, scaling, user code) is recognised at its first
    use and scored through its own forward instead.

    :param model: a Hugging Face causal language model, plain, with PEFT adapters, or in a distributed wrapper. Its
        mode (training or evaluation) is left as it is: see :func:`~pluralpref.likelihood.disable_dropout`.
    :param input_ids: (rows, length) token ids, padded on either side.
    :param attention_mask: (rows, length), 1 for real tokens.
    :param completion_mask: (rows, length), 1 for the tokens that are scored.
    :param logits_budget_bytes: up to this many bytes of float32 logits are kept for the backward pass; above it they
        are computed chunk by chunk and again in the backward pass.
    :returns: (rows,) float64 (float32 on devices without float64).
    :raises DataError: when the shapes differ, or a row's first real token is marked: nothing predicts it.
    :raises UnsupportedError: when the model doesn't give one row of logits per token.
    """
    if not (input_ids.shape == attention_mask.shape == completion_mask.shape and input_ids.dim() == 2):
        raise DataError(
            f"input_ids {tuple(input_ids.shape)}, attention_mask {tuple(attention_mask.shape)} and completion_mask "
            f"{tuple(completion_mask.shape)} must have the same shape (rows, length)"
        )
    scored = completion_mask.bool()
    real = attention_mask.bool()
    # Position t - 1 predicts token t; it must be a real token of the same row.
    has_context = torch.zeros_like(real)
    has_context[:, 1:] = real[:, :-1]
    unusable = (scored & ~(has_context & real)).any(dim=1)
    if bool(unusable.any()):
        raise DataError(
            f"rows {unusable.nonzero().flatten().tolist()[:10]} of the batch mark a token as answer that is padding or "
            "has no token before it; give every prompt at least one token (a BOS token will do)"
        )
    predicts = torch.zeros_like(scored)
    predicts[:, :-1] = scored[:, 1:]
    targets = input_ids[scored]  # row-major, the same order as the predicting positions

    route = logits_route(model, input_ids, attention_mask)
    if route.kind == "head":
        head = find_head(model)
        if head is None:
            raise UnsupportedError(f"{type(model).__name__} no longer has a head to compute logits with")
        hidden = last_hidden_state(model, input_ids, attention_mask)[predicts]
        logps = head_logps(head, hidden, targets, logits_budget_bytes)
    elif route.kind == "masked":
        logps = token_logps(own_logits(model, input_ids, attention_mask, predicts), targets)
    else:
        logps = token_logps(own_logits(model, input_ids, attention_mask)[predicts], targets)

    return answer_sums(logps, scored)
