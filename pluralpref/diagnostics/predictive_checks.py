r"""Posterior predictive checks of choices: whether data that the model would make look like the data that it was given.

A statistic T of the observed choices :math:`y` is compared with its values on replicated choices

.. math:: y^{rep} \sim p(y^{rep} \mid \beta^{rep}), \qquad \theta \sim p(\theta \mid y).

With ``people="new"``, :math:`\beta^{rep}_a \sim p(\beta \mid \theta)` is a new strength for every annotator (for every pair
where annotators are unknown): only the population's parameters have seen the choices. These are the *mixed* replicates of
[2], which [3] takes for an approximation of cross-validation; they check the law of the population. With
``people="same"``, :math:`\beta^{rep}_a \sim p(\beta_a \mid y_a, \theta)`: the posterior predictive replicates of [1]. Each
strength has then seen the choices that it is compared with, so a wrong law of the population shows less.

References
[1] A. Gelman, J. Carlin, H. Stern, D. Dunson, A. Vehtari, D. Rubin, *Bayesian Data Analysis*, 3rd ed., 2013, chapter 6.
[2] A. Gelman, X.-L. Meng, H. Stern, "Posterior predictive assessment of model fitness via realized discrepancies",
    Statistica Sinica 6 (1996), 733-807.
[3] E. C. Marshall and D. J. Spiegelhalter, "Approximate cross-validatory predictive checks in disease mapping models",
    Statistics in Medicine 22 (2003), 1649-1660, doi:10.1002/sim.1403.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from pluralpref._version import __version__
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.arviz_data import make_inference_data, plain_labels
from pluralpref.inference.choices import Choices
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior_panel import conditional_strengths
from pluralpref.inference.posterior_predict import draw_choices
from pluralpref.inference.posterior_problem import PosteriorProblem

if TYPE_CHECKING:
    from arviz import InferenceData

    from pluralpref.inference.posterior_draws import PosteriorDraws

#: Replicated choices (draws times pairs) at a time; some 20 bytes each.
_BLOCK_ELEMENTS = 4_000_000
#: Sums of the same weights in another order differ by rounding, and count as equal.
_ROUNDING = 1e-9
_TAILS = (0.025, 0.975)
_QUANTILES = (0.1, 0.5, 0.9)
_AGREEMENT = ("agreement_sd", "agreement_q10", "agreement_q50", "agreement_q90", "agreement_below_half")
#: Dimensions and, by how they begin, variables; a column may have such a name as well.
_TAKEN = ("chain", "draw", "annotator")
_TAKEN_BEGINNINGS = ("accuracy", "agreement")
_MOST_NAMED = 10


def predictive_checks(
    posterior: PosteriorDraws,
    *,
    by: str | Sequence[str] | None = None,
    people: str = "new",
    num_draws: int = 500,
    seed: int = 0,
) -> PredictiveChecks:
    r"""Compare statistics of the choices with those of choices that the fitted model makes.

    With :math:`s_i` the margin's sign, 1 where a choice agrees with it and 1/2 at a tie :math:`h_i = 0`:

    .. math:: a_i = 1/2 + s_i (y_i - 1/2), \qquad
              \text{share}(I) = \sum_{i \in I} w_i a_i \Big/ \sum_{i \in I} w_i .

    ``accuracy`` is the share of all choices, ``accuracy[column=label]`` that of one group, and the agreement of an annotator
    that of their choices. Of the agreements' distribution over annotators, each of whom counts once: ``agreement_sd`` (0
    only if all agree equally often), ``agreement_q10``, ``_q50``, ``_q90``, its quantiles, and ``agreement_below_half``,
    the share of annotators who agree less often than not. A pair of weight 0 counts for nothing. A weight makes a choice
    count more; it is replicated as the one choice that it is.

    ::

        checks = predictive_checks(posterior, by="country")
        print(*checks.sentences, sep="\n")
        checks.table()

    The global generators and Pyro's parameter store are left as they were.

    :param posterior: with its data: fresh from :func:`~pluralpref.inference.fit_posterior`, or loaded with them.
    :param by: the group columns whose groups' accuracy is compared; all by default, ``()`` for none. They needn't be read
        by the strength: a group that it doesn't know of shows here if it differs.
    :param people: ``"new"`` strengths from the population law for every annotator, or pair, which checks that law; or those
        of the ``"same"`` annotators given their choices. Groups' effects are as they were inferred either way.
    :param num_draws: at most so many (evenly thinned) draws of the parameters, with one replication each.
    :param seed: of the replications.
    :raises ConfigError: for an unknown column, a setting out of range, ``people="same"`` without annotators, or a posterior
        that was loaded without its data.
    :raises UnsupportedError: for soft labels.

    Source: [1], [2] and [3] of :mod:`pluralpref.diagnostics.predictive_checks`.
    """
    _check_integer("num_draws", num_draws, 2)
    return PredictiveChecks.from_draws(posterior.problem, posterior.thinned(num_draws), by=by, people=people, seed=seed)


@dataclass(frozen=True)
class Statistic:
    """One statistic, or the same one of several groups or annotators.

    :param observed: () or (labels,).
    :param replicated: (draws,) or (draws, labels).
    :param count: the pairs, or annotators, behind it; shaped as ``observed``.
    :param unit: ``"pairs"`` or ``"annotators"``, which ``count`` counts.
    :param dimension: the name of the labels' dimension; ``None`` where there is none.
    """

    observed: np.ndarray
    replicated: np.ndarray
    count: np.ndarray
    unit: str = "pairs"
    dimension: str | None = None


@dataclass(frozen=True, repr=False)
class PredictiveChecks:
    """What :func:`predictive_checks` gives back.

    :param statistics: by name: ``accuracy``; ``accuracy_by_<column>``; with annotators ``agreement`` of each of them
        (float32), ``agreement_sd``, ``agreement_q10``, ``_q50``, ``_q90``, ``agreement_below_half``.
    :param labels: by dimension: a group column's name (``<column>_of_group`` where that is taken), ``annotator``.
    :param people: ``"new"`` or ``"same"``.
    :param seed: of the replications.
    :param remarks: what was left out.
    """

    statistics: Mapping[str, Statistic]
    labels: Mapping[str, Sequence[Any]]
    people: str
    seed: int
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_draws(
        cls,
        problem: PosteriorProblem,
        draws: Mapping[str, Tensor],
        *,
        by: str | Sequence[str] | None = None,
        people: str = "new",
        seed: int = 0,
    ) -> PredictiveChecks:
        """:func:`predictive_checks` with draws of a model's parameters, all of them.

        :param draws: (S, ...) by parameter name.
        """
        data = problem.choices
        columns = _columns(data, by)
        if people not in ("new", "same"):
            raise ConfigError(f"people={people!r}: choose 'new' (strengths from the population law) or 'same'")
        if people == "same" and not problem.is_panel:
            raise ConfigError(
                "people='same' needs annotators, whose choices tell their strengths: fit with annotator=..."
            )
        total = next(iter(draws.values())).shape[0]
        _check_integer("the number of draws", total, 2)
        _check_integer("seed", seed, 0)
        soft = ((data.preferred > 0) & (data.preferred < 1)).nonzero()[:, 0].tolist()
        if soft:
            raise UnsupportedError(
                f"preferred: {len(soft)} of {data.num_pairs} labels are soft (the first in row {soft[0]}: "
                f"{data.preferred[soft[0]].item():g}), but replicated choices are 0 or 1: give every vote a row of its own, "
                "or leave these rows out, and fit again"
            )
        measure = _Measure(data, columns)
        observed = measure(data.preferred.numpy()[None])
        block = max(1, _BLOCK_ELEMENTS // data.num_pairs)
        parts = []
        with borrowed_state(child_seed(seed, 5)):
            for start in range(0, total, block):
                some = {name: value[start : start + block] for name, value in draws.items()}
                beta = conditional_strengths(problem, some) if people == "same" else None
                parts.append(measure(draw_choices(problem, some, beta)))
        statistics = {
            name: Statistic(value[0], np.concatenate([part[name] for part in parts]), *measure.facts[name])
            for name, value in observed.items()
        }
        return cls(statistics, measure.labels, people, seed, tuple(measure.remarks))

    @property
    def num_draws(self) -> int:
        """The number of replications."""
        return self.statistics["accuracy"].replicated.shape[0]

    def table(self) -> Any:
        r"""One row for each statistic, such as ``accuracy``, ``accuracy[country=NL]``, ``agreement_sd``.

        Columns: ``observed``; ``predicted``, the mean over the replications; ``low`` and ``high``, which leave out 2.5 % of
        them on either side; ``p_value``, two-sided:
        :math:`\min(1, 2 \min(P(T^{rep} \ge T), P(T^{rep} \le T)))` with ties counted half, so that 0 means less than one
        replication; ``count`` and ``unit``: how many pairs or annotators it is of. The p-value of a correct model is rather
        too large than uniform, since the parameters have seen the choices: [1] of
        :mod:`pluralpref.diagnostics.predictive_checks`.

        :returns: a pandas ``DataFrame``.
        """
        import pandas as pd

        rows = {}
        for name, observed, replicated, count, unit in self._rows():
            low, high = np.quantile(replicated, _TAILS)
            below, above = (replicated < observed - _ROUNDING).mean(), (replicated > observed + _ROUNDING).mean()
            rows[name] = {
                "observed": observed,
                "predicted": replicated.mean(),
                "low": low,
                "high": high,
                # Half of what is neither below nor above belongs to either side.
                "p_value": 1 - abs(below - above),
                "count": count,
                "unit": unit,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("statistic")

    @property
    def sentences(self) -> tuple[str, ...]:
        """Which statistics the model reproduces and which it doesn't, in words."""
        table = self.table()
        outside = _outside(table)
        inside = [str(name) for name in table.index if name not in outside]
        said = [
            f"{len(inside)} of {len(table)} statistics lie within their 95 % intervals, of {self.num_draws} replications with "
            f"{'the same' if self.people == 'same' else 'new'} people{': ' + _listed(inside) if inside else ''}."
        ]
        for name, side in list(outside.items())[:_MOST_NAMED]:
            observed, predicted, low, high = table.loc[name, ["observed", "predicted", "low", "high"]]
            meaning = ""
            if name == "agreement_sd":
                meaning = f": annotators differ {'more' if side == 'above' else 'less'} than the model says"
            said.append(
                f"The model doesn't reproduce {name}: {observed:.3g} was observed, {side} the predicted {predicted:.3g} "
                f"(95 %: {low:.3g} to {high:.3g}){meaning}."
            )
        if len(outside) > _MOST_NAMED:
            said.append(f"Nor does it reproduce {_listed(list(outside)[_MOST_NAMED:])}.")
        said.append(
            f"About 5 % of {len(table)} statistics ({0.05 * len(table):.2g}) fall outside by chance where the model is right."
        )
        if self.people == "same":
            said.append("The people's strengths come from the same choices: replications with new people are stricter.")
        return (*said, *self.remarks)

    def to_arviz(self) -> InferenceData:
        """The replicated statistics as ``posterior_predictive``, the observed ones as ``observed_data``.

        Dimensions: one ``chain``, ``draw``, and those of :attr:`labels`.
        """
        data = make_inference_data(
            {
                "posterior_predictive": {name: part.replicated[None] for name, part in self.statistics.items()},
                "observed_data": {name: part.observed for name, part in self.statistics.items()},
            },
            dims={name: [part.dimension] for name, part in self.statistics.items() if part.dimension is not None},
            coords={name: np.array(values) for name, values in self.labels.items()},
            attrs={"created_with": f"pluralpref {__version__}", "people": self.people, "seed": self.seed},
        )
        observed = data["observed_data"]
        # A single number gets a dimension of length 1 with a made-up name.
        made_up = [name for name in observed.dims if name not in self.labels]
        data["observed_data"] = observed.squeeze(made_up, drop=True)
        return data

    def __repr__(self) -> str:
        table = self.table()
        outside = _outside(table)
        found = f"outside: {_listed(list(outside))}" if outside else "none outside"
        return (
            f"PredictiveChecks({self.num_draws} replications with {self.people} people, {len(table)} statistics: "
            f"{found} of their 95 % intervals)"
        )

    def _rows(self) -> Iterator[tuple[str, float, np.ndarray, int, str]]:
        """(name, observed, replicated (draws,), count, unit) of each number; annotators' own agreement isn't among them."""
        for name, part in self.statistics.items():
            if name == "agreement":
                continue
            if part.dimension is None:
                yield name, float(part.observed), part.replicated, int(part.count), part.unit
                continue
            column = name.removeprefix("accuracy_by_")
            for k, label in enumerate(self.labels[part.dimension]):
                row = f"accuracy[{column}={label}]"
                yield row, float(part.observed[k]), part.replicated[:, k], int(part.count[k]), part.unit


