r"""The likelihood of each choice given the same person's other choices: what leaves one pair out of a panel.

.. math::
    \log p(y_{aj} \mid y_{a,-j}, \theta_s)
      = \log E_{\beta \mid \theta_s}\Big[\prod_i P(y_{ai} \mid \beta)\Big]
      - \log E_{\beta \mid \theta_s}\Big[\prod_{i \ne j} P(y_{ai} \mid \beta)\Big].

The ratio of the posteriors with and without a pair is the inverse of this, so it is what importance sampling for
leave-one-out needs; treating the choices as independent would leave out what the person's other choices say.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pluralpref.errors import UnsupportedError
from pluralpref.inference.choices import rows_among
from pluralpref.inference.conditional import choice_terms, grid_of_draws, unit_likelihoods
from pluralpref.inference.contexts import people_by_context
from pluralpref.inference.posterior_problem import PosteriorProblem

_BLOCK_ELEMENTS = 2**23


@torch.no_grad()
def pair_log_likelihood(problem: PosteriorProblem, draws: Mapping[str, Tensor]) -> Tensor:
    """Log p(y_j | the same person's other choices, theta), (S, pairs) float64, nats.

    :param problem: with annotators; else every pair is a unit of its own, and this is its log_likelihood.
    :param draws: (S, ...) by parameter name.
    :raises UnsupportedError: where columns that the strength reads change between one person's choices.
    """
    data, contexts = problem.choices, problem.contexts
    if data.annotator is None:
        return problem.log_likelihood(draws).double()
    if contexts is not None and contexts.varies:
        raise UnsupportedError(f"{contexts.describe_varying()}: leave out one annotator instead of one pair")
    count = next(iter(draws.values())).shape[0]
    out = torch.empty(count, data.num_pairs, dtype=torch.float64)
    for people, context in people_by_context(contexts, data.num_annotators):
        grid = grid_of_draws(problem.twin, draws, context)
        for part, likelihood in unit_likelihoods(data, people, grid.strength):
            pairs, places = rows_among(data.annotator, part, data.num_annotators)
            whole = _log_average(likelihood, grid.weight)
            size = max(1, _BLOCK_ELEMENTS // len(grid.strength))
            for block, person in zip(pairs.split(size), places.split(size), strict=True):
                others = likelihood[person] - choice_terms(data, block, grid.strength)
                out[:, block] = (whole[person] - _log_average(others, grid.weight)).T
    return out


def _log_average(likelihood: Tensor, weight: Tensor) -> Tensor:
    """(units, nodes), (S, nodes) to log sum_k e^likelihood weight, (units, S)."""
    highest = likelihood.amax(1, keepdim=True)
    return torch.log((likelihood - highest).exp() @ weight.T) + highest
