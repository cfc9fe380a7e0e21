r"""Which explanation of the choices predicts best: one strength, label noise, heterogeneity of one kind or another.

Models are compared by the expected log predictive density of what was left out, estimated by Pareto-smoothed importance
sampling. With annotators one of them is left out at a time: what matters is a person who isn't in the data. Leaving out
one pair instead asks how well a known person's further choice is predicted, and uses their other choices.

References
[1] A. Vehtari, A. Gelman, J. Gabry, "Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC",
    Statistics and Computing 27 (2017), arXiv:1507.04544.
[2] Y. Yao, A. Vehtari, D. Simpson, A. Gelman, "Using stacking to average Bayesian predictive distributions", Bayesian
    Analysis 13 (2018), arXiv:1704.02030.
[3] S. Self and K.-Y. Liang, "Asymptotic properties of maximum likelihood estimators and likelihood ratio tests under
    nonstandard conditions", JASA 82 (1987).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pluralpref.errors import ConfigError, NumericsWarning
from pluralpref.inference.arviz_data import compare_loo
from pluralpref.inference.choices import Choices, as_choices
from pluralpref.inference.pair_likelihood import pair_log_likelihood
from pluralpref.inference.posterior import fit_posterior
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.posterior_result import Posterior
from pluralpref.models import (
    FixedStrength,
    GammaStrength,
    GroupStrength,
    LatentClassStrength,
    LogNormalStrength,
    OpposedStrength,
    StrengthModel,
)

#: Differences of elpd smaller than this many nats say nothing, whatever their standard error (Sivula et al. 2020,
#: arXiv:2008.10296); above it, twice the standard error is asked for.
_SMALL = 4.0
_STANDARD_ERRORS = 2.0
#: Values of log-likelihoods kept for each model; above it the draws are thinned.
_MOST_VALUES = 20_000_000
_LEAST_DRAWS = 400
_MOST_GROUPS = 50


@dataclass(frozen=True)
class IndependentChoices:
    """A model in which every choice has a strength of its own, also those of one person: annotators are left aside.

    With ``OpposedStrength(FixedStrength(...))`` this is label noise: each choice is flipped with one probability, where in a
    panel the same law would mean that a share of the people is opposed in all that they choose.

    :param strength: the law of each choice's strength.
    """

    strength: StrengthModel


@dataclass(frozen=True)
class LikelihoodRatio:
    """The test of "everybody has the same strength" against a family with a spread.

    :param statistic: twice the difference of the maximised log-likelihoods, nats; at least 0.
    :param p_value: under half a point mass at 0 and half a chi-square law with one degree of freedom, since cv = 0 is on
        the boundary of the parameter's range.
    :param cv: the maximum-likelihood estimate of beta's coefficient of variation.
    """

    statistic: float
    p_value: float
    cv: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    :param posteriors: by model.
    :param tables: by level (``"annotator"``, ``"pair"``) a pandas ``DataFrame`` with one row for each model, the best
        first: elpd_loo and its standard error, p_loo (effective parameters), elpd_diff to the best and dse, its standard
        error, weight (stacking), and the number of units with Pareto k-hat above 0.7, whose part isn't reliable.
    :param pointwise: by level and model, the elpd of each unit, (units,).
    :param labels: by level, the units' labels.
    :param ratio: the likelihood-ratio test of cv = 0, where a log-normal or gamma model is among the models.
    :param sentences: what the data can and can't tell apart, in words.
    """

    posteriors: Mapping[str, Posterior]
    tables: Mapping[str, Any]
    pointwise: Mapping[str, Mapping[str, np.ndarray]]
    labels: Mapping[str, list[str]]
    ratio: LikelihoodRatio | None
    sentences: tuple[str, ...]

    def drivers(self, model: str, reference: str, level: str | None = None) -> Any:
        """Which units make one model better than another: a pandas ``DataFrame``, the most important first.

        Columns: ``gain``, the difference of their elpd in nats; ``share``, of the sum of all positive gains;
        ``cumulative``, of the units down to this one.

        :param level: ``"annotator"`` or ``"pair"``; default the first of the comparison's.
        :raises ConfigError: for an unknown model or level.
        """
        import pandas as pd

        level = next(iter(self.tables)) if level is None else level
        if level not in self.pointwise:
            raise ConfigError(f"level={level!r}: choose one of {', '.join(self.pointwise)}")
        for name in (model, reference):
            if name not in self.pointwise[level]:
                raise ConfigError(f"unknown model {name!r}: compared were {', '.join(self.pointwise[level])}")
        gain = self.pointwise[level][model] - self.pointwise[level][reference]
        share = gain.clip(0) / max(gain.clip(0).sum(), 1e-300)
        order = np.argsort(-gain, kind="stable")
        labels = [self.labels[level][i] for i in order]
        frame = pd.DataFrame({"gain": gain[order], "share": share[order]}, index=pd.Index(labels, name=level))
        return frame.assign(cumulative=frame["share"].cumsum())

    def record(self) -> dict[str, Any]:
        """Everything but the posteriors and single units as JSON knows it: tables by level, the test, the sentences."""
        return {
            "levels": {
                level: frame.reset_index(names="model").to_dict("records") for level, frame in self.tables.items()
            },
            "likelihood_ratio": None if self.ratio is None else vars(self.ratio),
            "sentences": list(self.sentences),
            "methods": {name: posterior.attrs["method"] for name, posterior in self.posteriors.items()},
        }

    def __repr__(self) -> str:
        return "\n\n".join([*(table.to_string() for table in self.tables.values()), *self.sentences])