class _Measure:
    """The statistics of choices, observed or replicated.

    All shares are one sparse matrix of signed weights, with a row for each set of pairs. It isn't normalised, so that sums
    of whole weights are exact and ties are found.
    """

    def __init__(self, data: Choices, columns: Sequence[str]) -> None:
        weight = np.ones(data.num_pairs) if data.weight is None else data.weight.numpy()
        self.remarks: list[str] = []
        self.labels: dict[str, Sequence[Any]] = {}
        #: (count, unit, dimension) of each statistic.
        self.facts: dict[str, tuple[np.ndarray, str, str | None]] = {}
        self._parts: dict[str, slice] = {}
        used = np.flatnonzero(weight > 0)
        sets: list[np.ndarray] = []
        end = 0

        def add(name: str, codes: np.ndarray, dimension: str | None) -> np.ndarray:
            nonlocal end
            present, codes = np.unique(codes, return_inverse=True)
            count = np.bincount(codes)
            sets.append(end + codes)
            self._parts[name] = slice(end, end := end + len(present))
            self.facts[name] = (count if dimension else count[0], "pairs", dimension)
            return present

        add("accuracy", np.zeros(len(used), dtype=np.int64), None)
        for column in columns:
            taken = column in _TAKEN or column.startswith(_TAKEN_BEGINNINGS)
            dimension = f"{column}_of_group" if taken else column
            labels = add(f"accuracy_by_{column}", data.groups[column][used], dimension)
            self.labels[dimension] = labels.tolist()
            self._remark(f"groups of {column}", len(np.unique(data.groups[column])) - len(labels))
        if data.annotator is not None:
            people = add("agreement", data.annotator.numpy()[used], "annotator")
            self.labels["annotator"] = plain_labels([data.annotator_names[code] for code in people])
            self._remark("annotators", data.num_annotators - len(people))
            for name in _AGREEMENT:
                self.facts[name] = (np.array(len(people)), "annotators", None)
        place = (np.concatenate(sets), np.tile(used, len(sets)))
        sums = csr_array((np.tile(weight[used], len(sets)), place), shape=(end, data.num_pairs))
        self._signed = sums * np.sign(data.margins.numpy())
        self._total = sums.sum(1)
        self._start = (self._total - self._signed.sum(1)) / 2

    def __call__(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Statistics (S, ...) by name of choices (S, pairs), each 0 or 1."""
        shares = (self._start + (self._signed @ chosen.T.astype(np.float64)).T) / self._total
        found = {name: shares[:, part] for name, part in self._parts.items()}
        found["accuracy"] = found["accuracy"][:, 0]
        if "agreement" in found:
            people = found["agreement"]
            values = [people.std(1), *np.quantile(people, _QUANTILES, axis=1), (people < 0.5 - _ROUNDING).mean(1)]
            found |= dict(zip(_AGREEMENT, values, strict=True))
            # The one that may be large: draws times annotators.
            found["agreement"] = people.astype(np.float32)
        return found

    def _remark(self, what: str, number: int) -> None:
        if number:
            self.remarks.append(f"{number} {what} have no pair with a weight above 0 and are left out.")


def _columns(data: Choices, by: str | Sequence[str] | None) -> list[str]:
    if by is None:
        return list(data.groups)
    columns = list(dict.fromkeys([by] if isinstance(by, str) else by))
    unknown = [name for name in columns if name not in data.groups]
    if unknown:
        known = f"the group columns are {', '.join(data.groups)}" if data.groups else "there are no group columns"
        raise ConfigError(f"by: unknown column {unknown[0]!r}: {known}; others are passed to the fit as groups={{...}}")
    return columns


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}")


def _outside(table: Any) -> dict[str, str]:
    """``"above"`` or ``"below"`` for each statistic that was observed outside of its interval."""
    above = table["observed"] > table["high"] + _ROUNDING
    below = table["observed"] < table["low"] - _ROUNDING
    return {str(name): "above" if above[name] else "below" for name in table.index[above | below]}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
