r"""The likelihood of every person under many laws at once.

With nodes :math:`u_k` of log beta that serve all laws, the marginals are one product of two matrices,

.. math::
    E_s\Big[\prod_j P(y_{aj} \mid \beta)\Big] = \sum_k L_{ak} W_{ks}, \qquad
    L_{ak} = e^{\ell_a(u_k)}, \quad W_{ks} = p_s(u_k)\, \Delta,

where a law taken by itself costs an exponential for each person and node. Laws are sorted by how fine their nodes must
be: the trapezoidal rule resolves a density if every second node gives its mass as well. What none of the grids
resolves, or what a product would lose to underflow, is reported, and is left to the rule for one law.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.distributions.absorb import absorbed
from pluralpref.distributions.mixture import log_density
from pluralpref.distributions.structure import parts_of
from pluralpref.inference.interpolated_panels import InterpolatedPanels
from pluralpref.inference.marginal.dispatch import unwrap_law
from pluralpref.inference.marginal.mixture import mixed
from pluralpref.inference.tabulated_laws import is_negated

#: Each grid has half the distance of the one before.
_GRIDS = 6
#: What every second node may miss of a density's mass: the whole grid then misses the square of it, or less.
_RESOLVED = 3e-4
#: A density may end at the table's ends with so much of its mass beyond them: there a likelihood is constant.
_NEGLIGIBLE = 1e-12
#: Below this, a sum may have lost terms to underflow.
_UNDERFLOW = 1e-250
_LARGEST_BLOCK = 2**24
#: A law by itself takes about as long as this many values of densities.
_ALONE = 50_000
#: People by whose likelihoods a grid is tried, from the most to the least agreeing.
_TESTS = 6


def shared_log_marginals(table: InterpolatedPanels, law: Distribution) -> Iterator[tuple[slice, Tensor]]:
    """Log E_s[prod_j P(y_j | beta)] of every person under each law s, block by block of people.

    :param table: made from the choices.
    :param law: many laws, batch shape (S, 1), that
        :func:`~pluralpref.inference.tabulated_laws.can_tabulate` says yes to.
    :returns: (people, (S, people) nats); NaN for a law that has to be taken by itself.
    """
    law = unwrap_law(law)
    size = max(1, _LARGEST_BLOCK // (law.batch_shape[0] + table.num_nodes))
    plans = _plan(table, law)
    for start in range(0, table.num_people, size):
        people = slice(start, min(start + size, table.num_people))
        yield people, _evaluate(table, plans, people)


#: What is to be done, and with what: the strengths of point masses, the parts of a mixture, weights by grid.
_Plan = tuple[str, Any]


def _plan(table: InterpolatedPanels, law: Distribution) -> _Plan:
    """What doesn't depend on the people: made once."""
    law = absorbed(unwrap_law(law))
    count = law.batch_shape[0]
    if isinstance(law, Delta):
        return "points", law.v.reshape(count).double()
    if (parts := parts_of(law)) is not None:
        return "parts", ([w.reshape(count, 1).double() for w in parts[0]], [_plan(table, c) for c in parts[1]])
    if is_negated(law):
        return "opposed", _plan(table, law.base_dist)  # type: ignore[attr-defined]
    return "grids", _weights_by_grid(table, law)


def _evaluate(table: InterpolatedPanels, plan: _Plan, people: slice) -> Tensor:
    kind, content = plan
    if kind == "points":
        found = table.at(content.clamp_min(0), people)[0]
        if bool((content < 0).any()):
            other = table.opposed().at((-content).clamp_min(0), people)[0]
            found = torch.where(content.unsqueeze(1) < 0, other, found)
        return found
    if kind == "parts":
        shares, parts = content
        return mixed(shares, [_evaluate(table, part, people) for part in parts])
    if kind == "opposed":
        return _evaluate(table.opposed(), content, people)
    grids: list[tuple[Tensor, Tensor, Tensor]] = content
    num_people = len(range(*people.indices(table.num_people)))
    rows = sum(which.shape[0] for which, _, _ in grids)
    out = torch.full((rows, num_people), math.nan, dtype=torch.float64)
    for which, nodes, weights in grids:
        if not nodes.numel():
            continue
        likelihood = table.log_likelihood(nodes, people)
        highest = likelihood.amax(1, keepdim=True)
        sums = weights @ (likelihood - highest).exp_().T
        value = torch.log(sums) + highest.T
        out[which] = torch.where(sums > _UNDERFLOW, value, torch.full_like(value, math.nan))
    return out


