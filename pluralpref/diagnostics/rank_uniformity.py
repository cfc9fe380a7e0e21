r"""Whether ranks are uniform: the ECDF with simultaneous bands.

Of N independent simulations, each with a rank :math:`r` in 0, …, L, the count
:math:`C_i = \#\{r < i\}` is Binomial(N, :math:`z_i`) with :math:`z_i = i/(L+1)` if ranks are uniform, for each
:math:`i = 1, \dots, L`. The counts at different i depend on each other, so pointwise intervals are widened until
all of them hold at once with the wanted probability, by simulating uniform ranks.

Reference: T. Säilynoja, P.-C. Bürkner, A. Vehtari, *Graphical test for discrete uniformity and its applications in
goodness-of-fit evaluation and multiple sample comparison*, Statistics and Computing 32 (2022), arXiv:2103.10522,
section 2 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pluralpref.errors import ConfigError

#: Simulated samples of uniform ranks; p-values are multiples of about 1/10,000.
NULL_SAMPLES = 10_000
_NULL_SEED = 21_031_0522
_BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class _Null:
    """What uniform ranks look like.

    :param coverage: (N + 1, L), the two-sided binomial tail probability of each count at each point.
    :param statistics: (samples,) sorted.
    """

    coverage: np.ndarray
    statistics: np.ndarray

    def statistic(self, counts: np.ndarray) -> np.ndarray:
        return self.coverage[counts, np.arange(self.coverage.shape[1])].min(-1)


def points(num_draws: int) -> np.ndarray:
    """Where the ECDF is evaluated, (num_draws,): i / (num_draws + 1)."""
    return np.arange(1, num_draws + 1) / (num_draws + 1)


def ecdf_difference(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """The ECDF of the ranks minus that of uniform ones, (num_draws,)."""
    return _counts(ranks, num_draws) / len(ranks) - points(num_draws)


def envelope(num_simulations: int, num_draws: int, prob: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit, (num_draws,) each, that all of :func:`ecdf_difference` keeps with probability ``prob``.

    The ranks leave it exactly if their :func:`p_value` is at most ``1 - prob``.

    :raises ConfigError: if ``prob`` is outside (0, 1), or so close to 1 that the simulation can't tell.
    """
    check_prob(prob)
    null = _null(num_simulations, num_draws)
    position = int((1 - prob) * (NULL_SAMPLES + 1))
    if position == 0:
        raise ConfigError(f"prob={prob}: at most {1 - 1 / NULL_SAMPLES} can be told from {NULL_SAMPLES:,} simulations")
    inside = null.coverage >= null.statistics[position - 1]
    lower = inside.argmax(0)
    upper = num_simulations - inside[::-1].argmax(0)
    return lower / num_simulations - points(num_draws), upper / num_simulations - points(num_draws)


def p_value(ranks: np.ndarray, num_draws: int) -> float:
    r"""The probability that uniform ranks deviate as much, by the simultaneous band.

    The statistic is :math:`\gamma = 2 \min_i \min\{P(X_i \le C_i), P(X_i \ge C_i)\}` with
    :math:`X_i \sim \mathrm{Binomial}(N, z_i)`; the p-value is the share of 10,000 simulated samples of uniform ranks
    whose :math:`\gamma` is as small, the observed one counted among them.
    """
    null = _null(len(ranks), num_draws)
    smaller = np.searchsorted(null.statistics, null.statistic(_counts(ranks, num_draws)), side="right")
    return float((1 + smaller) / (1 + NULL_SAMPLES))


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number: each at most ``a`` with probability ``a`` at most, all true hypotheses at once.

    Reference: S. Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Statist. 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
    return adjusted


def describe_deviation(ranks: np.ndarray, num_draws: int) -> str:
    """What ranks that aren't uniform say about the draws, by the larger of their deviations in place and in width."""
    scaled = (ranks + 0.5) / (num_draws + 1)
    # Both in standard errors. The variance is taken about the mean, lest draws far off look too narrow.
    place = (scaled.mean() - 1 / 2) * np.sqrt(12 * len(ranks))
    width = (scaled.var() - 1 / 12) * np.sqrt(180 * len(ranks))
    if max(abs(place), abs(width)) < 2:
        return "draws of another shape"
    if abs(place) >= abs(width):
        return "draws too low" if place > 0 else "draws too high"
    return "draws too narrow" if width > 0 else "draws too wide"


def check_prob(prob: float) -> None:
    """:raises ConfigError: unless ``prob`` lies strictly between 0 and 1."""
    if not 0 < prob < 1:
        raise ConfigError(f"prob={prob}: must lie strictly between 0 and 1")


def _counts(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    return np.bincount(ranks, minlength=num_draws + 1).cumsum()[:num_draws]


@lru_cache(maxsize=8)
def _null(num_simulations: int, num_draws: int) -> _Null:
    from scipy.stats import binom

    counts = np.arange(num_simulations + 1)[:, None]
    at_most = binom.cdf(counts, num_simulations, points(num_draws))
    at_least = binom.sf(counts - 1, num_simulations, points(num_draws))
    null = _Null(2 * np.minimum(at_most, at_least), np.empty(NULL_SAMPLES))
    generator = np.random.default_rng(_NULL_SEED)
    block = max(1, _BLOCK_ELEMENTS // (num_draws + 1))
    shares = np.full(num_draws + 1, 1 / (num_draws + 1))
    for start in range(0, NULL_SAMPLES, block):
        size = min(block, NULL_SAMPLES - start)
        drawn = generator.multinomial(num_simulations, shares, size=size).cumsum(-1)[:, :num_draws]
        null.statistics[start : start + size] = null.statistic(drawn)
    null.statistics.sort()
    return null