def default_models(choices: Choices) -> dict[str, StrengthModel | IndependentChoices]:
    """The explanations that :func:`compare` tries where none are named.

    ``fixed`` is plain DPO with a learned scale; ``label_noise`` the same with a share of choices flipped at random;
    ``lognormal``, ``gamma``, ``latent_class`` are heterogeneity; and for every group column ``group:<column>``,
    log-normal with a level for each group.
    """
    models: dict[str, StrengthModel | IndependentChoices] = {
        "fixed": FixedStrength(0.3, learned=True),
        "label_noise": IndependentChoices(OpposedStrength(FixedStrength(0.3, learned=True), share=0.05)),
        "lognormal": LogNormalStrength(mean=0.3),
        "gamma": GammaStrength(mean=0.3),
        "latent_class": LatentClassStrength(mean=0.3),
    }
    for column, labels in choices.groups.items():
        distinct = sorted(set(labels.tolist()))
        if 2 <= len(distinct) <= _MOST_GROUPS:
            models[f"group:{column}"] = GroupStrength(distinct, LogNormalStrength(mean=0.3), column=column)
    return models


def compare(
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | None = None,
    covariates: Mapping[str, Any] | None = None,
    models: Mapping[str, StrengthModel | IndependentChoices | Posterior] | None = None,
    level: str | None = None,
    seed: int = 0,
    progress_bar: bool | None = None,
    **fit_options: Any,
) -> Comparison:
    """Fit several strength models to the same choices and compare their predictions of what is left out.

    The panel likelihood that the models are fitted with is the one that they are compared by.

    :param margins: as for :func:`~pluralpref.inference.fit_posterior`, as are the columns.
    :param models: by name, at least two: strength models (:class:`IndependentChoices` to leave annotators aside), or
        posteriors that were fitted to the same choices; default :func:`default_models`.
    :param level: what is left out, ``"annotator"`` or ``"pair"``; default both, where annotators are known. A pair among a
        person's other choices takes most of the time of a comparison.
    :param seed: of every fit.
    :param fit_options: passed to ``fit_posterior``, such as ``method`` and ``num_samples``.
    :raises ConfigError: for fewer than two models, a posterior of other data, or a level that isn't there.
    :raises DataError: for data that can't be used.
    """
    choices = as_choices(
        margins, annotator=annotator, weight=weight, preferred=preferred, groups=groups, covariates=covariates
    )
    chosen: Mapping[str, Any] = default_models(choices) if models is None else models
    if len(chosen) < 2:
        raise ConfigError("compare needs at least two models")
    levels = ["annotator", "pair"] if choices.annotator is not None else ["pair"]
    if level is not None:
        if level not in ("annotator", "pair"):
            raise ConfigError(f"level={level!r}: choose one of annotator, pair")
        if level not in levels:
            raise ConfigError("level='annotator' needs annotators: name who chose, or leave out single pairs")
        levels = [level]
    show = sys.stderr.isatty() if progress_bar is None else progress_bar
    posteriors: dict[str, Posterior] = {}
    for name, model in tqdm(chosen.items(), desc="compare", unit="model", disable=not show):
        if isinstance(model, Posterior):
            if not _same(model.choices, choices):
                raise ConfigError(f"the posterior {name!r} was fitted to other choices than those compared on")
            posteriors[name] = model
        elif isinstance(model, IndependentChoices):
            alone = replace(choices, annotator=None, annotator_names=())
            posteriors[name] = fit_posterior(model.strength, alone, seed=seed, progress_bar=False, **fit_options)
        else:
            posteriors[name] = fit_posterior(model, choices, seed=seed, progress_bar=False, **fit_options)
    tables, pointwise = {}, {}
    for unit in levels:
        values = {name: _log_likelihood(posterior, unit, choices) for name, posterior in posteriors.items()}
        tables[unit], pointwise[unit] = compare_loo(values)
    labels = {
        "pair": [str(row) for row in range(choices.num_pairs)],
        "annotator": [str(a) for a in choices.annotator_names],
    }
    ratio = _ratio(posteriors, choices)
    sentences = tuple(_sentences(tables[levels[0]], pointwise[levels[0]], levels[0], ratio))
    return Comparison(posteriors, tables, pointwise, {unit: labels[unit] for unit in levels}, ratio, sentences)


