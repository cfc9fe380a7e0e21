"""The report of a run: what was trained, where the strength ended, and what held-out choices say about it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluralpref.diagnostics.people_report import add_calibration, add_checks, add_comparison, add_groups, add_people
from pluralpref.diagnostics.plots import (
    plot_calibration,
    plot_chains,
    plot_margins,
    plot_parameter,
    plot_strength,
    plot_training,
)
from pluralpref.diagnostics.report import Report, Table
from pluralpref.errors import ConfigError
from pluralpref.models import StrengthModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pluralpref.diagnostics.calibration_result import CalibrationResult
    from pluralpref.diagnostics.comparison import Comparison
    from pluralpref.diagnostics.predictive_checks import PredictiveChecks
    from pluralpref.inference.conditional import ConditionalStrengths
    from pluralpref.inference.posterior_draws import PosteriorDraws

#: What the data of this kind can and can't show, in plain words.
IDENTIFICATION_TEXT = """
Only the spread of β relative to its mean can be compared between runs: scale every margin by a constant and divide β by
it, and no choice probability changes. That is why the coefficient of variation (cv) is reported, and why the mean has
to be learned together with the spread: with the mean held fixed, the cv collapses towards 0 whatever the annotators are
like.

If everybody chooses once, heterogeneity only shows in how choice probabilities flatten at large margins, and noise in
the labels flattens them too. Repeated choices of the same annotators do better: whether one person's choices are all
sharp or all vague tells a spread of β apart from noise. A posterior fitted with annotators is the stronger evidence.

