"""Simulation-based calibration: whether a method of inference finds what the data were simulated from."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro.distributions import Distribution
from torch import Tensor

from pluralpref.diagnostics.calibration_result import CalibrationResult
from pluralpref.errors import (
    ConfigError,
    InferenceError,
    NumericsWarning,
    PluralPrefError,
    PluralPrefWarning,
    UnsupportedError,
)
from pluralpref.inference.choices import Choices, as_choices
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior import fit_posterior
from pluralpref.inference.posterior_predict import draw_choices, draw_prior
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.models import StrengthModel

#: A larger share of failed fits than this is warned of.
MAX_FAILED = 0.05
_DERIVED = ("beta_mean", "beta_cv", "log_likelihood")
_REASON_WIDTH = 160

#: A further test quantity: parameters by name, and the simulated choices, to a number.
Quantity = Callable[[Mapping[str, Tensor], Choices], float]


def simulation_based_calibration(
    strength: StrengthModel,
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    groups: Mapping[str, Any] | None = None,
    covariates: Mapping[str, Any] | None = None,
    priors: Mapping[str, Distribution] | None = None,
    method: str | None = None,
    num_simulations: int = 200,
    num_draws: int = 200,
    quantities: Mapping[str, Quantity] | None = None,
    fit: Callable[..., Any] | None = None,
    seed: int = 0,
    progress_bar: bool | None = None,
    **fit_options: Any,
) -> CalibrationResult:
    r"""Check a method of inference on choices simulated from the prior.

    For each simulation

    .. math::
        \theta^* \sim p(\theta), \quad \beta_a \sim p(\beta \mid \theta^*), \quad
        y_i \sim \mathrm{Bernoulli}(\sigma(\beta_{a(i)} h_i)), \quad
        \theta_1, \dots, \theta_L \sim q(\theta \mid y),

    and the rank of a quantity is the number of draws below its true value, :math:`\#\{l : f(\theta_l, y) <
    f(\theta^*, y)\}`, ties broken at random. If :math:`q` is the posterior, every rank is uniform on 0, …, L [1]. The
    quantities: each component of each parameter; ``beta_mean`` and ``beta_cv``, the moments of the distribution of
    :math:`\beta` (without groups and covariates), where they vary; and ``log_likelihood``, of all choices. Ranks of the
    parameters alone are uniform too for a method that returns the prior; those of the log-likelihood, which depends on
    the data, are not [2].

    The result holds for the margins, annotators and priors given here: take those of the study. Priors as wide as
    :meth:`~pluralpref.models.StrengthModel.default_priors` spend most simulations on choices that are all but
    certain. Draws of a Markov chain are thinned evenly to ``num_draws``; ask for enough of them (``num_samples``) that
    what is left is nearly independent, for autocorrelation makes ranks look as if draws were too narrow.

    A fit that raises an error of pluralpref is counted by reason in ``failures``, and so are warnings, instead of
    being shown. The ranks then speak only for the data on which the method worked.

    The ranks depend on ``seed`` alone; everything runs in one thread. Global state is left as it was.

    :param strength: the model of beta. It isn't changed.
    :param margins: (pairs,) in nats; or a margins table, whose annotators, weights and columns are used; its choices
        aren't.
    :param annotator: labels, one for each pair: a person's choices share one beta.
    :param weight: (pairs,) of 0 (the pair has no say) and 1. Another weight makes no likelihood of simulated
        choices, so there would be nothing to be calibrated against.
    :param groups: columns of labels by name, as far as the strength reads them.
    :param covariates: columns of numbers by name, likewise.
    :param priors: by parameter name; others get the default ones. Both truths and fits use them.
    :param method: of :func:`~pluralpref.inference.fit_posterior`, by default ``"laplace"``.
    :param num_simulations: data sets. 200 show a posterior that is 30 % too narrow.
    :param num_draws: :math:`L`.
    :param quantities: further functions by name, called with the parameters by name (without dimensions of draws)
        and the :class:`~pluralpref.inference.choices.Choices`, that return a number; NaN counts as infinity.
    :param fit: replaces ``fit_posterior``, to check inference of one's own. Called as ``fit(strength, margins,
        annotator=codes or None, preferred=..., seed=...)`` (and ``weight=``, ``groups=``, ``covariates=`` where there are
        any), with priors set in ``strength`` and tensors (pairs,); returns an object whose ``draws(name)`` has shape
        (chain, draw, ...) or (draw, ...) for each parameter.
    :param seed: any integer >= 0.
    :param progress_bar: by default, only when stderr is a terminal.
    :param fit_options: further options of ``fit_posterior``, such as ``num_samples``.
    :raises DataError: for margins, annotators, weights or columns that can't be used.
    :raises ConfigError: for an option out of range or without effect, or fewer draws than ``num_draws``.
    :raises UnsupportedError: as ``fit_posterior``.
    :raises InferenceError: if every fit failed.
    :warns NumericsWarning: if more than 5 % of the fits failed.

    References
    [1] S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, *Validating Bayesian inference algorithms with
    simulation-based calibration*, arXiv:1804.06788.
    [2] M. Modrák et al., *Simulation-based calibration checking for Bayesian computation: the choice of test
    quantities shapes sensitivity*, Bayesian Analysis (2023), arXiv:2211.02383.
    """
    for name, value, least in (("num_simulations", num_simulations, 2), ("num_draws", num_draws, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}")
    if "preferred" in fit_options:
        raise ConfigError("preferred: the choices are simulated; leave it out")
    read = getattr(strength, "context_columns", ())
    idle = [name for name in {**(groups or {}), **(covariates or {})} if name not in read]
    if idle:
        raise ConfigError(
            f"groups or covariates {', '.join(idle)}: {type(strength).__name__} doesn't read them; leave them out"
        )
    if fit is not None and (method is not None or fit_options):
        unused = ", ".join([*(["method"] if method is not None else []), *fit_options])
        raise ConfigError(f"{unused}: options of fit_posterior have no effect with fit=...; leave one of the two out")
    given = as_choices(margins, annotator=annotator, weight=weight, groups=groups, covariates=covariates)
    choices = replace(
        given,
        preferred=torch.ones_like(given.margins),
        groups={name: given.groups[name] for name in given.groups if name in read},
        covariates={name: given.covariates[name] for name in given.covariates if name in read},
    )
    if choices.weight is not None and not ((choices.weight == 0) | (choices.weight == 1)).all():
        raise ConfigError(
            "weight: a weighted likelihood isn't that of the simulated choices, so its posterior isn't calibrated; "
            "give weights of 0 and 1 only, or leave them out (of a margins table: pass its margins and annotator)"
        )
    fit_one = fit or _library_fit(strength, priors, method or "laplace", fit_options)
    show = sys.stderr.isatty() if progress_bar is None else progress_bar
    with borrowed_state(child_seed(seed, 0), threads=1):
        design = PosteriorProblem(strength, choices, priors)
        truths = draw_prior(design, num_simulations)
        preferred = torch.as_tensor(draw_choices(design, truths)).double()
        ranking = _Ranking(design, truths, num_draws, dict(quantities or {}))
    failures: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    rows = []
    with _progress(num_simulations, show) as advance:
        for number in range(num_simulations):
            data = replace(choices, preferred=preferred[number])
            with borrowed_state(child_seed(seed, 1, number), threads=1):
                try:
                    with _counting_warnings(warned):
                        draws = _parameter_draws(design, _run(fit_one, design.twin, data, child_seed(seed, 2, number)))
                except (ConfigError, UnsupportedError):
                    # What was asked for can't be done: no other data set would change that.
                    raise
                except PluralPrefError as error:
                    failures[_reason(error)] += 1
                    draws = None
                if draws is not None:
                    truth = {name: value[number] for name, value in truths.items()}
                    rows.append(ranking.ranks(truth, draws, data, child_seed(seed, 3, number)))
            advance(failures.total())
    if not rows:
        raise InferenceError(f"all {num_simulations} fits failed: {'; '.join(failures)}")
    if failures.total() > MAX_FAILED * num_simulations:
        warnings.warn(
            f"{failures.total()} of {num_simulations} fits failed: the ranks speak only for the data on which the method "
            f"worked. Reasons: {'; '.join(f'{count} times {reason}' for reason, count in failures.most_common(3))}",
            NumericsWarning,
            stacklevel=2,
        )
    return CalibrationResult(
        ranks={name: np.array([row[name] for row in rows]) for name in ranking.names},
        num_draws=num_draws,
        num_simulations=num_simulations,
        failures=dict(failures),
        warnings=dict(warned),
        family=type(strength).__name__,
        method="own fit" if fit is not None else method or "laplace",
    )


class _Ranking:
    """The test quantities, and the rank of a truth in each."""

    def __init__(
        self, design: PosteriorProblem, truths: Mapping[str, Tensor], num_draws: int, quantities: dict[str, Quantity]
    ) -> None:
        self.design = design
        self.num_draws = num_draws
        self.quantities = quantities
        parameters = [name for name, _ in _components(truths)]
        derived = []
        for name, values in zip(("beta_mean", "beta_cv"), design.moments(truths), strict=True):
            # What the priors leave constant has nothing to be ranked.
            if name not in parameters and bool((values != values[0]).any()):
                derived.append(name)
        self.names = [*parameters, *derived, "log_likelihood", *quantities]
        for name, function in quantities.items():
            if name in {*parameters, *_DERIVED}:
                raise ConfigError(f"quantities[{name!r}]: there is a quantity of this name already; choose another")
            if not callable(function):
                raise ConfigError(f"quantities[{name!r}]={function!r}: must be a function of (parameters, choices)")

    def ranks(
        self, truth: Mapping[str, Tensor], draws: Mapping[str, Tensor], data: Choices, seed: int
    ) -> dict[str, int]:
        found = next(iter(draws.values())).shape[0]
        if found < self.num_draws:
            raise ConfigError(
                f"a fit gave {found} draws, fewer than num_draws={self.num_draws}: raise num_samples, or lower num_draws"
            )
        kept = torch.linspace(0, found - 1, self.num_draws, dtype=torch.float64).round().long()
        # One call for the truth and the draws: equal parameters must give equal numbers, or ties would be missed.
        joined = {name: torch.cat([truth[name][None], draws[name][kept]]) for name in truth}
        values = self._values(joined, data)
        generator = np.random.default_rng(seed)
        return {name: _rank(values[name], generator) for name in self.names}

    def _values(self, joined: Mapping[str, Tensor], data: Choices) -> dict[str, np.ndarray]:
        problem = PosteriorProblem(self.design.strength, data, self.design.priors)
        values = dict(_components(joined))
        mean, cv = problem.moments(joined)
        values = {"beta_mean": mean, "beta_cv": cv} | values
        values["log_likelihood"] = problem.total_log_likelihood(joined)
        arrays = {name: value.numpy() for name, value in values.items()}
        for name, function in self.quantities.items():
            rows = [function({key: value[row] for key, value in joined.items()}, data)
                    for row in range(self.num_draws + 1)]  # fmt: skip
            try:
                arrays[name] = np.array([float(value) for value in rows])
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"quantities[{name!r}] must return a number ({error})") from error
        return arrays


def _rank(values: np.ndarray, generator: np.random.Generator) -> int:
    # A moment may not exist (NaN): as the largest value of all it still has a rank, the same for truth and draws.
    values = np.where(np.isnan(values), np.inf, values)
    truth, draws = values[0], values[1:]
    return int((draws < truth).sum()) + int(generator.integers(0, (draws == truth).sum() + 1))


def _components(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, (S,)) of each component of parameters (S, ...)."""
    for name, value in values.items():
        if value.dim() == 1:
            yield name, value
            continue
        for index in np.ndindex(*value.shape[1:]):
            yield f"{name}[{','.join(map(str, index))}]", value[(slice(None), *index)]