def likelihood_ratio_test(
    strength: StrengthModel,
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
) -> LikelihoodRatio:
    r"""Test "cv = 0" (one strength for everybody, plain DPO with a learned scale) by maximum likelihood.

    At cv = 0 the spread is on the boundary of its range, so the statistic isn't chi-square: its law is half a point mass
    at 0 and half :math:`\chi^2_1` (Self and Liang, 1987).

    :param strength: a model with parameters ``beta_mean`` and ``beta_cv`` only.
    :param margins: as for :func:`~pluralpref.inference.fit_posterior`, as are the columns.
    :raises ConfigError: for a model with other parameters.
    """
    choices = as_choices(margins, annotator=annotator, weight=weight, preferred=preferred)
    problem = PosteriorProblem(strength, choices)
    if set(problem.names) != {"beta_mean", "beta_cv"}:
        raise ConfigError(
            f"the likelihood-ratio test of cv = 0 needs a family with beta_mean and beta_cv, not {', '.join(problem.names)}"
        )
    from scipy.optimize import minimize
    from scipy.stats import chi2

    fixed = PosteriorProblem(FixedStrength(1.0, learned=True), choices)

    def loss(x: np.ndarray, null: bool) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        values = {"beta_mean": leaf[0].exp()} | ({} if null else {"beta_cv": leaf[1].abs().clamp_min(1e-6)})
        value = -(fixed if null else problem).log_likelihood_at(values)
        (slope,) = torch.autograd.grad(value, leaf)
        finite = bool(torch.isfinite(value)) and bool(torch.isfinite(slope).all())
        return (float(value.detach()), slope.numpy()) if finite else (math.inf, np.zeros_like(x))

    centre = -math.log(max(float(choices.margins.abs().median()), 1e-6))
    limits = [(centre - 15, centre + 15), (0.0, 30.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)
        options = {"jac": True, "method": "L-BFGS-B", "options": {"ftol": 1e-14, "gtol": 1e-7}}
        null = minimize(loss, np.array([centre]), args=(True,), bounds=limits[:1], **options)
        starts = [np.array([null.x[0] + math.log1p(cv * cv) / 2, cv]) for cv in (0.1, 0.5, 1.5)]
        fits = [minimize(loss, start, args=(False,), bounds=limits, **options) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    statistic = max(0.0, 2 * (float(null.fun) - float(best.fun)))
    p_value = 0.5 * float(chi2.sf(statistic, 1)) if statistic > 0 else 1.0
    return LikelihoodRatio(statistic, p_value, abs(float(best.x[1])) if statistic > 0 else 0.0)


def _same(one: Choices, other: Choices) -> bool:
    pairs = ((one.margins, other.margins), (one.preferred, other.preferred), (one.weight, other.weight))
    same = all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)  # type: ignore[arg-type]
    # A posterior without annotators takes every choice by itself.
    return same and (
        one.annotator is None or (other.annotator is not None and torch.equal(one.annotator, other.annotator))
    )


def _log_likelihood(posterior: Posterior, level: str, choices: Choices) -> np.ndarray:
    """(1, draws, units), of evenly thinned draws where there would be too many values."""
    problem = posterior.problem
    units = problem.num_units if level != "pair" else problem.choices.num_pairs
    draws = posterior.thinned(max(_LEAST_DRAWS, _MOST_VALUES // max(units, 1)))
    if level == "pair" and problem.is_panel:
        return pair_log_likelihood(problem, draws).numpy()[None]
    values = problem.log_likelihood(draws).double()
    if level == "annotator" and not problem.is_panel:
        assert choices.annotator is not None
        values = values.new_zeros(values.shape[0], choices.num_annotators).index_add_(1, choices.annotator, values)
    return values.numpy()[None]


def _ratio(posteriors: Mapping[str, Posterior], choices: Choices) -> LikelihoodRatio | None:
    for posterior in posteriors.values():
        problem = posterior.problem
        if set(problem.names) == {"beta_mean", "beta_cv"} and problem.contexts is None:
            return likelihood_ratio_test(
                problem.strength,
                choices.margins,
                annotator=choices.annotator,
                weight=choices.weight,
                preferred=choices.preferred,
            )
    return None


def _sentences(table: Any, pointwise: Mapping[str, np.ndarray], level: str, ratio: LikelihoodRatio | None) -> list[str]:
    """What the differences say, and what they don't."""
    best = str(table.index[0])
    close: list[str] = []
    worse: list[str] = []
    for name, row in table.iloc[1:].iterrows():
        difference, error = float(row["elpd_diff"]), float(row["dse"])
        clear = difference > _SMALL and difference > _STANDARD_ERRORS * error
        (worse if clear else close).append(f"{name} ({difference:.1f} ± {error:.1f} nats)")
    said = [f"{best} predicts a left-out {level} best."]
    if close:
        said.append(f"The data can't tell it from {', '.join(close)}.")
    if worse:
        said.append(f"It is clearly better than {', '.join(worse)}.")
    if {"fixed", "label_noise"} <= set(pointwise) and len(pointwise) > 2:
        rivals = [name for name in table.index if name not in ("fixed", "label_noise")]
        gain = pointwise[rivals[0]] - pointwise["label_noise"]
        total, error = float(gain.sum()), float(gain.std() * math.sqrt(len(gain)))
        if abs(total) <= max(_SMALL, _STANDARD_ERRORS * error):
            said.append(
                f"Label noise explains the choices about as well as heterogeneity ({rivals[0]}: {total:+.1f} ± {error:.1f} "
                "nats): a spread of strength isn't established by these data."
            )
    unreliable = {str(name): int(row["high_k"]) for name, row in table.iterrows() if row["high_k"]}
    if unreliable:
        shown = ", ".join(f"{name}: {count}" for name, count in unreliable.items())
        said.append(f"Pareto k-hat is above 0.7 for some units ({shown}), whose part of the elpd isn't reliable.")
    if ratio is not None:
        said.append(
            f"Likelihood-ratio test of one strength for everybody: {ratio.statistic:.2f}, p = {ratio.p_value:.2g} "
            f"(boundary-aware), maximum-likelihood cv {ratio.cv:.3g}."
        )
    return said