Where the strength's parameters stand when training stops depends on the learning rate and the number of steps, and
mixes with under- and overfitting of the policy. It is no estimate of the population. The posterior on held-out margins
is one, for the policy at hand: errors of its margins push the cv up a little.
""".strip()


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
    config: Mapping[str, Any] | None = None,
    rows: Mapping[str, int] | None = None,
    training: Sequence[Mapping[str, Any]] = (),
    training_law: StrengthModel | Mapping[str, StrengthModel] | None = None,
    posterior: PosteriorDraws | Mapping[str, PosteriorDraws] | None = None,
    margins: Any = None,
    preferred: Any = None,
    metrics: Mapping[str, float] | None = None,
    tables: Sequence[Table] = (),
    figures: Sequence[tuple[Figure, str]] = (),
    truth: Any = None,
    people: ConditionalStrengths | None = None,
    checks: PredictiveChecks | None = None,
    comparison: Comparison | Mapping[str, Any] | None = None,
    calibration: CalibrationResult | None = None,
    notices: Sequence[str] = (),
    reproduce: str | None = None,
) -> Path:
    """Write a run's report as one HTML file without external resources. Every part is optional.

    :param title: the heading; ``subtitle`` a line under it.
    :param config: what was run, by option; values of options that end with ``_token`` aren't shown.
    :param rows: the row accounting: count by reason (``{"read": 1000, "used": 990, "skipped/tie": 10}``).
    :param training: logged metrics, dicts with ``step``.
    :param training_law: the strength at the end of training; several by label.
    :param posterior: fitted on held-out margins; several by label.
    :param margins: held-out margins (pairs,), nats, with ``preferred`` labels.
    :param metrics: held-out metrics by name.
    :param tables: shown first, under "Results": the demo's comparison, for example.
    :param figures: (figure, caption), shown with them.
    :param truth: the true law, where it is known.
    :param people: each person's strength, from ``posterior.beta_given_choices()``. Groups are shown by themselves where the
        posterior has them.
    :param checks: from :func:`~pluralpref.diagnostics.predictive_checks`.
    :param comparison: of models, from :func:`~pluralpref.diagnostics.compare` or its JSON record.
    :param calibration: from :func:`~pluralpref.diagnostics.simulation_based_calibration`.
    :param notices: remarks a reader must not miss; the posteriors' own warnings are added.
    :param reproduce: commands that repeat the run.
    :returns: the path.
    :raises DataError: if the folder doesn't exist.
    """
    laws = _labelled(training_law, "training law")
    posteriors = _labelled(posterior, "posterior")
    report = Report(title, subtitle)
    for notice in notices:
        report.add_notice(notice)
    if tables or figures:
        report.add_section("Results")
        for table in tables:
            report.add_table(table)
        for figure, caption in figures:
            report.add_figure(figure, caption)
    if config:
        report.add_section("What was run")
        report.add_key_values({name: _shown(name, value) for name, value in config.items()})
    if rows:
        report.add_section("Data")
        report.add_table(Table(["rows", "count"], list(rows.items()), "What became of every row."))
    if training or laws:
        _training(report, training, laws)
    if posteriors or margins is not None or metrics:
        _held_out(report, posteriors, laws, margins, preferred, metrics, truth)
    if laws and posteriors:
        _side_by_side(report, laws, posteriors, truth)
    for one in posteriors.values():
        if "beta_mean_context" in one.quantities and one.has_data:
            add_groups(report, one)
    if people is not None:
        add_people(report, people)
    if checks is not None:
        add_checks(report, checks)
    if comparison is not None:
        add_comparison(report, comparison)
    if calibration is not None:
        add_calibration(report, calibration)
    report.add_section("What identifies heterogeneity, and what doesn't")
    report.add_text(IDENTIFICATION_TEXT)
    if reproduce:
        report.add_section("How to reproduce")
        report.add_code(reproduce)
    return report.write(path)


def _shown(option: str, value: Any) -> Any:
    return "(not shown)" if str(option).endswith("_token") and value is not None else value


def _labelled(value: Any, label: str) -> dict[str, Any]:
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {label: value}


def _training(report: Report, training: Sequence[Mapping[str, Any]], laws: Mapping[str, StrengthModel]) -> None:
    report.add_section("Training")
    logged = [row for row in training if "step" in row]
    if logged:
        try:
            report.add_figure(plot_training(logged), "Metrics over the optimiser's steps.")
        except ValueError as error:
            report.add_notice(str(error))
        last: dict[str, Any] = {}
        for row in logged:
            last.update({name: value for name, value in row.items() if isinstance(value, int | float)})
        report.add_table(Table(["metric", "last value"], sorted(last.items()), "The last logged value of each metric."))
    if laws:
        report.add_table(
            Table(
                ["training law", "family", "mean of β", "cv of β", "5 %", "median", "95 %"],
                [_law_row(label, law) for label, law in laws.items()],
                "Where the strength's parameters stood at the end of training. It is no diagnosis of the population.",
            )
        )


def _law_row(label: str, law: StrengthModel) -> list[Any]:
    mean, cv = float(law.mean), float(law.cv)
    quantiles = [float(law.quantile(q)) for q in (0.05, 0.5, 0.95)] if cv > 0 else [mean] * 3
    return [label, type(law).__name__, mean, cv, *quantiles]


def _held_out(
    report: Report,
    posteriors: Mapping[str, PosteriorDraws],
    laws: Mapping[str, StrengthModel],
    margins: Any,
    preferred: Any,
    metrics: Mapping[str, float] | None,
    truth: Any,
) -> None:
    report.add_section("Held-out choices")
    if metrics:
        report.add_table(Table(["metric", "value"], list(metrics.items()), "Metrics of the held-out pairs."))
    if margins is not None:
        report.add_figure(plot_margins(margins), "Margins of the held-out pairs.")
        if laws:
            report.add_figure(
                plot_calibration(laws, margins, preferred=preferred),
                "Observed choices against the training law's probabilities; bars are 95 % intervals.",
            )
    for label, posterior in posteriors.items():
        name = label if len(posteriors) > 1 else f"posterior of {posterior.family}"
        for problem in posterior.convergence.problems:
            report.add_notice(f"{name}: the draws may not be reliable: {problem}")
        for reason in posterior.identification:
            report.add_notice(f"{name}: {reason}")
        kind = "choices of one annotator share their β" if posterior.is_panel else "every choice has a β of its own"
        summary = posterior.summary()
        table = Table.from_frame(
            summary[
                ["mean", "sd", *[c for c in summary.columns if c.startswith("hdi")], "ess_bulk", "ess_tail", "r_hat"]
            ],
            f"{name}: {kind}; {posterior.convergence.divergences} divergent transitions. The interval is the shortest "
            "with 95 % of the draws.",
            "quantity",
        )
        report.add_table(table)
        single = laws.get(label) if len(posteriors) > 1 else next(iter(laws.values()), None)
        report.add_figure(plot_strength(posterior, single, truth=truth), f"{name}: the density of β in the population.")
        true_moments = _moments(truth)
        quantities = ("beta_cv", "beta_mean") if posterior.has_spread else ("beta_mean",)
        for quantity in quantities:
            # The mean's true value isn't comparable: a policy's margins have a scale of their own.
            known = true_moments["beta_cv"] if true_moments and quantity == "beta_cv" else None
            report.add_figure(
                plot_parameter(posterior, quantity, truth=known), f"{name}: {quantity}, posterior and prior."
            )
        report.add_figure(plot_chains(posterior), f"{name}: traces and rank histograms of the chains.")


def _side_by_side(
    report: Report, laws: Mapping[str, StrengthModel], posteriors: Mapping[str, PosteriorDraws], truth: Any
) -> None:
    report.add_section("Training law and posterior")
    rows = []
    if len(laws) == 1 and len(posteriors) == 1:
        pairs = [(next(iter(laws.values())), "", next(iter(posteriors.values())))]
    else:
        pairs = [(laws[label], label, posteriors[label]) for label in posteriors if label in laws]
        if not pairs:
            raise ConfigError("training laws and posteriors have no label in common: give both mappings the same keys")
    for law, label, posterior in pairs:
        has = posterior.has_spread
        rows.append(
            [
                label or posterior.family,
                float(law.mean),
                float(law.cv),
                float(np.median(posterior.draws("beta_mean"))),
                posterior.interval("beta_mean"),
                float(np.median(posterior.draws("beta_cv"))) if has else None,
                posterior.interval("beta_cv") if has else None,
            ]
        )
    moments = _moments(truth)
    known = f" The true cv is {moments['beta_cv']:.3g}." if moments else ""
    report.add_table(
        Table(
            ["run", "training law: mean", "training law: cv", "posterior: mean", "95 %", "posterior: cv", "95 %"],
            rows,
            f"Two different things. The posterior, on held-out choices, is the diagnosis.{known}",
        )
    )


def _moments(truth: Any) -> dict[str, float] | None:
    if truth is None:
        return None
    return {"beta_mean": float(truth.mean.detach()), "beta_cv": float((truth.stddev / truth.mean).detach())}
