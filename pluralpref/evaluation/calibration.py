"""Do choices happen as often as predicted: by the mixed law, and with the mean strength in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch.distributions import Distribution

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.cluster_sums import pair_values
from pluralpref.evaluation.scores import PairScores, pair_scores
from pluralpref.inference.marginal.dispatch import Method
from pluralpref.models import StrengthModel

#: The predictions side by side, E[sigma(beta h)] and sigma(E[beta] h), and how columns and metrics of each are called.
_LAWS = {"mixed": "", "plug_in": "/plug_in"}


def reliability_curve(scores: PairScores, bins: int = 10) -> Any:
    r"""Predicted against observed choice probabilities, in bins of equal weight by :math:`|h|`.

    A pair whose margin is h predicts that the answer with the higher margin is preferred with probability
    :math:`E[\sigma(\beta |h|)]`, or :math:`\sigma(E[\beta] |h|)` with the mean plugged in; observed is how often it was,
    soft labels counted in part. For strengths above 0 both rise with :math:`|h|`, so they share their bins. Pairs of
    the same :math:`|h|` are never parted. Ties are left out and counted: they predict nothing.

    :param bins: the number of bins, at least 1; those without pairs are left out.
    :returns: a pandas ``DataFrame``, one row for each bin: ``margin`` (mean :math:`|h|`), ``count``, ``weight``,
        ``predicted`` by the mixed law, ``predicted/plug_in`` (not there if :math:`E[\beta]` isn't finite), ``observed``,
        ``standard_error`` of the latter (Agresti–Coull with the effective number :math:`(\sum w)^2 / \sum w^2`; pairs
        are taken as independent).
        ``attrs["ties"]`` is the number of pairs left out.
    :raises DataError: if every margin with weight is 0.
    :raises ConfigError: for fewer bins than 1.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: must be at least 1")
    kept = (scores.margins != 0) & (scores.weight > 0)
    if not kept.any():
        raise DataError("every margin is 0: a tie predicts nothing, so there is nothing to calibrate")
    part = scores.take(np.flatnonzero(kept))
    w, magnitude = part.weight, np.abs(part.margins)
    above = part.margins > 0
    predicted = {"predicted": np.where(above, part.probability, 1 - part.probability)}
    if scores.has_plug_in:
        predicted["predicted/plug_in"] = np.where(above, part.plug_in, 1 - part.plug_in)
    code = _bins(magnitude, w, bins)
    count = np.bincount(code)
    there = count > 0

    def mean(x: np.ndarray) -> np.ndarray:
        return np.bincount(code, w * x)[there] / np.bincount(code, w)[there]

    table = pd.DataFrame({"margin": mean(magnitude), "count": count[there], "weight": np.bincount(code, w)[there]})
    for name, values in predicted.items():
        table[name] = mean(values)
    table["observed"] = mean(part.win)
    effective = table["weight"] ** 2 / np.bincount(code, w * w)[there]
    smoothed = (table["observed"] * effective + 2) / (effective + 4)
    table["standard_error"] = np.sqrt(smoothed * (1 - smoothed) / (effective + 4))
    table.index.name = "bin"
    table.attrs["ties"] = int((scores.margins == 0).sum())
    return table


def calibration_scores(scores: PairScores, bins: int = 10) -> Any:
    r"""Log-loss, Brier score and expected calibration error of both predictions.

    - ``log_loss``, nats a pair, and ``brier``, the mean of :math:`(y - p)^2` (expected over a soft label): of all pairs; a
      tie contributes :math:`\log 2` and 1/4 whatever the law.
    - ``ece``: :math:`\sum_b W_b |o_b - p_b| / \sum_b W_b` over the bins of :func:`reliability_curve`, without ties, with
      the bins' weights :math:`W_b`, observed shares and mean predictions. It is above 0 by chance alone, by about
      :math:`0.4 \sqrt{B / n}` of n pairs in B bins at probabilities near 1/2.
    - ``largest_error``: the largest :math:`|o_b - p_b|`.

    :returns: a pandas ``DataFrame`` with rows ``mixed`` and, where :math:`E[\beta]` is finite, ``plug_in``.
    :raises DataError: if every margin with weight is 0.

    References: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78
    (1950); M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015.
    """
    curve = reliability_curve(scores, bins)
    values = pair_values(scores)
    share = curve["weight"] / curve["weight"].sum()
    rows = {}
    for law, suffix in _LAWS.items():
        if "predicted" + suffix in curve:
            error = (curve["observed"] - curve["predicted" + suffix]).abs()
            rows[law] = {
                "log_loss": float(np.average(values["log_loss" + suffix], weights=scores.weight)),
                "brier": float(np.average(values["brier" + suffix], weights=scores.weight)),
                "ece": float((share * error).sum()),
                "largest_error": float(error.max()),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("law")


def calibration_table(
    law: Distribution | StrengthModel,
    margins: Any,
    preferred: Any = None,
    *,
    bins: int = 10,
    method: str | Method = "auto",
) -> dict[str, np.ndarray]:
    r"""The :func:`reliability_curve` of the mixed law as arrays, of pairs that all weigh the same.

    :param law: the law of beta, or a strength model.
    :param margins: (pairs,) nats, chosen minus rejected.
    :param preferred: (pairs,) in [0, 1], default 1.
    :param bins: the number of bins, at least 1; fewer where there are fewer pairs.
    :returns: arrays (bins,): ``predicted``, ``observed``, ``standard_error`` of the latter (Agresti–Coull), ``count``,
        ``margin`` (mean :math:`|h|`).
    :raises DataError: for bad margins, or if every pair is a tie.
    """
    curve = reliability_curve(pair_scores(law, margins, preferred=preferred, method=method), bins)
    columns = ("predicted", "observed", "standard_error", "count", "margin")
    return {name: curve[name].to_numpy(dtype=np.float64) for name in columns}


def _bins(magnitude: np.ndarray, weight: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each pair by where the middle of its value's weight lies in the whole; depends on no row's place."""
    _, code = np.unique(magnitude, return_inverse=True)
    mass = np.bincount(code, weight)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.minimum((middle * bins).astype(np.int64), bins - 1)[code]
