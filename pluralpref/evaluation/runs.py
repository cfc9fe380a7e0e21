"""Several runs on the same held-out pairs: how much better or worse than the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pluralpref.errors import ConfigError
from pluralpref.evaluation.bootstrap import (
    attributes,
    check_resampling,
    choose_metrics,
    clusters_of,
    interval,
    one_metric_each,
    resamples,
)
from pluralpref.evaluation.cluster_sums import ClusterSums
from pluralpref.evaluation.matching import matched
from pluralpref.evaluation.scores import PairScores


def compare_runs(
    runs: Mapping[str, PairScores],
    metrics: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Any:
    """Paired differences of metrics to the first run, with intervals by a bootstrap of clusters.

    Every resample draws the same people for all runs, and the difference is taken inside of it: what makes a pair hard
    for all runs cancels. Pairs are matched by their keys (``pair_scores(key=...)``, the table's column ``row``), or by
    the rows' order where no run has keys. Margins are compared as they are, in beta-free nats: runs whose E[beta]
    differs may differ in them by scale alone, which ``rewards/margins`` takes out.

    :param runs: scores by name, at least two; the first is the one compared with.
    :param metrics: as for :func:`bootstrap_intervals`; default all that every run has.
    :param level: as there, like ``num_resamples`` and ``seed``.
    :returns: a pandas ``DataFrame`` with index (run, metric): ``value``, ``reference`` (the first run's), ``difference``
        (value - reference: below 0 is better for log-loss and Brier score, above 0 for margins and accuracy), and ``low``,
        ``high``, ``standard_error``, ``clusters``, ``resamples`` of the difference. ``attrs`` as there, and ``reference``
        and ``matched_by`` (``"key"`` or ``"order"``).
    :raises ConfigError: for fewer than two runs, numbers out of range and unknown metrics.
    :raises DataError: if the runs aren't on the same pairs; the message names runs, pairs and what differs.
    """
    if len(runs) < 2:
        raise ConfigError(f"a comparison needs at least two runs, got {len(runs)}")
    check_resampling(level, num_resamples)
    aligned, matched_by = matched(runs)
    code, count, cluster = clusters_of(list(aligned.values()))
    sums = {name: ClusterSums(scores, code, count) for name, scores in aligned.items()}
    values = {name: one_metric_each(each, count) for name, each in sums.items()}
    first, *others = runs
    there = {metric: None for metric in values[first] if all(metric in values[name] for name in others)}
    chosen = choose_metrics(metrics, there)
    drawn: dict[tuple[str, str], list[np.ndarray]] = {(name, metric): [] for name in others for metric in chosen}
    for counts in resamples(count, num_resamples, seed):
        reference = sums[first].metrics(counts)
        for name in others:
            found = sums[name].metrics(counts)
            for metric in chosen:
                drawn[name, metric].append(found[metric] - reference[metric])
    known = sums[first].clusters()
    rows = [
        {
            "value": values[name][metric],
            "reference": values[first][metric],
            "difference": values[name][metric] - values[first][metric],
            **interval(np.concatenate(differences), known[metric], level),
        }
        for (name, metric), differences in drawn.items()
    ]
    table = pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(list(drawn), names=["run", "metric"]))
    table.attrs.update(attributes(level, cluster, count, num_resamples, seed))
    table.attrs.update({"reference": first, "matched_by": matched_by})
    return table
