"""Held-out choices of known people: predicted by the population, by each person's own conditional strength, by taste."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid
from train_data import TrainChoices

from pluralpref.inference import log_marginal_panel


def split(person: Tensor, share: float, seed: int) -> Tensor:
    """Which choices are held out: ``share`` of each person's, at least one, drawn from ``seed``.

    :returns: (choices,) bool.
    """
    generator = np.random.default_rng(seed)
    codes = person.numpy()
    out = np.zeros(len(codes), dtype=bool)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        out[generator.permutation(rows)[:count]] = True
    return torch.from_numpy(out)


def conditional_log_prob(
    law: Distribution, margins: Tensor, person: Tensor, new_margins: Tensor, new_person: Tensor, num_people: int
) -> Tensor:
    r"""Log P(new choice | the person's other choices), for each new choice by itself.

    .. math:: P(y \mid y_a) = E[\sigma(\beta h) \prod_j \sigma(\beta h_j)] \,/\, E[\prod_j \sigma(\beta h_j)],

    two panel marginals: one for each person, and one for each new choice with that person's choices.

    :param margins: (choices,) of the choices that are known.
    :param new_margins: (new,) of chosen over other, as the choices to be predicted turned out.
    :returns: (new,) nats.
    """
    known = log_marginal_panel(law, margins, person, num_people)
    counts = torch.bincount(person, minlength=num_people)
    starts = counts.cumsum(0) - counts
    order = torch.argsort(person, stable=True)
    sizes = counts[new_person]
    panel = torch.arange(len(new_person)).repeat_interleave(sizes)
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    copied = order[starts[new_person].repeat_interleave(sizes) + within]
    both = log_marginal_panel(
        law,
        torch.cat([margins[copied], new_margins]),
        torch.cat([panel, torch.arange(len(new_person))]),
        len(new_person),
    )
    return both - known[new_person]


def taste_log_prob(known: TrainChoices, new: TrainChoices, penalty: float) -> Tensor:
    r"""Log P of new choices with coefficients of each person's own, for comparison: differences of taste, not of strength.

    A logit with coefficients w + d_a on attributes of standard deviation 1, fitted with the penalty
    ``penalty``/2 · Σ_a \|d_a\|².
    """
    spread = known.differences.std(0)
    x, x_new = known.chosen_minus_other / spread, new.chosen_minus_other / spread
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    own = torch.zeros((known.num_people, x.shape[1]), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w, own], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        margins = (x * (w + own[known.person])).sum(-1)
        value = -logsigmoid(margins).sum() + penalty / 2 * (own**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return logsigmoid((x_new * (w + own[new.person])).sum(-1))


def clustered_mean(values: Tensor, person: Tensor) -> tuple[float, float]:
    """A mean over choices, and its standard error with people, not choices, as independent units."""
    mean = values.mean()
    sums = torch.zeros(int(person.max()) + 1, dtype=values.dtype).index_add(0, person, values - mean)
    people = torch.bincount(person).count_nonzero()
    return float(mean), float((sums**2).sum().mul(people / (people - 1)).sqrt() / len(values))