def _ends_early(law: Distribution) -> bool:
    """Whether the support is bounded: a density that ends abruptly isn't smooth, so the rule's error isn't known."""
    upper = getattr(law.support, "upper_bound", None)
    return upper is not None and bool(torch.isfinite(torch.as_tensor(upper)).any())


@torch.no_grad()
def _weights_by_grid(table: InterpolatedPanels, law: Distribution) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(numbers of laws, nodes u, weights (laws, nodes)) for each grid; the last one, without nodes, is the rest."""
    left = torch.arange(law.batch_shape[0])
    grids: list[tuple[Tensor, Tensor, Tensor]] = []
    extremes = table.typical(_TESTS)
    # A multiple of four steps, so that every second or fourth node makes a rule of the same range.
    low, high = 0, (table.num_nodes - 1) // 4 * 4
    for level in range(_GRIDS):
        parts = 2**level
        nodes = (high - low) * parts
        if _ends_early(law) or len(left) * nodes * len(extremes) > _LARGEST_BLOCK:
            break
        if level and len(left) * _ALONE < law.batch_shape[0] * nodes:
            break
        u = table.first + table.step / parts * torch.arange(low * parts, high * parts + 1, dtype=torch.float64)
        density = (log_density(law, u.exp()) + u).double()[left]
        mass = torch.exp(density) * (table.step / parts)
        mass[:, 0] /= 2
        mass[:, -1] /= 2
        total, half, quarter = mass.sum(1), 2 * mass[:, ::2].sum(1), 4 * mass[:, ::4].sum(1)
        # The error of every second node has a phase, and may vanish by chance; that of every fourth then doesn't.
        resolved = ((total - half).abs() <= _RESOLVED) & ((total - quarter).abs() <= 2 * math.sqrt(_RESOLVED))
        whole = (total - 1).abs() <= _RESOLVED
        # A narrow law against choices that contradict it: the product lies where the law hardly is.
        likelihood = table.log_likelihood(u, extremes)
        joint = torch.nan_to_num(density, nan=-math.inf).unsqueeze(1) + likelihood
        joint[..., 0] -= math.log(2)
        joint[..., -1] -= math.log(2)
        wide, narrow = torch.logsumexp(joint, -1), torch.logsumexp(joint[..., ::2], -1) + math.log(2)
        resolved = resolved & ((wide - narrow).abs() <= _RESOLVED).all(1)
        if level == 0:
            # Beyond the table's ends nothing changes: the mass there belongs to the end that the density reaches.
            open_left, open_right = mass[:, 0] > _NEGLIGIBLE, mass[:, -1] > _NEGLIGIBLE
            rest = (1 - total).clamp_min(0)
            mass[:, 0] += torch.where(open_left, rest, 0.0)
            mass[:, -1] += torch.where(open_right, rest, 0.0)
            # How it is shared between two open ends isn't known.
            whole = (whole | open_left | open_right) & ~(open_left & open_right)
        mine = resolved & whole
        if bool(mine.any()):
            weights = mass[mine]
            used = (weights > 0).any(0)
            grids.append((left[mine], u[used], (weights / weights.sum(1, keepdim=True))[:, used]))
        left = left[~mine]
        if not left.numel():
            break
        # Narrow laws need fine grids where they are only.
        joint = torch.cat([joint, torch.nan_to_num(density, nan=-math.inf).unsqueeze(1)], 1)[~mine].flatten(0, 1)
        near = (joint >= joint.amax(1, keepdim=True) - table.depth).any(0).nonzero()[:, 0]
        low, high = max(low, low + int(near[0]) // parts - 1), min(high, low + int(near[-1]) // parts + 2)
    grids.append(
        (left, left.new_zeros(0, dtype=torch.float64), left.new_zeros((left.shape[0], 0), dtype=torch.float64))
    )
    return grids
