"""Quantities of each draw beyond the parameters: strengths, and the choices that the model would make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pluralpref.inference.posterior_problem import PosteriorProblem


@torch.no_grad()
def population_strengths(problem: PosteriorProblem, draws: Mapping[str, Tensor]) -> Tensor:
    """One beta of a person not in the data for each draw, (S,) float64. Uses the global generator.

    Where the law depends on columns, the person's groups have effect 0 and their covariates are 0.
    """
    return torch.cat([law.sample()[:, 0].double() for _, _, law in problem.laws(draws)])


@torch.no_grad()
def draw_choices(
    problem: PosteriorProblem, draws: Mapping[str, Tensor], annotator_strengths: Tensor | None = None
) -> np.ndarray:
    """Replicated choices by the generative story, (S, pairs) int8. Uses the global generator.

    :param annotator_strengths: (S, annotators) strengths to choose with; otherwise new ones are drawn, for each
        annotator, or for each pair where annotators are unknown.
    """
    data = problem.choices
    rows = next(iter(draws.values())).shape[0]
    out = np.empty((rows, data.num_pairs), dtype=np.int8)
    for start, stop, beta, factor in _strengths(problem, draws, annotator_strengths):
        if data.annotator is not None:
            beta = beta[:, data.annotator]
        if factor is not None:
            beta = beta * factor
        probability = torch.sigmoid(beta.float() * data.margins.float())
        out[start:stop] = torch.bernoulli(probability).to(torch.int8).numpy()
    return out


def _strengths(
    problem: PosteriorProblem, draws: Mapping[str, Tensor], given: Tensor | None
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """(start, stop, strengths (draws, units), factors of the pairs) in blocks of draws."""
    if problem.contexts is None or (given is not None and not problem.contexts.varies):
        for start, stop, law in problem.laws(draws):
            new = law.expand(torch.Size((stop - start, problem.num_units))) if given is None else None
            yield start, stop, new.sample() if new is not None else given[start:stop], None  # type: ignore[index]
        return
    for row in range(next(iter(draws.values())).shape[0]):
        law, factor = problem.law_of_units({name: value[row] for name, value in draws.items()})
        beta = law.expand(torch.Size([problem.num_units])).sample() if given is None else given[row]
        yield row, row + 1, beta.reshape(1, -1), factor


@torch.no_grad()
def draw_prior(problem: PosteriorProblem, num_draws: int) -> dict[str, Tensor]:
    """Parameters from their priors, (num_draws, ...) float64 by name. Uses the global generator."""
    return {name: prior.sample(torch.Size([num_draws])).double() for name, prior in problem.priors.items()}
