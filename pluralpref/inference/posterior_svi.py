r"""Stochastic variational inference on the collapsed model, with any of Pyro's automatic guides.

Every strength is integrated out, so the guide is over the few global parameters only. How well it fits is measured: by
the Pareto shape of the weights of its own draws against the posterior.

References
[1] D. Wingate and T. Weber, "Automated variational inference in probabilistic programming", arXiv:1301.1299 (2013).
[2] Y. Yao, A. Vehtari, D. Simpson, A. Gelman, "Yes, but did it work?: Evaluating variational inference", ICML 2018,
    arXiv:1802.02538.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from pluralpref.errors import ConfigError, InferenceError, NumericsWarning
from pluralpref.inference.arviz_data import MAX_PARETO_K, pareto_smooth
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior_engine import EngineResult, SamplerSettings
from pluralpref.inference.posterior_problem import PosteriorProblem

#: Guides with a density and draws; AutoDelta has no spread, so it gives no posterior.
GUIDES = (
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
)
#: Each step's gradient averages over so many draws of the guide.
_PARTICLES = 2
#: The norm that a step's gradient is cut to.
_LARGEST_GRADIENT = 100.0
#: Converged: over the last two fifths, the mean loss fell by less than this many of its standard errors, or nats.
_STANDARD_ERRORS, _NATS = 3.0, 0.05
_GUIDE_DRAWS = 2000


def run_svi(problem: PosteriorProblem, settings: SamplerSettings) -> EngineResult:
    """Fit a guide and draw from it.

    :raises ConfigError: for an unknown guide, or a batch larger than the data.
    :raises InferenceError: if the loss stops being a number.
    """
    if settings.guide not in GUIDES:
        raise ConfigError(f"guide={settings.guide!r}: choose one of {', '.join(GUIDES)}")
    if settings.batch_size is not None and settings.batch_size >= problem.num_units:
        raise ConfigError(
            f"batch_size={settings.batch_size} has no effect: there are {problem.num_units} "
            f"{'annotators' if problem.is_panel else 'pairs'} in all; leave it out"
        )
    with warnings.catch_warnings(), borrowed_state(child_seed(settings.seed, 0), threads=1):
        warnings.simplefilter("ignore", NumericsWarning)
        with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
            model = _model(problem, settings.batch_size)
            guide: Any = getattr(autoguide, settings.guide)(model)
            losses = _fit(model, guide, settings)
            if settings.guide == "AutoLaplaceApproximation":
                guide = guide.laplace_approximation()
            draws = _draw(guide, problem.names, settings.num_samples * settings.num_chains)
            k = math.nan if problem.is_too_large else _fit_of_guide(problem, guide)
    drift, error = _drift(losses)
    settled = drift <= max(_STANDARD_ERRORS * error, _NATS)
    problems = []
    if not settled:
        problems.append(f"the ELBO was still rising, by {drift:.2g} nats over the last two fifths of the steps")
    if problem.is_too_large:
        problems.append(
            f"how well the guide fits wasn't measured: {_GUIDE_DRAWS} of its draws would integrate "
            f"{problem.choices.num_pairs:,} choices each"
        )
    elif not k <= MAX_PARETO_K:
        problems.append(f"Pareto k-hat {k:.2f} of the guide's draws (wanted: <= {MAX_PARETO_K})")
    facts = {
        "guide": settings.guide,
        "num_steps": settings.num_steps,
        "batch_size": settings.batch_size or problem.num_units,
        "elbo": -float(np.mean(losses[-max(1, len(losses) // 5) :])),
        "elbo_drift": drift,
        "pareto_k": k,
    }
    shape = (settings.num_chains, settings.num_samples)
    draws = {name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()}
    return EngineResult(draws, {}, facts, tuple(problems))


def _model(problem: PosteriorProblem, batch_size: int | None) -> Callable[[], None]:
    if batch_size is None:
        return problem

    def minibatch() -> None:
        values = {name: pyro.sample(name, prior) for name, prior in problem.priors.items()}
        with pyro.plate("units", problem.num_units, subsample_size=batch_size) as units:
            pyro.factor("preferred", problem.terms_of(values, units))

    return minibatch


def _fit(model: Callable[[], None], guide: AutoGuide, settings: SamplerSettings) -> list[float]:
    elbo = Trace_ELBO(_PARTICLES)(model, guide)
    elbo()  # makes the guide's parameters
    optimiser = torch.optim.Adam(elbo.parameters(), lr=settings.learning_rate)
    # The learning rate falls a hundredfold, so that the last steps average out the gradient's noise.
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.01 ** (1 / settings.num_steps))
    losses = []
    show = settings.progress_bar
    with tqdm(total=settings.num_steps, desc="posterior (svi)", unit="step", disable=not show) as bar:
        for step in range(settings.num_steps):
            optimiser.zero_grad()
            loss = elbo()
            if not bool(torch.isfinite(loss)):
                raise InferenceError(
                    f"the ELBO stopped being a number in step {step + 1} of {settings.num_steps}: lower learning_rate "
                    f"({settings.learning_rate}), or use method='laplace'"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(elbo.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            bar.update()
    return losses


@torch.no_grad()
def _draw(guide: Any, names: list[str], count: int) -> dict[str, Tensor]:
    rows = [guide() for _ in range(count)]
    return {name: torch.stack([row[name].detach().double() for row in rows]) for name in names}


@torch.no_grad()
def _fit_of_guide(problem: PosteriorProblem, guide: Any) -> float:
    """Pareto k-hat of posterior over guide, from draws of the guide."""
    rows: dict[str, list[Tensor]] = {name: [] for name in problem.names}
    density = []
    for _ in range(_GUIDE_DRAWS):
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        # A vector's change of variables is a site with a density of its own, or its Jacobian is in the Delta's.
        density.append(sum(site["log_prob_sum"] for site in trace.nodes.values() if site["type"] == "sample"))
        for name in problem.names:
            rows[name].append(trace.nodes[name]["value"].double())
    draws = {name: torch.stack(values) for name, values in rows.items()}
    joint = problem.log_prior(draws) + problem.total_log_likelihood(draws)
    return pareto_smooth(joint - torch.stack(density))[1]


def _drift(losses: list[float]) -> tuple[float, float]:
    """(fall of the mean loss from the last but one fifth of the steps to the last, its standard error)."""
    fifth = max(1, len(losses) // 5)
    before, after = np.array(losses[-2 * fifth : -fifth] or losses[:1]), np.array(losses[-fifth:])
    spread = math.sqrt(before.var() / len(before) + after.var() / len(after))
    return float(before.mean() - after.mean()), spread
