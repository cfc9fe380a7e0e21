"""Intervals of metrics by resampling people, not pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.cluster_sums import ClusterSums
from pluralpref.evaluation.labels import ranks
from pluralpref.evaluation.scores import PairScores

#: How the ends are found, as the tables' ``attrs["interval"]`` says it.
INTERVAL = "expanded percentile bootstrap"
_MOST_VALUES = 2**22


def bootstrap_intervals(
    scores: PairScores,
    metrics: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Any:
    r"""Intervals of the metrics of held-out pairs, by a bootstrap of clusters.

    Clusters are drawn with replacement, as many as there are, each with all of its pairs: those of
    ``pair_scores(cluster=...)``, otherwise annotators, otherwise single pairs. One person's choices aren't independent, and
    intervals that resample pairs would be too short. A person who is drawn twice counts as two in the macro
    metrics; groups are a fixed list, of which a resample holds those that were drawn. (Where the pairs of one annotator
    lie in several clusters, annotators are a fixed list too.) Clusters whose pairs all have weight 0 aren't drawn.

    The interval is the percentile interval, with its tails moved out from :math:`(1 - \gamma)/2` to
    :math:`\Phi(\sqrt{C/(C-1)}\, t_{(1-\gamma)/2,\,C-1})` for the C clusters that a metric rests on: the percentile
    interval of few clusters is too short, by about what a normal interval with the biased variance is (Hesterberg 2015).
    It has no name for the worst group: its resampled values are those of whichever group is worst by chance, lower than the
    group's own on average, and don't cover.

    :param scores: see :func:`pair_scores`.
    :param metrics: names as in :func:`metrics_of`; default all that are means.
    :param level: :math:`\gamma` in (0, 1).
    :param num_resamples: at least 100.
    :param seed: the result depends on nothing else, the order of the rows included; global generators are left alone.
    :returns: a pandas ``DataFrame`` with the metrics as index: ``value``, ``low``, ``high``, ``standard_error``,
        ``clusters`` that the metric rests on, ``resamples`` in which it had pairs (the others are left out of its interval).
        With one cluster the interval is NaN: nothing is known of how clusters differ. ``attrs``: ``interval``, ``level``,
        ``cluster``, ``num_clusters``, ``num_resamples``, ``seed``.
    :raises ConfigError: for numbers out of range and unknown metrics.
    :raises DataError: for fewer than two clusters.

    References: A. C. Davison and D. V. Hinkley, *Bootstrap Methods and their Application*, 1997, chapters 2, 3.8, 5.3;
    T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015).
    """
    check_resampling(level, num_resamples)
    code, count, name = clusters_of([scores])
    sums = ClusterSums(scores, code, count)
    value = one_metric_each(sums, count)
    chosen = choose_metrics(metrics, value)
    drawn: dict[str, list[np.ndarray]] = {metric: [] for metric in chosen}
    for counts in resamples(count, num_resamples, seed):
        found = sums.metrics(counts)
        for metric in chosen:
            drawn[metric].append(found[metric])
    known = sums.clusters()
    rows = {
        metric: {"value": value[metric], **interval(np.concatenate(drawn[metric]), known[metric], level)}
        for metric in chosen
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")
    table.attrs.update(attributes(level, name, count, num_resamples, seed))
    return table


def attributes(level: float, cluster: str, num_clusters: int, num_resamples: int, seed: int) -> dict[str, Any]:
    """How a table of intervals was made."""
    return {
        "interval": INTERVAL,
        "level": level,
        "cluster": cluster,
        "num_clusters": num_clusters,
        "num_resamples": num_resamples,
        "seed": seed,
    }


def one_metric_each(sums: ClusterSums, count: int) -> dict[str, float]:
    """The metrics of the data as they are; those without a mean (a group of weight 0) are left out."""
    found = {name: float(row[0]) for name, row in sums.metrics(np.ones((count, 1))).items()}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def choose_metrics(metrics: Sequence[str] | None, there: Mapping[str, Any]) -> list[str]:
    """The names asked for.

    :raises ConfigError: for one that has no interval.
    """
    if metrics is None:
        return list(there)
    for name in metrics:
        if "/worst/" in name:
            raise ConfigError(f"{name}: no interval of a worst group would cover; ask for the group's own metric")
        if name not in there:
            raise ConfigError(f"no interval of a metric {name!r}; there are {', '.join(there)}")
    return list(metrics)


def clusters_of(runs: Sequence[PairScores]) -> tuple[np.ndarray, int, str]:
    """(each pair's cluster, -1 for weight 0 everywhere; how many; what they are), numbered whatever the rows' order.

    :param runs: scores of the same pairs, row by row.
    :raises DataError: for fewer than two clusters.
    """
    first = runs[0]
    if first.cluster is not None:
        labels, name = list(first.cluster), first.cluster_name
    elif first.annotator is not None:
        labels, name = [first.annotator_names[code] for code in first.annotator], "annotator"
    else:
        labels, name = list(_by_content(runs)), "pair"
    number = ranks(label for label, weight in zip(labels, first.weight, strict=True) if weight > 0)
    if len(number) < 2:
        raise DataError(f"intervals need at least two clusters (here: {name}) with weight, and there is {len(number)}")
    return np.array([number.get(label, -1) for label in labels]), len(number), name


def _by_content(runs: Sequence[PairScores]) -> np.ndarray:
    """The place of each pair in an order by what is known of it; pairs that are alike in all of it may change places."""
    first = runs[0]
    keys = [*first.groups.values(), first.weight, first.preferred]
    for scores in runs:
        keys += [scores.log_loss, scores.margins]
    place = np.empty(first.num_pairs, dtype=np.int64)
    place[np.lexsort(keys)] = np.arange(first.num_pairs)
    return place


def resamples(count: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, in blocks of (clusters, resamples)."""
    generator = np.random.default_rng(seed)
    done = 0
    while done < num_resamples:
        size = min(num_resamples - done, max(1, _MOST_VALUES // count))
        drawn = generator.integers(count, size=(count, size)) * size + np.arange(size)
        yield np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)
        done += size


def interval(values: np.ndarray, clusters: int, level: float) -> dict[str, float | int]:
    """Ends, standard error and counts from the resampled values, of which NaN are left out."""
    known = values[~np.isnan(values)]
    if clusters < 2 or len(known) < 2:
        low = high = error = float("nan")
    else:
        tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf((1 - level) / 2, clusters - 1))
        low, high = (float(end) for end in np.quantile(known, [tail, 1 - tail]))
        error = float(known.std(ddof=1))
    return {"low": low, "high": high, "standard_error": error, "clusters": clusters, "resamples": len(known)}


def check_resampling(level: float, num_resamples: int) -> None:
    """Numbers that make sense.

    :raises ConfigError: if not.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: must lie between 0 and 1, such as 0.95")
    if num_resamples < 100:
        raise ConfigError(f"num_resamples={num_resamples}: at least 100 are needed for the ends of an interval")