def _library_fit(
    strength: StrengthModel, priors: Mapping[str, Distribution] | None, method: str, options: Mapping[str, Any]
) -> Callable[..., Any]:
    def fit(_: StrengthModel, margins: Any, **data: Any) -> Any:
        return fit_posterior(strength, margins, priors=priors, method=method, progress_bar=False, **data, **options)

    return fit


def _run(fit: Callable[..., Any], strength: StrengthModel, data: Choices, seed: int) -> Any:
    present: dict[str, Any] = {} if data.weight is None else {"weight": data.weight}
    present |= {name: columns for name in ("groups", "covariates") if (columns := getattr(data, name))}
    return fit(strength, data.margins, annotator=data.annotator, preferred=data.preferred, seed=seed, **present)


def _parameter_draws(design: PosteriorProblem, posterior: Any) -> dict[str, Tensor]:
    """(draws, ...) by parameter, chains one after the other.

    :raises InferenceError: if a draw isn't finite.
    """
    draws = {}
    for name, prior in design.priors.items():
        shape = tuple(prior.batch_shape + prior.event_shape)
        values = torch.as_tensor(np.asarray(posterior.draws(name))).double()
        lead = values.dim() - len(shape)
        if lead not in (1, 2) or tuple(values.shape[lead:]) != shape:
            raise ConfigError(
                f"fit: draws({name!r}) has shape {tuple(values.shape)}; expected (chain, draw) or (draw,)"
                + (f", then {shape}" if shape else "")
            )
        if not torch.isfinite(values).all():
            raise InferenceError(f"draws of {name} that are not finite")
        draws[name] = values.reshape(-1, *shape)
    if len({value.shape[0] for value in draws.values()}) > 1:
        raise ConfigError("fit: every parameter must have as many draws")
    return draws


def _reason(message: Exception | Warning) -> str:
    text = re.sub(r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "#", " ".join(str(message).split()))
    return f"{type(message).__name__}: {textwrap.shorten(text, _REASON_WIDTH, placeholder=' …')}"


@contextmanager
def _counting_warnings(counts: Counter[str]) -> Iterator[None]:
    """Count the package's warnings by reason, once a block each; show others as ever."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluralPrefWarning)
        try:
            yield
        finally:
            messages = list(caught)
    counts.update({_reason(item.message) for item in messages if isinstance(item.message, PluralPrefWarning)})
    for item in messages:
        if not isinstance(item.message, PluralPrefWarning):
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda failed: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="calibration", unit="fit", dynamic_ncols=True) as bar:

        def advance(failed: int) -> None:
            if failed:
                bar.set_postfix_str(f"{failed} failed", refresh=False)
            bar.update()

        yield advance
