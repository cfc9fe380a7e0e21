"""The posterior of the distribution of preference strength, from margins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from pyro.distributions import Distribution

from pluralpref.errors import ConfigError
from pluralpref.inference.choices import as_choices
from pluralpref.inference.posterior_nuts import EngineResult, SamplerSettings, run_nuts
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.posterior_result import Posterior
from pluralpref.models import StrengthModel

#: A method of inference: it gets the problem and the settings, and returns draws.
Engine = Callable[[PosteriorProblem, SamplerSettings], EngineResult]

_ENGINES: dict[str, Engine] = {"nuts": run_nuts}


def fit_posterior(
    strength: StrengthModel,
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | None = None,
    priors: Mapping[str, Distribution] | None = None,
    method: str = "nuts",
    num_samples: int = 1000,
    num_warmup: int = 500,
    num_chains: int = 4,
    seed: int = 0,
    progress_bar: bool | None = None,
    target_accept_prob: float = 0.8,
    max_tree_depth: int = 10,
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

    The draws depend on ``seed`` alone: chains run one after the other in one thread. Pyro's parameter store, the
    global generators and torch's number of threads are left as they were.

    :param strength: the model of beta. It isn't changed.
    :param margins: (pairs,) in nats; or a margins table, whose annotators, weights, labels and groups are used.
    :param annotator: labels, one for each pair: a person's choices share one beta. Without them every pair is
        a person of its own.
    :param weight: (pairs,) multiplies each pair's log-likelihood (with annotators, inside the expectation).
    :param preferred: (pairs,) in [0, 1], 1 (the default) where the chosen answer was preferred.
    :param groups: further columns by name, kept in ``constant_data``.
    :param priors: by parameter name; others get the default ones.
    :param method: ``"nuts"``, the No-U-Turn sampler.
    :param num_samples: draws for each chain after warm-up.
    :param num_warmup: steps in which the sampler adapts; not kept.
    :param num_chains: at least 2 for a meaningful R-hat.
    :param seed: any integer >= 0.
    :param progress_bar: by default, only when stderr is a terminal.
    :param target_accept_prob: raise it against divergent transitions.
    :param max_tree_depth: a transition takes at most ``2**max_tree_depth - 1`` steps.
    :raises DataError: for data that can't be used; the message names the column and the rows.
    :raises ConfigError: for an unknown method, a setting out of range, or a strength with nothing to infer.
    :raises UnsupportedError: for a strength whose law differs from pair to pair, or a parameter without a prior.
    :raises InferenceError: if the sampler finds no point to start from.
    :warns NumericsWarning: if R-hat > 1.01, ESS < 400 or a transition diverged.
    :warns IdentificationWarning: if the choices say next to nothing about the spread.

    References
    [1] M. D. Hoffman and A. Gelman, *The No-U-Turn Sampler*, JMLR 15 (2014).
    [2] K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, chapters 6 and 12.
    """
    if method not in _ENGINES:
        raise ConfigError(f"unknown method {method!r}: available are {', '.join(map(repr, _ENGINES))}")
    for name, value, least in (
        ("num_samples", num_samples, 4),
        ("num_warmup", num_warmup, 0),
        ("num_chains", num_chains, 1),
        ("seed", seed, 0),
        ("max_tree_depth", max_tree_depth, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}")
    if not 0 < target_accept_prob < 1:
        raise ConfigError(f"target_accept_prob={target_accept_prob}: must lie strictly between 0 and 1")
    choices = as_choices(margins, annotator=annotator, weight=weight, preferred=preferred, groups=groups)
    problem = PosteriorProblem(strength, choices, priors)
    settings = SamplerSettings(
        num_samples=num_samples,
        num_warmup=num_warmup,
        num_chains=num_chains,
        seed=seed,
        progress_bar=sys.stderr.isatty() if progress_bar is None else progress_bar,
        target_accept_prob=target_accept_prob,
        max_tree_depth=max_tree_depth,
    )
    started = time.perf_counter()
    result = _ENGINES[method](problem, settings)
    return Posterior(problem, result, settings, method, time.perf_counter() - started)
