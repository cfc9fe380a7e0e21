"""Whether the draws can be trusted, and whether the data say anything about the spread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pluralpref.errors import IdentificationWarning, NumericsWarning
from pluralpref.inference.arviz_data import convergence
from pluralpref.inference.choices import Choices
from pluralpref.inference.posterior_engine import EngineResult

#: The limits of Vehtari et al., *Bayesian Analysis* 16 (2021), arXiv:1903.08008.
MAX_R_HAT = 1.01
MIN_ESS = 400.0
_REMEDIES = {
    "laplace": "raise num_proposals and num_samples",
    "nuts": "raise num_warmup and num_samples",
    "svi": "raise num_samples",
}
#: A posterior whose standard deviation is more than this share of the prior's has learned next to nothing.
MAX_SD_RATIO = 0.8
#: With one choice a person the spread shows only in how the choice probability bends along the margin.
MIN_DISTINCT_MARGINS = 20


@dataclass(frozen=True)
class Convergence:
    """The worst values over the parameters.

    :param r_hat: rank-normalised split R-hat, by parameter; empty for independent draws.
    :param ess_bulk: effective sample size in the bulk, by parameter.
    :param ess_tail: the same in the tails.
    :param divergences: the number of divergent transitions.
    :param other: what else speaks against the draws, such as a guide that doesn't fit.
    """

    r_hat: Mapping[str, float]
    ess_bulk: Mapping[str, float]
    ess_tail: Mapping[str, float]
    divergences: int
    other: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What is wrong, one phrase each; empty if nothing is."""
        found = []
        # NaN (a parameter that never moved) must count as bad, hence "not <=".
        bad = {name: value for name, value in self.r_hat.items() if not value <= MAX_R_HAT}
        if bad:
            found.append("r_hat " + ", ".join(f"{value:.3f} ({name})" for name, value in bad.items()))
        few = {name: value for name, value in self.ess_bulk.items() if not value >= MIN_ESS}
        if few:
            found.append("ess_bulk " + ", ".join(f"{value:.0f} ({name})" for name, value in few.items()))
        if self.divergences:
            found.append(f"{self.divergences} divergent transition{'s' if self.divergences > 1 else ''}")
        found += self.other
        return found

    @property
    def converged(self) -> bool:
        """Whether every limit holds."""
        return not self.problems


def measure_convergence(
    draws: Mapping[str, np.ndarray], divergences: int, facts: Mapping[str, Any], other: Sequence[str] = ()
) -> Convergence:
    """The statistics, without a warning.

    :param draws: (chain, draw, ...) by parameter.
    :param facts: the method, and what it says of its draws.
    """
    found = Convergence(**convergence(draws), divergences=divergences, other=tuple(other))
    if facts.get("method") == "nuts":
        return found
    # Independent draws have no chains to disagree; resampled ones repeat each other, which autocorrelations don't show.
    count = next(iter(draws.values())).size // max(1, next(iter(draws.values()))[0, 0].size)
    effective = min(float(facts.get("importance_ess", count)), float(count))
    ess = dict.fromkeys(found.ess_bulk, effective)
    return replace(found, r_hat={}, ess_bulk=ess, ess_tail=dict(ess))


def check_convergence(
    draws: Mapping[str, np.ndarray], divergences: int, method: str, result: EngineResult
) -> Convergence:
    """Compute and, if a limit is broken, warn.

    :param draws: (chain, draw, ...) by parameter.
    """
    found = measure_convergence(draws, divergences, {"method": method, **result.facts}, result.problems)
    if found.problems:
        remedies = []
        if any(problem.startswith(("r_hat", "ess")) for problem in found.problems):
            remedies.append(_REMEDIES[method])
        if divergences:
            remedies.append("raise target_accept_prob (0.95), or give tighter priors")
        if found.other:
            remedies.append("raise num_steps, try another guide, or use method='laplace' or 'nuts'")
        warnings.warn(
            f"the posterior draws may not be reliable: {'; '.join(found.problems)} (wanted: r_hat <= {MAX_R_HAT}, "
            f"ess_bulk >= {MIN_ESS:.0f}, no divergence). To do: {'; '.join(remedies)}",
            NumericsWarning,
            stacklevel=4,
        )
    return found


def check_identification(choices: Choices, posterior_cv: np.ndarray, prior_cv: np.ndarray, fixed_cv: bool) -> list[str]:
    """What speaks against reading the posterior of the spread as a finding; warns of each.

    :param posterior_cv: draws of beta's coefficient of variation, any shape.
    :param prior_cv: the same under the prior.
    :param fixed_cv: whether the family has no spread to infer.
    """
    if fixed_cv:
        return []
    reasons = []
    # Half the width of the central 68 %: a standard deviation that the tails of a heavy prior can't inflate.
    name, width, prior_width = "beta_cv", _half_width(posterior_cv), _half_width(prior_cv)
    if not np.isfinite(width) or not np.isfinite(prior_width):
        name = "beta_cv / (1 + beta_cv) (beta has no variance under some draws)"
        width, prior_width = _half_width(_bounded(posterior_cv)), _half_width(_bounded(prior_cv))
    ratio = width / max(prior_width, 1e-300)
    if name != "beta_cv" and prior_width == 0:
        reasons.append(
            "beta has no variance under the prior: whether the choices say anything about heterogeneity can't be seen from "
            "beta_cv; compare the posteriors of the parameters with their priors"
        )
    elif ratio > MAX_SD_RATIO:
        reasons.append(
            f"the posterior of {name} is {ratio:.0%} as wide as its prior: the choices say next to nothing about "
            "heterogeneity; more pairs, or several choices for each annotator (annotator=...), would"
        )
    distinct = len(np.unique(np.abs(choices.margins.numpy())))
    if not choices.repeated and distinct < MIN_DISTINCT_MARGINS:
        reasons.append(
            f"one choice for each person and {distinct} distinct |margin| (fewer than {MIN_DISTINCT_MARGINS}): how the "
            "choice probability bends along the margin, which is all that shows the spread then, is hardly seen; "
            "beta_cv rests on the prior. Give annotator=... with repeated choices"
        )
    for reason in reasons:
        warnings.warn(reason, IdentificationWarning, stacklevel=4)
    return reasons


def _half_width(draws: np.ndarray) -> float:
    draws = np.asarray(draws, dtype=np.float64)
    if np.isnan(draws).any():
        return math.nan
    # By single draws: between two that are infinite there is nothing to interpolate.
    low, high = np.quantile(draws, [0.16, 0.84], method="nearest" if np.isinf(draws).any() else "linear")
    return float(high - low) / 2 if np.isfinite(high) and np.isfinite(low) else math.nan


def _bounded(cv: np.ndarray) -> np.ndarray:
    """The cv mapped to (-1, 1), with 1 for a law without a variance (whose cv is nan where it has no mean either)."""
    cv = np.asarray(cv, dtype=np.float64)
    finite = np.isfinite(cv)
    safe = np.where(finite, cv, 0.0)
    return np.where(finite, safe / (1 + np.abs(safe)), 1.0)
