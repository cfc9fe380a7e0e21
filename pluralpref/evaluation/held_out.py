"""How well a law of preference strength explains held-out choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.choices import Choices, as_choices
from pluralpref.inference.marginal.dispatch import Method
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.models import StrengthModel


@torch.no_grad()
def held_out_metrics(
    law: Distribution | StrengthModel,
    margins: Any,
    *,
    weight: Any = None,
    annotator: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | None = None,
    method: str | Method = "auto",
) -> dict[str, float]:
    r"""Metrics of choices with margins h under a law of :math:`\beta`.

    With weights :math:`w_i` (default 1) and labels :math:`y_i` (default 1, the chosen answer was preferred):

    - ``log_loss``: :math:`-\sum_i w_i \log E_\beta[\sigma(\beta h_i)] / \sum_i w_i`, nats a pair; every pair is taken
      as a person of its own, also where annotators are known, so that it compares with training losses.
    - ``accuracy``: the share of pairs with :math:`h_i > 0`. A tie, :math:`h_i = 0`, is no win; ``ties`` is their
      share. A label of 0 turns the margin's sign, a label between counts in part.
    - ``margins``: the micro margin :math:`\sum_i w_i h_i / \sum_i w_i`, nats, beta-free. Annotators with many pairs
      weigh more.
    - ``margins/macro``: the mean over annotators of each one's mean margin: everybody weighs the same. It needs
      annotators. ``accuracy/macro`` likewise.
    - ``margins/macro/<column>``, ``accuracy/macro/<column>``: the same over the values of a group column; and
      ``group/<column>=<value>/accuracy`` and ``/margins`` for each value.
    - ``rewards/margins``: :math:`E[\beta]` times ``margins``; ``rewards/accuracies``: ``accuracy``; TRL's names.
    - ``beta/mean`` of the law; ``pairs`` and, where known, ``annotators``, the counts.

    :param law: the law of beta with batch shape (), or a strength model, whose law as it stands is taken.
    :param margins: (pairs,) finite, nats; or a margins table.
    :param weight: (pairs,) >= 0.
    :param annotator: labels, one for each pair.
    :param preferred: (pairs,) in [0, 1].
    :param groups: columns of labels by name.
    :param method: how to integrate over beta, see :func:`~pluralpref.inference.marginal.log_marginal`. Monte Carlo uses
        the same 16 (or the given number of) draws at every call.
    :raises DataError: for margins that aren't finite and columns of the wrong length, naming the rows.
    :raises ConfigError: if ``law`` is neither a distribution nor a strength model.
    """
    distribution = _as_law(law)
    if distribution.batch_shape.numel() != 1:
        raise ConfigError(f"one law for all pairs is needed, not one of batch shape {tuple(distribution.batch_shape)}")
    data = as_choices(margins, annotator=annotator, weight=weight, preferred=preferred, groups=groups)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        log_prob = MixedLogit(distribution, data.margins, method).log_prob(data.preferred)
    weights = torch.ones_like(data.margins) if data.weight is None else data.weight
    y = data.preferred
    h = data.margins * (2 * y - 1)
    # For a soft label: the chance that the labelled choice agrees with the margin's sign.
    win = torch.where(data.margins > 0, y, torch.where(data.margins < 0, 1 - y, torch.zeros_like(y)))
    tie = (data.margins == 0).double()
    mean = float(distribution.mean)
    result = {
        "log_loss": -_mean(log_prob.double(), weights),
        "accuracy": _mean(win, weights),
        "ties": _mean(tie, weights),
        "margins": _mean(h, weights),
        "beta/mean": mean,
        "pairs": float(data.num_pairs),
    }
    result["rewards/margins"] = mean * result["margins"]
    result["rewards/accuracies"] = result["accuracy"]
    if data.annotator is not None:
        result["annotators"] = float(data.num_annotators)
        result["margins/macro"] = _macro(h, weights, data.annotator, data.num_annotators)
        result["accuracy/macro"] = _macro(win, weights, data.annotator, data.num_annotators)
    return result | _by_group(data, h, win, weights)


def _as_law(law: Any) -> Distribution:
    if isinstance(law, StrengthModel):
        return law.law()
    if not isinstance(law, Distribution):
        raise ConfigError(f"law must be a distribution of beta or a StrengthModel, not {type(law).__name__}")
    return law


def _by_group(data: Choices, h: Tensor, win: Tensor, weights: Tensor) -> dict[str, float]:
    result: dict[str, float] = {}
    for column, labels in data.groups.items():
        values, codes = np.unique(labels, return_inverse=True)
        index = torch.as_tensor(codes)
        result[f"margins/macro/{column}"] = _macro(h, weights, index, len(values))
        result[f"accuracy/macro/{column}"] = _macro(win, weights, index, len(values))
        for code, value in enumerate(values):
            rows = index == code
            if float(weights[rows].sum()) > 0:
                result[f"group/{column}={value}/accuracy"] = _mean(win[rows], weights[rows])
                result[f"group/{column}={value}/margins"] = _mean(h[rows], weights[rows])
    return result


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def _macro(values: Tensor, weights: Tensor, codes: Tensor, count: int) -> float:
    """The mean over units of each one's weighted mean; units without weight are left out."""
    zeros = torch.zeros(count, dtype=torch.float64)
    mass = zeros.index_add(0, codes, weights)
    total = zeros.index_add(0, codes, values * weights)
    known = mass > 0
    return float((total[known] / mass[known]).mean())


def calibration_table(
    law: Distribution | StrengthModel,
    margins: Any,
    preferred: Any = None,
    *,
    bins: int = 10,
    method: str | Method = "auto",
) -> dict[str, np.ndarray]:
    r"""Predicted against observed choice probabilities, in bins of equal counts of :math:`|h|`.

    A pair whose margin is h predicts that the answer with the higher margin is preferred with probability
    :math:`E[\sigma(\beta |h|)] \geq 1/2`; observed is how often it was. Ties are left out: they predict nothing.

    :param law: the law of beta, or a strength model.
    :param margins: (pairs,) nats, chosen minus rejected.
    :param preferred: (pairs,) in [0, 1], default 1.
    :param bins: the number of bins, at least 1; fewer where there are fewer pairs.
    :returns: arrays (bins,): ``predicted``, ``observed``, ``standard_error`` of the latter (Agresti–Coull), ``count``,
        ``margin`` (mean :math:`|h|`).
    :raises DataError: for bad margins, or if every pair is a tie.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: must be at least 1")
    data = as_choices(margins, preferred=preferred)
    distribution = _as_law(law)
    keep = data.margins != 0
    if not bool(keep.any()):
        raise DataError("every margin is 0: a tie predicts nothing, so there is nothing to calibrate")
    h, y = data.margins[keep], data.preferred[keep]
    magnitude = h.abs()
    agrees = torch.where(h > 0, y, 1 - y)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predicted = MixedLogit(distribution, magnitude, method).probs.double()
    columns: dict[str, list[float]] = {
        name: [] for name in ("predicted", "observed", "standard_error", "count", "margin")
    }
    for rows in np.array_split(np.argsort(magnitude.numpy(), kind="stable"), min(bins, len(h))):
        count = len(rows)
        smoothed = (float(agrees[rows].sum()) + 2) / (count + 4)
        columns["predicted"].append(float(predicted[rows].mean()))
        columns["observed"].append(float(agrees[rows].mean()))
        columns["standard_error"].append(float(np.sqrt(smoothed * (1 - smoothed) / (count + 4))))
        columns["count"].append(count)
        columns["margin"].append(float(magnitude[rows].mean()))
    return {name: np.array(values) for name, values in columns.items()}
