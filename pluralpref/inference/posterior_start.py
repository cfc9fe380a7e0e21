"""Where a sampler or a search begins."""

from __future__ import annotations

import torch
from torch import Tensor

from pluralpref.errors import InferenceError
from pluralpref.inference.posterior_coordinates import Coordinates

_START_ATTEMPTS = 50
_START_RADIUS = 0.5
_PRIOR_DRAWS_FOR_START = 1001


def find_start(coordinates: Coordinates) -> dict[str, Tensor]:
    """A jittered point near the priors' medians (and on the ridge, where there is one), in the sampler's coordinates.

    It doesn't depend on where training ended; the jitter comes from the global generator.

    :raises InferenceError: if none of 50 points has a finite density and gradient.
    """
    problem = coordinates.problem
    medians = {
        name: prior.sample(torch.Size([_PRIOR_DRAWS_FOR_START])).double().quantile(0.5, dim=0)
        for name, prior in problem.priors.items()
    }
    centre = coordinates.free(medians)
    if coordinates.ridge is not None:
        centre["beta_mean"] = torch.zeros_like(centre["beta_mean"])
    for _ in range(_START_ATTEMPTS):
        start = {name: z + (2 * torch.rand_like(z) - 1) * _START_RADIUS for name, z in centre.items()}
        leaves = {name: z.clone().requires_grad_() for name, z in start.items()}
        potential = coordinates.potential(leaves)
        gradients = torch.autograd.grad(potential, list(leaves.values()))
        if bool(torch.isfinite(torch.stack([potential, *(g.sum() for g in gradients)])).all()):
            return start
    raise InferenceError(
        f"{problem.strength!r}: the posterior density is not finite anywhere near the priors' medians "
        f"({_START_ATTEMPTS} points tried); check the margins' scale, or pass priors={{...}}"
    )
