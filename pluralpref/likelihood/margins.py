"""Margins: the log-ratio of the policy to the reference, chosen answer minus rejected answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pluralpref.errors import DataError
from pluralpref.likelihood.logprobs import LOGITS_BUDGET_BYTES, answer_logps


class PairLogps(NamedTuple):
    """Log-probabilities of both answers of each pair, in nats.

    :param chosen: (pairs,) sums over the chosen answers' tokens.
    :param rejected: (pairs,) sums over the rejected answers' tokens.
    """

    chosen: Tensor
    rejected: Tensor

    def detach(self) -> PairLogps:
        """Return the same numbers without gradients."""
        return PairLogps(self.chosen.detach(), self.rejected.detach())


def pair_logps(
    model: nn.Module, batch: Mapping[str, Any], *, logits_budget_bytes: int = LOGITS_BUDGET_BYTES
) -> PairLogps:
    """Log-probabilities of both answers of a batch of pairs under ``model``.

    :param model: see :func:`~pluralpref.likelihood.answer_logps`.
    :param batch: ``input_ids``, ``attention_mask``, ``completion_mask`` of shape (2 pairs, length): all chosen rows,
        then all rejected rows in the same order.
    :param logits_budget_bytes: see :func:`~pluralpref.likelihood.answer_logps`.
    :returns: two tensors (pairs,), float64, in nats.
    :raises DataError: when the number of rows is odd.
    """
    rows = batch["input_ids"].shape[0]
    if rows % 2:
        raise DataError(f"a batch of pairs has an even number of rows, chosen rows first; got {rows}")
    logps = answer_logps(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        batch["completion_mask"],
        logits_budget_bytes=logits_budget_bytes,
    )
    return PairLogps(logps[: rows // 2], logps[rows // 2 :])


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
