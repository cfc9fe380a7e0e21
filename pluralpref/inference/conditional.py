r"""The strength of a pair or a person, given what was chosen: p(beta | choices), by quadrature.

For draws :math:`\theta_s` of the posterior and a person with likelihood :math:`L_a(\beta) = \prod_j P(y_{aj} \mid \beta)`,

.. math::
    p(\beta \mid y_a, D) = \sum_s r_{as}\, p(\beta \mid \theta_s)\, L_a(\beta), \qquad
    Z_{as} = E_{\beta \mid \theta_s}[L_a(\beta)],

with :math:`r_{as} = 1 / (S Z_{as})` for people whose choices are part of the data D that the draws were made from, and
:math:`r_{as} = 1 / \sum_t Z_{at}` for others, whose choices say something about :math:`\theta` that the draws don't know.

Reference: K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, chapter 11 (individual-level parameters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, logsigmoid

from pluralpref.distributions.mixture import log_density
from pluralpref.distributions.structure import has_atoms
from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference.choices import Choices, rows_among
from pluralpref.inference.contexts import Contexts, people_by_context
from pluralpref.inference.posterior_problem import laws_of_draws
from pluralpref.inference.strength_grid import StrengthGrid, make_grid
from pluralpref.models import StrengthModel

_BLOCK_ELEMENTS = 2**23
#: The widest range of logs whose exponentials, relative to the largest, are all far from 0 in float64.
_WIDEST = 500.0
#: Sums below this may lack terms that were too small for float64.
_LOST = 1e-250


class ConditionalStrengths:
    """The conditional posterior of beta for each unit: each annotator, or each pair where annotators are unknown.

    Made by :meth:`Posterior.beta_given_choices`.

    :param labels: of the units.
    :param mean: E[beta | choices], (units,). Under laws without a mean that of someone whose choices all agree with the
        margin is infinite, and the number here is only very large: use :meth:`quantile`, which is right for all.
    :param std: its standard deviation, (units,). The same holds for laws without a variance.
    :param below_median: the probability that |beta| is below the population's median: that the person is less sensitive
        than the median person, (units,).
    :param opposed: the probability that beta is negative: that the person prefers what the margin speaks against,
        (units,).
    """

    def __init__(
        self,
        twin: StrengthModel,
        draws: Mapping[str, Tensor],
        choices: Choices,
        *,
        seen: bool,
    ) -> None:
        self._twin, self._draws, self._choices, self._seen = twin, draws, choices, seen
        self._contexts = Contexts(twin, choices) if twin.context_columns else None
        if self._contexts is not None and self._contexts.varies:
            raise UnsupportedError(
                f"{self._contexts.describe_varying()}: their conditional posterior by quadrature isn't available; use "
                "draws('beta_annotator'), each person's strength at effect 0"
            )
        self.labels: Sequence[Any] = choices.annotator_names or range(choices.num_pairs)
        count = len(self.labels)
        self.mean, self.std, self.below_median, self.opposed = (np.empty(count) for _ in range(4))
        self._quantiles: dict[float, np.ndarray] = {}
        self._log_z = np.empty((count, next(iter(draws.values())).shape[0]))
        #: (units, nodes of their laws, context) for each set of units with one context.
        self._grids = [
            (people, grid_of_draws(twin, draws, context), context)
            for people, context in people_by_context(self._contexts, count)
        ]
        for people, grid, _ in self._grids:
            for part, likelihood in unit_likelihoods(choices, people, grid.strength):
                self._summarise(part, grid, likelihood)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        kind = "annotators" if self._choices.annotator is not None else "pairs"
        return f"ConditionalStrengths({len(self)} {kind}, mean of beta {self.mean.min():.3g} to {self.mean.max():.3g})"

    # -- results -------------------------------------------------------------------------------------------------

    def quantile(self, q: float) -> np.ndarray:
        """The q-quantile of beta for each unit, (units,).

        :raises ConfigError: if q is outside (0, 1).
        """
        if not 0 < q < 1:
            raise ConfigError(f"q={q}: must lie strictly between 0 and 1")
        return self._quantiles_at((q,))[0]

    def _quantiles_at(self, levels: tuple[float, ...]) -> list[np.ndarray]:
        new = [q for q in levels if q not in self._quantiles]
        if new:
            out = np.empty((len(self), len(new)))
            for people, grid, _ in self._grids:
                for part, likelihood in unit_likelihoods(self._choices, people, grid.strength):
                    mass = self._masses(part, grid, likelihood)
                    # Half of a node's mass lies on either side of it.
                    below = (mass.cumsum(1) - mass / 2) / mass.sum(1, keepdim=True)
                    out[part.numpy()] = [np.interp(new, row, grid.strength.numpy()) for row in below.numpy()]
            self._quantiles.update(zip(new, out.T, strict=True))
        return [self._quantiles[q] for q in levels]

    def interval(self, prob: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) ends of the equal-tailed interval with mass ``prob``, (units,) each.

        :raises ConfigError: if prob is outside (0, 1).
        """
        if not 0 < prob < 1:
            raise ConfigError(f"prob={prob}: must lie strictly between 0 and 1")
        low, high = self._quantiles_at(((1 - prob) / 2, (1 + prob) / 2))
        return low, high

    @torch.no_grad()
    def density(self, beta: Any) -> np.ndarray:
        """The density of beta for each unit, (units, points).

        :param beta: (points,).
        :raises UnsupportedError: where the law has point masses.
        """
        if has_atoms(self._twin.law()):
            raise UnsupportedError(f"{type(self._twin).__name__} has point masses, so beta has no density")
        points = torch.as_tensor(beta, dtype=torch.float64).reshape(-1)
        out = np.empty((len(self), len(points)))
        for people, _, context in self._grids:
            (_, _, law), *rest = laws_of_draws(self._twin, self._draws, self._num_draws, context, 1)
            laws = [law, *(other for _, _, other in rest)]
            population = torch.cat([log_density(one, points).double() for one in laws])
            for part, likelihood in unit_likelihoods(self._choices, people, points):
                prior = _log_weighted_sums(self._shares(part), population)
                out[part.numpy()] = (likelihood + prior).exp().numpy()
        return out

    @torch.no_grad()
    def probability(self, margins: Any, unit: Any) -> np.ndarray:
        """E[sigmoid(beta h)] of known units for further pairs, each with its own conditional law of beta; (pairs,).

        :param margins: h of the new pairs, nats.
        :param unit: the label of each pair's unit.
        :raises DataError: for an unknown label.
        """
        h = torch.as_tensor(margins, dtype=torch.float64).reshape(-1)
        code_of = {label: code for code, label in enumerate(self.labels)}
        labels = list(unit)
        unknown = [row for row, label in enumerate(labels) if label not in code_of]
        if unknown or len(labels) != len(h):
            raise DataError(
                f"there are {len(h)} margins and {len(labels)} labels"
                if not unknown
                else f"row {unknown[0]}: {labels[unknown[0]]!r} is none of the {len(self)} units with choices; for others "
                "use Posterior.probability, the population's"
            )
        code = torch.tensor([code_of[label] for label in labels], dtype=torch.int64)
        out = torch.empty_like(h)
        for people, grid, _ in self._grids:
            for part, likelihood in unit_likelihoods(self._choices, people, grid.strength):
                mass = self._masses(part, grid, likelihood)
                mass = mass / mass.sum(1, keepdim=True)
                rows, places = rows_among(code, part, len(self))
                size = max(1, _BLOCK_ELEMENTS // len(grid.strength))
                for block, place in zip(rows.split(size), places.split(size), strict=True):
                    chances = torch.sigmoid(torch.outer(h[block], grid.strength))
                    out[block] = (chances * mass[place]).sum(1)
        return out.numpy()

    def table(self, prob: float = 0.95) -> Any:
        """One row for each unit: choices, agreement, mean, interval, and the two probabilities; a pandas ``DataFrame``."""
        import pandas as pd

        data = self._choices
        code = torch.arange(data.num_pairs) if data.annotator is None else data.annotator
        counts = torch.bincount(code, minlength=len(self)).double()
        agrees = torch.where(data.margins == 0, 0.5, (data.margins > 0).double())
        agrees = data.preferred * agrees + (1 - data.preferred) * (1 - agrees)
        low, high = self.interval(prob)
        return pd.DataFrame(
            {
                "choices": counts.long().numpy(),
                "agreement": (torch.bincount(code, weights=agrees, minlength=len(self)) / counts).numpy(),
                "beta_mean": self.mean,
                "beta_sd": self.std,
                f"eti_{prob:.0%}_low": low,
                f"eti_{prob:.0%}_high": high,
                "less_sensitive": self.below_median,
                "opposed": self.opposed,
            },
            index=pd.Index(
                [str(label) for label in self.labels], name="annotator" if data.annotator is not None else "pair"
            ),
        )

    # -- how -----------------------------------------------------------------------------------------------------

    @property
    def _num_draws(self) -> int:
        return next(iter(self._draws.values())).shape[0]

    def _summarise(self, part: Tensor, grid: StrengthGrid, likelihood: Tensor) -> None:
        shift = likelihood.amax(1, keepdim=True)
        z = (likelihood - shift).exp() @ grid.weight.T
        log_z = torch.log(z) + shift
        # Draws under which the person's choices are out of the question are 0 beside the best strength.
        for unit in (z < _LOST).any(1).nonzero()[:, 0]:
            log_z[unit] = torch.logsumexp(likelihood[unit] + grid.weight.log(), 1)
        self._log_z[part.numpy()] = log_z.numpy()
        mass = self._masses(part, grid, likelihood)
        total = mass.sum(1)
        mean = mass @ grid.strength / total
        square = (mass * (grid.strength - mean.unsqueeze(1)) ** 2).sum(1) / total
        below = self._weighted(part, grid.weight * grid.share_below_median(), likelihood).sum(1)
        rows = part.numpy()
        self.mean[rows], self.std[rows] = mean.numpy(), square.sqrt().numpy()
        self.below_median[rows] = (below / total).numpy()
        self.opposed[rows] = (mass @ (grid.strength < 0).double() / total).numpy()

    def _shares(self, part: Tensor) -> Tensor:
        """Log r_as, (units, draws)."""
        log_z = torch.as_tensor(self._log_z[part.numpy()])
        if self._seen:
            return -log_z - math.log(log_z.shape[1])
        return -torch.logsumexp(log_z, 1, keepdim=True).expand_as(log_z)

    def _masses(self, part: Tensor, grid: StrengthGrid, likelihood: Tensor) -> Tensor:
        """The conditional mass of each node, (units, nodes)."""
        return self._weighted(part, grid.weight, likelihood)

    def _weighted(self, part: Tensor, weight: Tensor, likelihood: Tensor) -> Tensor:
        """Sum_s r_as weight_sk L_a(beta_k), (units, nodes)."""
        return (likelihood + _log_weighted_sums(self._shares(part), weight.log())).exp()


def _log_weighted_sums(shares: Tensor, population: Tensor) -> Tensor:
    """The log of sum_s exp(shares_as + population_sp), (units, points); shares (units, draws), population (draws, points).

    By a product of matrices, which is the faster way, except for units whose shares differ so much that the largest term
    may come from the product of a number that is too small and one that is too large.
    """
    top = shares.amax(1, keepdim=True)
    high = population.amax(0, keepdim=True)
    high = torch.where(torch.isfinite(high), high, 0.0)
    value = torch.log((shares - top).exp() @ (population - high).exp()) + top + high
    for unit in (top[:, 0] - shares.amin(1) > _WIDEST).nonzero()[:, 0]:
        value[unit] = torch.logsumexp(shares[unit].unsqueeze(1) + population, 0)
    return value


def grid_of_draws(twin: StrengthModel, draws: Mapping[str, Tensor], context: Any = None) -> StrengthGrid:
    """Nodes for the laws of many draws, in one grid.

    :param context: with one row, or ``None``.
    """
    count = next(iter(draws.values())).shape[0]
    laws = [law for _, _, law in laws_of_draws(twin, draws, count, context, 1)]
    if len(laws) == 1:
        return make_grid(laws[0])
    # A family that doesn't broadcast over draws: the grids side by side.
    grids = [make_grid(law) for law in laws]
    strength = torch.cat([grid.strength for grid in grids])
    order = torch.argsort(strength)
    weight = torch.block_diag(*(grid.weight for grid in grids))[:, order]
    return StrengthGrid(strength[order], weight)


@torch.no_grad()
def unit_likelihoods(choices: Choices, units: Tensor, strength: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(units, their log-likelihoods at given strengths (units, nodes)) in blocks.

    :param units: codes of annotators, or numbers of pairs where annotators are unknown.
    :param strength: (nodes,).
    """
    code = torch.arange(choices.num_pairs) if choices.annotator is None else choices.annotator
    wanted = torch.zeros(int(code.max()) + 1, dtype=torch.bool)
    wanted[units] = True
    rows = wanted[code].nonzero()[:, 0]
    rows = rows[torch.argsort(code[rows], stable=True)]
    counts = torch.bincount(code[rows], minlength=len(wanted))[units]
    ends = counts.cumsum(0)
    size = max(1, _BLOCK_ELEMENTS // len(strength))
    start = 0
    while start < len(units):
        begin = int(ends[start] - counts[start])
        stop = max(start + 1, int(torch.searchsorted(ends, torch.tensor(begin + size), right=True)))
        stop = min(stop, len(units))
        mine = rows[begin : int(ends[stop - 1])]
        terms = choice_terms(choices, mine, strength)
        offsets = ends[start:stop] - counts[start:stop] - begin
        yield units[start:stop], embedding_bag(torch.arange(len(mine)), terms, offsets, mode="sum")
        start = stop


def choice_terms(choices: Choices, pairs: Tensor, strength: Tensor) -> Tensor:
    """The log-likelihood of single choices at given strengths, weights included, (pairs, nodes)."""
    logits = torch.outer(choices.margins[pairs], strength)
    p = choices.preferred[pairs, None]
    value = logsigmoid(torch.where(p >= 0.5, logits, -logits))
    soft = (p > 0) & (p < 1)
    if bool(soft.any()):
        value = torch.where(soft, p * logsigmoid(logits) + (1 - p) * logsigmoid(-logits), value)
    return value if choices.weight is None else value * choices.weight[pairs, None]
