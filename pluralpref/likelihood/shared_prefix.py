"""Log-probabilities of both answers of a pair from one pass over their prompt."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.likelihood.causal_lm import (
    base_causal_lm,
    evaluation_flags,
    find_body,
    find_head,
    logits_route,
)
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES, answer_sums, head_logps
from pluralpref.likelihood.logprobs import answer_logps
from pluralpref.likelihood.pair_layout import Layout, shared_rows
from pluralpref.likelihood.shared_attention import (
    install_shared_attention,
    lengths_as_mask,
    uninstall_shared_attention,
)

logger = logging.getLogger(__name__)

#: How far the log-probabilities of the two paths may lie apart, in nats a token: rounding in float32, and in 16 bits.
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-4, 0.05

#: Why each model can't read rows with shared prompts; empty where it can.
_REASONS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def shared_answer_logps(
    model: nn.Module,
    input_ids: Tensor,
    lengths: Tensor,
    layout: Layout,
    *,
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> Tensor:
    """As :func:`~pluralpref.likelihood.answer_logps`, with the tokens of each prompt run once for both answers.

    :param model: one that :func:`why_not_shared` has nothing against.
    :param input_ids: (2 pairs, length), padded on the right: all chosen rows, then all rejected rows.
    :param lengths: (pairs, 3) lengths of prompt, chosen and rejected answer.
    :param layout: ``"ragged"``: all pairs in one row without padding; ``"batched"``: one padded row for each pair.
    :returns: (2 pairs,) float64 (float32 on devices without float64), nats.
    """
    body, head = find_body(model), find_head(model)
    if body is None or head is None:
        raise UnsupportedError(f"{type(model).__name__} doesn't say which modules are its body and head")
    rows = shared_rows(input_ids, lengths.cpu(), layout)
    hidden = body(
        input_ids=rows.input_ids,
        attention_mask=lengths_as_mask(rows.lengths),
        position_ids=rows.position_ids,
        use_cache=False,
    )[0]
    hidden = hidden.reshape(-1, hidden.shape[-1])[rows.predictors]
    return answer_sums(head_logps(head, hidden, rows.targets, logits_budget_bytes), rows.scored)


def why_not_shared(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, lengths: Tensor
) -> str:
    """Why the model can't read rows with shared prompts, found out with a first batch; empty if it can.

    The batch is scored in both ways, without gradients; the model's attention functions are replaced by ones that know such
    rows and treat others as before.
    """
    if model not in _REASONS:
        _REASONS[model] = _find_reason(model, input_ids, attention_mask, completion_mask, lengths)
        if _REASONS[model]:
            name = type(base_causal_lm(model)).__name__
            logger.warning("%s runs each prompt once for every answer: %s.", name, _REASONS[model])
    return _REASONS[model]


def require_shared(reason: str) -> None:
    """Refuse what ``attn_layout="shared"`` asked for in vain.

    :raises ConfigError: if there is a reason.
    """
    if reason:
        raise ConfigError(f"attn_layout='shared' isn't possible with this model: {reason}. Use 'auto' or 'padded'")


def _find_reason(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, lengths: Tensor
) -> str:
    if logits_route(model, input_ids, attention_mask).kind != "head":
        return "its logits aren't its head's output on its body's"
    with torch.no_grad(), evaluation_flags(model):
        padded = answer_logps(model, input_ids, attention_mask, completion_mask)
        try:
            install_shared_attention(model)
            found = [shared_answer_logps(model, input_ids, lengths, layout) for layout in ("ragged", "batched")]
        except Exception as error:  # whatever a model raises on inputs that it doesn't know, it can't read them
            uninstall_shared_attention(model)
            return f"it can't read them ({type(error).__name__}: {error})"
    parameter = next(model.parameters())
    narrow = parameter.dtype.itemsize < 4 or torch.is_autocast_enabled(parameter.device.type)
    tokens = completion_mask.sum(1).clamp_min(1)
    apart = max(float(((one - padded).abs() / tokens).max()) for one in found)
    if not apart <= (_LOW_PRECISION_TOLERANCE if narrow else _TOLERANCE):
        uninstall_shared_attention(model)
        return f"its log-probabilities differ by up to {apart:.2g} nats a token from those of padded rows"
    return ""
