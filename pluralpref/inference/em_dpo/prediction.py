"""Predictions of a mixture of policies: of known annotators, of unknown ones, and of those who have chosen before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mixture_log_prob(log_likelihoods: Tensor, log_shares: Tensor) -> Tensor:
    r"""Log-probability of each choice: :math:`\log \sum_k s_k P_k(\text{choice } i)`.

    :param log_likelihoods: (pairs, classes), nats.
    :param log_shares: (classes,) or (pairs, classes): log of eta for a person of whom nothing is known, of the
        responsibilities for a known one, or what :func:`log_shares_before` gives.
    :returns: (pairs,), float64, nats.
    """
    return torch.logsumexp(log_shares + log_likelihoods.double(), dim=1)


def log_shares_before(log_likelihoods: Tensor, annotator: Any, log_shares: Tensor) -> Tensor:
    r"""The posterior of the classes just before each choice, given the annotator's earlier ones.

    .. math:: s_{ik} \propto s_{ak} \prod_{j \in a, j < i} P_k(\text{choice } j)

    :param log_likelihoods: (pairs, classes), nats; an annotator's choices in the order of the rows.
    :param annotator: (pairs,) codes 0, 1, …
    :param log_shares: (annotators, classes) or (classes,): what is known before the first choice.
    :returns: (pairs, classes), float64; logarithms, normalised.
    """
    pairs, codes = log_likelihoods.double(), torch.as_tensor(annotator)
    result = torch.empty_like(pairs)
    start = log_shares.double().expand(int(codes.max()) + 1, pairs.shape[1])
    order = torch.argsort(codes, stable=True)
    for rows in torch.split(order, torch.bincount(codes).tolist()):
        if len(rows):
            earlier = torch.cat([torch.zeros(1, pairs.shape[1], dtype=torch.float64), pairs[rows[:-1]].cumsum(0)])
            result[rows] = torch.log_softmax(start[codes[rows[0]]] + earlier, dim=1)
    return result


def mixture_metrics(
    log_prob: Tensor, log_prob_rejected: Tensor, preferred: Any = None, weight: Any = None
) -> dict[str, float]:
    r"""Log-loss and accuracy of predicted choices.

    ``log_loss``: :math:`-\sum_i w_i [y_i \log p_i + (1 - y_i) \log(1 - p_i)] / \sum_i w_i`, nats a pair. ``accuracy``: the share
    of pairs with :math:`p_i > 1/2`; a label of 0 turns this round, a label between counts in part, and a tie is no win.

    :param log_prob: (pairs,) log-probability that the chosen answer is preferred.
    :param log_prob_rejected: likewise that the rejected one is.
    :param preferred: y (pairs,) in [0, 1]; default 1.
    :param weight: w (pairs,) at least 0; default 1.
    """
    y = torch.ones_like(log_prob) if preferred is None else torch.as_tensor(preferred, dtype=torch.float64)
    w = torch.ones_like(log_prob) if weight is None else torch.as_tensor(weight, dtype=torch.float64)
    right = y * (log_prob > log_prob_rejected) + (1 - y) * (log_prob < log_prob_rejected)
    total = w.sum()
    return {
        "log_loss": float(-(w * (y * log_prob + (1 - y) * log_prob_rejected)).sum() / total),
        "accuracy": float((w * right).sum() / total),
    }
