"""Win rate, ties, position bias and length control, with intervals, from verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.evaluation.win_rate.judge import Verdict
from pluralpref.evaluation.win_rate.length_control import fit_length_control, length_feature
from pluralpref.evaluation.win_rate.verdicts import Pair

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; ``None`` where it isn't defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class WinRateSummary:
    """What :func:`summarize` finds.

    :param estimates: by name.
    :param counts: by name.
    :param lengths: over the pairs used: mean characters of the answers, and how often the policy's is longer.
    """

    estimates: Mapping[str, Estimate]
    counts: Mapping[str, int]
    lengths: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def summarize(
    pairs: Sequence[Pair], verdicts: Sequence[Verdict], *, num_bootstrap: int = 1000, seed: int = 0
) -> WinRateSummary:
    """Estimates over the pairs that have a valid verdict in both orders, and counts of everything else.

    A pair's score y is the mean over both orders of 1 where the policy wins, 1/2 for a tie, 0 where the baseline wins.

    - ``win_rate``: the mean score.
    - ``length_controlled_win_rate``: see :func:`~pluralpref.evaluation.win_rate.length_control.fit_length_control`;
      lengths in characters.
    - ``tie_share``: verdicts TIE among all verdicts.
    - ``first_position_share``: verdicts A among A and B; 1/2 without position bias, whatever the policies are, since
      every pair is seen in both orders.
    - ``flip_share``: pairs of which each order has another winner. ``inconsistent_share``: pairs whose two verdicts
      differ in any way, ties included.

    Intervals are 2.5% and 97.5% quantiles of a bootstrap that draws prompts (equal ones together) with replacement. The
    scale of the length feature stays that of all pairs. There is none for fewer than two different prompts.

    :param pairs: of :func:`~pluralpref.evaluation.win_rate.verdicts.make_pairs`.
    :param verdicts: two for each pair that could be judged.
    :param num_bootstrap: draws, at least 1.
    :param seed: of the bootstrap.
    :raises DataError: for a verdict that is missing.
    :raises InferenceError: if no pair has two valid verdicts; the counts are in the message.
    """
    if num_bootstrap < 1 or seed < 0:
        raise ConfigError(f"num_bootstrap={num_bootstrap} must be at least 1 and seed={seed} at least 0")
    found = {(v.prompt_id, v.order): v for v in verdicts}
    judged = [pair for pair in pairs if pair.can_be_judged]
    try:
        both = [
            (pair, found[pair.prompt.prompt_id, "policy_first"], found[pair.prompt.prompt_id, "baseline_first"])
            for pair in judged
        ]
    except KeyError as error:
        raise DataError(f"there is no verdict on prompt_id and order {error.args[0]}") from None
    valid = [triple for triple in both if all(v.verdict != "INVALID" for v in triple[1:])]
    counts = _counts(pairs, judged, both, len(valid))
    if not valid:
        raise InferenceError(
            "no pair has a valid verdict in both orders: "
            + ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            + "; see raw in the file of verdicts"
        )
    table = _Table(valid)
    return WinRateSummary(_estimates(table, num_bootstrap, seed), counts, _lengths([pair for pair, *_ in valid]))


class _Table:
    """What estimates are made of: columns (pairs,)."""

    def __init__(self, valid: Sequence[tuple[Pair, Verdict, Verdict]]) -> None:
        points = {"policy": 1.0, "tie": 0.5, "baseline": 0.0}
        winners = [(str(a.winner), str(b.winner)) for _, a, b in valid]
        said = [(a.verdict, b.verdict) for _, a, b in valid]
        self.score = np.array([(points[a] + points[b]) / 2 for a, b in winners])
        self.ties = np.array([pair.count("TIE") for pair in said], dtype=float)
        self.first = np.array([pair.count("A") for pair in said], dtype=float)
        self.second = np.array([pair.count("B") for pair in said], dtype=float)
        self.flips = np.array([{a, b} == {"policy", "baseline"} for a, b in winners], dtype=float)
        self.inconsistent = np.array([a != b for a, b in winners], dtype=float)
        difference = [len(p.policy.answer or "") - len(p.baseline.answer or "") for p, *_ in valid]
        self.x = length_feature(np.array(difference, dtype=float))
        self.cluster = np.unique([p.cluster for p, *_ in valid], return_inverse=True)[1]
        self.start = fit_length_control(self.x, self.score)

    def estimates(self, w: Array) -> dict[str, float]:
        """All estimates with pairs weighted by ``w``; nan where one isn't defined."""
        total, decided = w.sum(), w @ (self.first + self.second)
        return {
            "win_rate": w @ self.score / total,
            "length_controlled_win_rate": expit(fit_length_control(self.x, self.score, w, self.start)[0]),
            "tie_share": w @ self.ties / (2 * total),
            "first_position_share": w @ self.first / decided if decided > 0 else float("nan"),
            "flip_share": w @ self.flips / total,
            "inconsistent_share": w @ self.inconsistent / total,
        }


def _estimates(table: _Table, num_bootstrap: int, seed: int) -> dict[str, Estimate]:
    whole = table.estimates(np.ones_like(table.score))
    clusters = int(table.cluster.max()) + 1
    draws: dict[str, list[float]] = {name: [] for name in whole}
    if clusters > 1:
        rng = np.random.default_rng(seed)
        for _ in range(num_bootstrap):
            times = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters).astype(float)
            for name, value in table.estimates(times[table.cluster]).items():
                draws[name].append(value)
    return {name: _estimate(value, np.array(draws[name])) for name, value in whole.items()}


def _estimate(value: float, draws: Array) -> Estimate:
    known = draws[np.isfinite(draws)]
    if not np.isfinite(value):
        return Estimate(None, None, None)
    if not len(known):
        return Estimate(float(value), None, None)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def _counts(
    pairs: Sequence[Pair], judged: Sequence[Pair], both: Sequence[tuple[Pair, Verdict, Verdict]], valid: int
) -> dict[str, int]:
    def number(of: Callable[[Pair], bool]) -> int:
        return sum(map(of, pairs))

    return {
        "prompts": len(pairs),
        "different_prompts": len({pair.cluster for pair in pairs}),
        "pairs_used": valid,
        "pairs_with_invalid_verdicts": len(both) - valid,
        "pairs_not_judged_prompt_too_long": len(pairs) - len(judged),
        "verdicts": 2 * len(both),
        "invalid_verdicts": sum(v.verdict == "INVALID" for _, *pair in both for v in pair),
        "empty_answers_policy": number(lambda p: p.policy.is_empty),
        "empty_answers_baseline": number(lambda p: p.baseline.is_empty),
        "cut_answers_policy": number(lambda p: p.policy.finish == "length"),
        "cut_answers_baseline": number(lambda p: p.baseline.finish == "length"),
        "equal_answers": number(lambda p: p.can_be_judged and p.policy.answer == p.baseline.answer),
    }


def _lengths(pairs: Sequence[Pair]) -> dict[str, float]:
    ours = np.array([len(pair.policy.answer or "") for pair in pairs])
    theirs = np.array([len(pair.baseline.answer or "") for pair in pairs])
    return {
        "mean_characters_policy": float(ours.mean()),
        "mean_characters_baseline": float(theirs.mean()),
        "policy_longer_share": float((ours > theirs).mean()),
        "baseline_longer_share": float((ours < theirs).mean()),
    }
