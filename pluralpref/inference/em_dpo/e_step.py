"""The E-step: who belongs to which class, given how each class's policy explains the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.choices import annotator_names


def pair_log_likelihoods(margins: Any, beta: float, *, preferred: Any = None, weight: Any = None) -> Tensor:
    r"""Log-likelihood of each choice in each class.

    .. math:: \ell_{ik} = w_i [y_i \log \sigma(\beta h_{ik}) + (1 - y_i) \log \sigma(-\beta h_{ik})]

    This is the negative of what DPO minimises of pair i when it trains the policy of class k.

    :param margins: h (pairs, classes), nats, beta-free.
    :param beta: the strength, greater than 0.
    :param preferred: y (pairs,) in [0, 1]; default 1, the chosen answer was preferred.
    :param weight: w (pairs,) at least 0; default 1.
    :returns: (pairs, classes), float64, nats.
    :raises DataError: for margins that aren't a table of finite numbers.
    """
    h = torch.as_tensor(margins, dtype=torch.float64)
    if h.dim() != 2 or not bool(torch.isfinite(h).all()):
        raise DataError(f"margins must be finite, one column for each class: shape {tuple(h.shape)}")
    y = torch.ones(len(h)) if preferred is None else preferred
    y = torch.as_tensor(y, dtype=torch.float64)[:, None]
    result = y * logsigmoid(beta * h) + (1 - y) * logsigmoid(-beta * h)
    return result if weight is None else torch.as_tensor(weight, dtype=torch.float64)[:, None] * result


def initial_responsibilities(num_annotators: int, num_classes: int, seed: int) -> Tensor:
    """Responsibilities to start from: each annotator's drawn uniformly from the simplex (Dirichlet(1, …, 1)).

    Equal ones would give all classes the same policy, which no E-step could tell apart again.

    :param seed: the draws depend on nothing else.
    :returns: (annotators, classes), float64; rows sum to 1.
    """
    draws = np.random.default_rng(seed).dirichlet(np.ones(num_classes), size=num_annotators)
    return torch.from_numpy(draws)


def responsibilities(log_likelihoods: Tensor, annotator: Any, log_eta: Any) -> Tensor:
    r"""Posterior probability of each class for each annotator.

    .. math:: \gamma_{ak} \propto \eta_k \prod_{i \in a} P_k(\text{choice } i)

    K. Chidambaram, K. Seetharaman, V. Syrgkanis, arXiv:2405.15065, the E-step of EM-DPO; in log space.

    :param log_likelihoods: (pairs, classes), see :func:`pair_log_likelihoods`.
    :param annotator: (pairs,) codes 0, 1, …
    :param log_eta: (classes,) logarithms of the classes' shares; minus infinity for an empty class.
    :returns: (annotators, classes), float64; rows sum to 1.
    :raises DataError: for shapes that don't fit.
    """
    return torch.softmax(_log_joint(log_likelihoods, annotator, log_eta), dim=1)


def observed_log_likelihood(log_likelihoods: Tensor, annotator: Any, log_eta: Any) -> float:
    r"""Log-likelihood of all choices with the classes summed out, which EM raises.

    .. math:: \sum_a \log \sum_k \eta_k \prod_{i \in a} P_k(\text{choice } i)

    :param log_likelihoods: (pairs, classes), see :func:`pair_log_likelihoods`.
    :param annotator: (pairs,) codes 0, 1, …
    :param log_eta: (classes,) logarithms of the classes' shares.
    :returns: nats.
    :raises DataError: for shapes that don't fit.
    """
    return float(torch.logsumexp(_log_joint(log_likelihoods, annotator, log_eta), dim=1).sum())


def annotator_codes(names: Sequence[Any]) -> tuple[Tensor, tuple[str, ...]]:
    """Codes 0, 1, … in the order in which the annotators first appear, and the names that they stand for.

    :param names: (pairs,) of any kind; taken as text.
    :returns: (pairs,) int64; (annotators,) names.
    :raises DataError: naming the first row without an annotator.
    """
    labels = annotator_names(names, "EM-DPO")
    known = {name: code for code, name in enumerate(dict.fromkeys(labels))}
    return torch.tensor([known[name] for name in labels]), tuple(known)


def check_num_classes(num_classes: int) -> None:
    """Refuse a number of classes that means nothing.

    :raises ConfigError: if it is no whole number of at least 1.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(f"num_classes={num_classes!r}: must be a whole number of at least 1")


def _log_joint(log_likelihoods: Tensor, annotator: Any, log_eta: Any) -> Tensor:
    """Log of a class's share times the probability of all that an annotator chose, (annotators, classes)."""
    pairs = torch.as_tensor(log_likelihoods, dtype=torch.float64)
    codes, shares = torch.as_tensor(annotator), torch.as_tensor(log_eta, dtype=torch.float64)
    if pairs.dim() != 2 or codes.shape != pairs.shape[:1] or shares.shape != pairs.shape[1:]:
        raise DataError(
            f"log_likelihoods {tuple(pairs.shape)}, annotator {tuple(codes.shape)} and log_eta {tuple(shares.shape)} don't fit: "
            "expected (pairs, classes), (pairs,) and (classes,)"
        )
    sums = torch.zeros(int(codes.max()) + 1, pairs.shape[1], dtype=torch.float64)
    return shares + sums.index_add(0, codes, pairs)
