"""The posterior of the distribution of preference strength, from margins."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from pyro.distributions import Distribution

from pluralpref.errors import ConfigError, InferenceError
from pluralpref.inference.choices import as_choices
from pluralpref.inference.posterior_engine import EngineResult, SamplerSettings
from pluralpref.inference.posterior_laplace import run_laplace
from pluralpref.inference.posterior_nuts import run_nuts
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.posterior_result import Posterior
from pluralpref.inference.posterior_svi import run_svi
from pluralpref.models import StrengthModel

#: A method of inference: it gets the problem and the settings, and returns draws.
Engine = Callable[[PosteriorProblem, SamplerSettings], EngineResult]

_ENGINES: dict[str, Engine] = {"laplace": run_laplace, "nuts": run_nuts, "svi": run_svi}
#: Which method reads which option; an option of another method is refused.
_OPTIONS_OF = {
    "laplace": ("num_proposals",),
    "nuts": ("num_warmup", "target_accept_prob", "max_tree_depth"),
    "svi": ("guide", "num_steps", "learning_rate", "batch_size"),
}
#: Annotators or pairs in each step of "svi" where "auto" chose it.
_BATCH = 2000
_LEAST = {
    "num_samples": 4,
    "num_warmup": 0,
    "num_chains": 1,
    "seed": 0,
    "max_tree_depth": 1,
    "num_proposals": 100,
    "num_steps": 10,
    "batch_size": 1,
}


def fit_posterior(
    strength: StrengthModel,
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | None = None,
    covariates: Mapping[str, Any] | None = None,
    priors: Mapping[str, Distribution] | None = None,
    method: str = "auto",
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    progress_bar: bool | None = None,
    num_proposals: int | None = None,
    num_warmup: int | None = None,
    target_accept_prob: float | None = None,
    max_tree_depth: int | None = None,
    guide: str | None = None,
    num_steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
) -> Posterior:
    r"""Draw from the posterior of a strength model's parameters given choices.

    .. math::
        p(\theta \mid y) \propto p(\theta) \prod_i E_{\beta \mid \theta}[\sigma(\beta h_i)]
        \quad\text{or, with annotators,}\quad
        p(\theta) \prod_a E_{\beta \mid \theta}\Big[\prod_{i \in a} \sigma(\beta h_i)\Big].

    Every :math:`\beta` is integrated out (in closed form or by quadrature where the family has one; else by 256
    random draws, the same ones at every evaluation, which ``attrs["marginal"]`` records), so the sampler moves in the
    few global parameters only. The margins should come from pairs that the policy wasn't trained on. Where the
    strength stood at the end of training only enters as the centre of the wide default prior of ``beta_mean``
    (:meth:`~pluralpref.models.StrengthModel.default_priors`).

    Where the strength's law depends on columns (:class:`~pluralpref.models.GroupStrength`,
    :class:`~pluralpref.models.CovariateStrength`, or both, one inside of the other), these are read from ``groups`` and
    ``covariates``. A person whose columns change from choice to choice keeps one b, which the columns scale.

    **Methods.** ``"laplace"`` finds the mode by quasi-Newton and Newton steps from several starts, takes the exact Hessian
    there, and resamples proposals by their Pareto-smoothed importance weights: independent draws in seconds for a handful
    of parameters, whatever the number of pairs. It refuses where the weights' Pareto k-hat is above 0.7 or the Hessian
    isn't positive definite. ``"nuts"`` is the No-U-Turn sampler in straightened coordinates, one chain after the other.
    ``"svi"`` fits one of Pyro's automatic guides, on all choices or on minibatches of annotators (of pairs where those are
    unknown); it reports whether the ELBO settled and how well the guide fits (k-hat). ``"auto"`` is ``"laplace"``, then
    ``"nuts"`` where that refuses, and ``"svi"`` on minibatches of 2,000 where more than 200,000 choices can't be tabulated
    (a table takes at most half of the free memory: some 6 GB for a million annotators with ten choices each); an option of
    one method selects that method. ``attrs["method_reason"]`` says what was chosen and why.

    The draws depend on ``seed`` alone, in one thread. Pyro's parameter store, the global generators and torch's number of
    threads are left as they were.

    :param strength: the model of beta. It isn't changed.
    :param margins: (pairs,) in nats; or a margins table, whose annotators, weights, labels and groups are used.
    :param annotator: labels, one for each pair: a person's choices share one beta. Without them every pair is
        a person of its own.
    :param weight: (pairs,) multiplies each pair's log-likelihood (with annotators, inside the expectation).
    :param preferred: (pairs,) in [0, 1], 1 (the default) where the chosen answer was preferred.
    :param groups: further columns of labels by name: read by the strength, or only kept in ``constant_data``.
    :param covariates: columns of numbers by name, likewise.
    :param priors: by parameter name; others get the default ones.
    :param method: ``"auto"``, ``"laplace"``, ``"nuts"`` or ``"svi"``.
    :param num_samples: draws in each chain, after warm-up.
    :param num_chains: at least 2 for a meaningful R-hat. The draws of ``"laplace"`` and ``"svi"`` are independent; they
        are laid out in as many chains, so that all of ArviZ works on them.
    :param seed: any integer >= 0.
    :param progress_bar: by default, only when stderr is a terminal.
    :param num_proposals: (laplace) points that are weighted, default 4000 or the number of draws, if that is more; 1000
        where the likelihood can't be tabulated (covariates, families that can only be drawn). Up to eight times as many where
        the default leaves fewer than 500 effective draws.
    :param num_warmup: (nuts) steps in which the sampler adapts; not kept. Default 500.
    :param target_accept_prob: (nuts) default 0.8; raise it against divergent transitions.
    :param max_tree_depth: (nuts) a transition takes at most ``2**max_tree_depth - 1`` steps; default 10.
    :param guide: (svi) the class of ``pyro.infer.autoguide``, default ``"AutoMultivariateNormal"``.
    :param num_steps: (svi) default 2000.
    :param learning_rate: (svi) at the start, default 0.02; it falls a hundredfold.
    :param batch_size: (svi) annotators, or pairs, in each step; default all.
    :raises DataError: for data that can't be used; the message names the column and the rows.
    :raises ConfigError: for an unknown method, a setting out of range or without effect, or a strength with nothing to
        infer.
    :raises UnsupportedError: for a strength whose law differs from pair to pair otherwise, or a parameter without a prior.
    :raises InferenceError: if ``"laplace"`` can't be relied on, or no finite density is found anywhere.
    :warns NumericsWarning: if R-hat > 1.01, ESS < 400, a transition diverged, or SVI didn't settle.
    :warns IdentificationWarning: if the choices say next to nothing about the spread.

    References
    [1] M. D. Hoffman and A. Gelman, *The No-U-Turn Sampler*, JMLR 15 (2014).
    [2] A. Vehtari et al., *Pareto smoothed importance sampling*, JMLR 25 (2024), arXiv:1507.02646.
    [3] K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, chapters 6 and 12.
    """
    given = {
        "num_proposals": num_proposals,
        "num_warmup": num_warmup,
        "target_accept_prob": target_accept_prob,
        "max_tree_depth": max_tree_depth,
        "guide": guide,
        "num_steps": num_steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    given = {name: value for name, value in given.items() if value is not None}
    common = {"num_samples": num_samples, "num_chains": num_chains, "seed": seed}
    _check_settings({**given, **common})
    asked = _asked(given)
    candidates, reason = _candidates(method, given, asked)
    choices = as_choices(
        margins, annotator=annotator, weight=weight, preferred=preferred, groups=groups, covariates=covariates
    )
    problem = PosteriorProblem(strength, choices, priors)
    if method == "auto" and not asked and problem.is_too_large:
        candidates, given["batch_size"] = ["svi"], min(_BATCH, problem.num_units - 1)
        reason = f"{choices.num_pairs:,} choices are too many to integrate all at each step, and {problem.why_no_table}"
    show = sys.stderr.isatty() if progress_bar is None else progress_bar
    started = time.perf_counter()
    for name in candidates:
        settings = _settings(name, {**given, **common, "progress_bar": show})
        try:
            result = _ENGINES[name](problem, settings)
        except InferenceError as error:
            if name == candidates[-1]:
                raise
            reason = f"laplace refused: {error}"
            continue
        return Posterior(problem, result, settings, name, time.perf_counter() - started, reason)
    raise AssertionError("unreachable: the last candidate returns or raises")


def _check_settings(values: Mapping[str, Any]) -> None:
    for name, least in _LEAST.items():
        value = values.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}")
    if not 0 < values.get("target_accept_prob", 0.5) < 1:
        raise ConfigError(f"target_accept_prob={values['target_accept_prob']}: must lie strictly between 0 and 1")
    if not 0 < values.get("learning_rate", 0.5) < math.inf:
        raise ConfigError(f"learning_rate={values['learning_rate']}: must be greater than 0")


def _asked(given: Mapping[str, Any]) -> set[str]:
    """The methods that have some of the given options."""
    return {name for name, options in _OPTIONS_OF.items() if any(option in given for option in options)}


def _candidates(method: str, given: Mapping[str, Any], asked: set[str]) -> tuple[list[str], str]:
    """The methods to be tried in turn, and why the first."""
    if method != "auto" and method not in _ENGINES:
        raise ConfigError(f"unknown method {method!r}: available are 'auto', {', '.join(map(repr, _ENGINES))}")
    if method == "auto":
        if not asked:
            return [
                "laplace",
                "nuts",
            ], "few parameters with a smooth likelihood: a mode and importance weights are enough"
        if len(asked) > 1:
            raise ConfigError(
                f"options of several methods ({', '.join(sorted(given))}): choose one with "
                f"{' or '.join(f'method={name!r}' for name in sorted(asked))}"
            )
        (only,) = asked
        return [only], f"{', '.join(sorted(given))} is an option of {only}"
    useless = sorted(option for option in given if option not in _OPTIONS_OF[method])
    if useless:
        owner = next(name for name, options in _OPTIONS_OF.items() if useless[0] in options)
        raise ConfigError(f"{useless[0]} has no effect with method={method!r}: it is an option of method={owner!r}")
    return [method], "asked for"


def _settings(method: str, values: Mapping[str, Any]) -> SamplerSettings:
    other = {option for name, options in _OPTIONS_OF.items() if name != method for option in options}
    own = {name: value for name, value in values.items() if name not in other}
    return SamplerSettings(**own)
