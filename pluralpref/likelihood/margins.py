"""Margins: the log-ratio of the policy to the reference, chosen answer minus rejected answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pluralpref.errors import ConfigError, DataError
from pluralpref.likelihood.causal_lm import is_distributed_wrapper, through_wrapper
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES
from pluralpref.likelihood.logprobs import answer_logps
from pluralpref.likelihood.pair_layout import Layout, choose_layout
from pluralpref.likelihood.reward import is_reward_model, pair_rewards
from pluralpref.likelihood.shared_prefix import require_shared, shared_answer_logps, why_not_shared

#: How the tokens of a batch are laid out: see :func:`pair_logps`.
ATTN_LAYOUTS = ("auto", "padded", "shared")


class PairLogps(NamedTuple):
    """Log-probabilities of both answers of each pair, in nats; of a reward model its rewards.

    :param chosen: (pairs,) sums over the chosen answers' tokens.
    :param rejected: (pairs,) sums over the rejected answers' tokens.
    """

    chosen: Tensor
    rejected: Tensor

    def detach(self) -> PairLogps:
        """Return the same numbers without gradients."""
        return PairLogps(self.chosen.detach(), self.rejected.detach())


def pair_logps(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    attn_layout: str = "auto",
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> PairLogps:
    """Log-probabilities of both answers of a batch of pairs under ``model``.

    Where the batch says how long its prompts and answers are, the tokens of a prompt needn't run twice, nor padding at all.
    Whether a model can do so is found out with its first batch: it is scored in both ways, and if the two differ, or the
    model can't read such rows, padded rows are used and a warning says why. Later batches are laid out in the way that
    should take the least time. The numbers differ by the rounding of the model's arithmetic.

    :param model: see :func:`~pluralpref.likelihood.answer_logps`; or a sequence classifier with one label, whose rewards are
        returned then.
    :param batch: ``input_ids``, ``attention_mask``, ``completion_mask`` of shape (2 pairs, length): all chosen rows,
        then all rejected rows in the same order; optionally ``pair_lengths`` (pairs, 3), the lengths of prompt, chosen and
        rejected answer of rows padded on the right, as :class:`~pluralpref.data.PreferenceCollator` gives them.
    :param attn_layout: ``"auto"``; ``"padded"``, all rows padded to one length; ``"shared"``, every prompt once, in one row
        without padding or in one padded row for each pair.
    :param logits_budget_bytes: see :func:`~pluralpref.likelihood.answer_logps`.
    :returns: two tensors (pairs,), float64, in nats.
    :raises DataError: when the number of rows is odd.
    :raises ConfigError: for another layout, or ``"shared"`` with a model or a batch that doesn't allow it.
    """
    if attn_layout not in ATTN_LAYOUTS:
        raise ConfigError(f"attn_layout={attn_layout!r}: choose one of {', '.join(ATTN_LAYOUTS)}")
    if is_distributed_wrapper(model):
        options: Any = {"attn_layout": attn_layout, "logits_budget_bytes": logits_budget_bytes}
        return PairLogps(*through_wrapper(model, lambda inner: pair_logps(inner, batch, **options)))
    rows = batch["input_ids"].shape[0]
    if rows % 2:
        raise DataError(f"a batch of pairs has an even number of rows, chosen rows first; got {rows}")
    if is_reward_model(model):
        _refuse_shared(attn_layout)
        rewards = pair_rewards(model, batch)
        return PairLogps(rewards[: rows // 2], rewards[rows // 2 :])
    padded = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    lengths = batch.get("pair_lengths")
    if attn_layout == "shared" and lengths is None:
        raise ConfigError("attn_layout='shared' needs a batch with pair_lengths, as PreferenceCollator makes them")
    layout: Layout = "padded"
    if lengths is not None and shares_prompts(model, batch, attn_layout):
        device = batch["input_ids"].device.type
        layout = choose_layout(lengths.cpu(), shared=attn_layout == "shared", device=device)
    if layout == "padded" or lengths is None:
        logps = answer_logps(model, *padded, logits_budget_bytes=logits_budget_bytes)
    else:
        logps = shared_answer_logps(model, batch["input_ids"], lengths, layout, logits_budget_bytes=logits_budget_bytes)
    return PairLogps(logps[: rows // 2], logps[rows // 2 :])


def shares_prompts(model: nn.Module, batch: Mapping[str, Any], attn_layout: str) -> bool:
    """Whether a model may be given rows in which both answers stand behind one prompt.

    :param model: not in a distributed wrapper; it is tried on the batch if it wasn't yet on another.
    :param batch: see :func:`pair_logps`.
    :raises ConfigError: for ``"shared"`` with a model that can't read such rows.
    """
    lengths = batch.get("pair_lengths")
    if is_reward_model(model):
        _refuse_shared(attn_layout)
        return False
    if attn_layout == "padded" or lengths is None:
        return False
    reason = why_not_shared(model, batch["input_ids"], batch["attention_mask"], batch["completion_mask"], lengths)
    if attn_layout == "shared":
        require_shared(reason)
    return not reason


def _refuse_shared(attn_layout: str) -> None:
    if attn_layout == "shared":
        raise ConfigError("attn_layout='shared' has no effect on a reward model, which reads whole texts: leave it out")


def log_ratio_margins(policy: PairLogps, reference: PairLogps) -> Tensor:
    r"""Beta-free margins of DPO's implicit reward, in nats.

    .. math:: h = [\log \pi(y_w|x) - \log \pi_{ref}(y_w|x)] - [\log \pi(y_l|x) - \log \pi_{ref}(y_l|x)]

    Rafailov et al., Direct Preference Optimization, arXiv:2305.18290, equation 7, without its beta. Equal weights in
    policy and reference give exactly 0.

    :param policy: log-probabilities under the policy, (pairs,).
    :param reference: the same under the reference.
    :returns: (pairs,), in the dtype of the log-probabilities (float64).
    """
    return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
