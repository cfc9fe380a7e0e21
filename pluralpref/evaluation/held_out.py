"""How well a law of preference strength explains held-out choices, in numbers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.distributions import Distribution

from pluralpref.evaluation.cluster_sums import ClusterSums
from pluralpref.evaluation.labels import MISSING
from pluralpref.evaluation.scores import PairScores, pair_scores
from pluralpref.evaluation.tables import worst_groups
from pluralpref.inference.marginal.dispatch import Method
from pluralpref.models import StrengthModel


def held_out_metrics(
    law: Distribution | StrengthModel,
    margins: Any,
    *,
    weight: Any = None,
    annotator: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | Sequence[str] | None = None,
    method: str | Method = "auto",
) -> dict[str, float]:
    r"""Metrics of choices with margins h under a law of :math:`\beta`: :func:`metrics_of` the :func:`pair_scores`.

    :param law: the law of beta with batch shape (), or a strength model, whose law as it stands is taken.
    :param margins: (pairs,) finite, nats; or a margins table.
    :param weight: (pairs,) >= 0.
    :param annotator: labels, one for each pair.
    :param preferred: (pairs,) in [0, 1].
    :param groups: columns of labels by name, or names of the table's columns.
    :param method: how to integrate over beta, see :func:`pair_scores`.
    :raises DataError: for margins that aren't finite and columns of the wrong length, naming the rows; for a column that
        the table doesn't have.
    :raises ConfigError: if ``law`` is neither a distribution nor a strength model.
    """
    return metrics_of(
        pair_scores(law, margins, weight=weight, annotator=annotator, preferred=preferred, groups=groups, method=method)
    )


def metrics_of(scores: PairScores) -> dict[str, float]:
    r"""Metrics of scored pairs.

    With weights :math:`w_i` (default 1) and labels :math:`y_i` (default 1, the chosen answer was preferred):

    - ``log_loss``: :math:`-\sum_i w_i \log E_\beta[\sigma(\beta h_i)] / \sum_i w_i`, nats a pair; every pair is taken
      as a person of its own, also where annotators are known, so that it compares with training losses.
      ``log_loss/plug_in``: the same with :math:`\sigma(E[\beta] h_i)`.
    - ``accuracy``: the share of pairs with :math:`h_i > 0`. A tie, :math:`h_i = 0`, is no win; ``ties`` is their
      share. A label of 0 turns the margin's sign, a label between counts in part.
    - ``margins``: the micro margin :math:`\sum_i w_i h_i / \sum_i w_i`, nats, beta-free. Annotators with many pairs
      weigh more.
    - ``brier``: the mean of :math:`(y_i - p_i)^2`, :math:`p_i = E[\sigma(\beta h_i)]`; ``brier/plug_in`` with
      :math:`p_i = \sigma(E[\beta] h_i)`. Plug-in metrics are left out where :math:`E[\beta]` isn't finite.
    - ``margins/macro``, ``accuracy/macro``, ``log_loss/macro``: the mean over annotators of each one's mean: everybody
      weighs the same. They need annotators.
    - ``margins/macro/<column>`` and so on: the same over the values of a group column;
      ``group/<column>=<value>/margins`` and so on for each value; ``margins/worst/<column>`` and so on the worst of
      these, the lowest margin and accuracy and the highest log-loss, whose value's name is in :func:`worst_groups`.
    - ``rewards/margins``: :math:`E[\beta]` times ``margins``; ``rewards/accuracies``: ``accuracy``; TRL's names.
    - ``beta/mean`` of the law. Counts: ``pairs``; ``annotators`` and ``annotators/single_pair``, those with one pair;
      ``groups/<column>``, the values; ``groups/<column>/single_pair``, those with one pair; ``groups/<column>/missing``,
      the pairs without one, which are a value of their own, ``missing``.
    """
    every = ClusterSums(scores, np.zeros(scores.num_pairs, dtype=np.int64), 1).metrics(np.ones((1, 1)))
    result = {name: float(value[0]) for name, value in every.items()}
    # A group whose pairs all have weight 0 has no mean.
    result = {name: value for name, value in result.items() if not (name.startswith("group/") and np.isnan(value))}
    result |= {"rewards/margins": scores.mean_beta * result["margins"], "rewards/accuracies": result["accuracy"]}
    result["beta/mean"] = scores.mean_beta
    result["pairs"] = float(scores.num_pairs)
    if scores.annotator is not None:
        sizes = np.bincount(scores.annotator)
        result |= {"annotators": float(len(sizes)), "annotators/single_pair": float((sizes == 1).sum())}
    worst = worst_groups(scores)
    for (column, measure), row in worst.iterrows():
        result[f"{measure}/worst/{column}"] = float(row["value"])
    for column, labels in scores.groups.items():
        names, sizes = np.unique(labels, return_counts=True)
        result[f"groups/{column}"] = float(len(names))
        result[f"groups/{column}/single_pair"] = float((sizes == 1).sum())
        result[f"groups/{column}/missing"] = float((labels == MISSING).sum())
    return result
