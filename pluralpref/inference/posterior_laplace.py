r"""The mode and the curvature of the posterior, and draws by importance resampling.

In the coordinates of :mod:`~pluralpref.inference.posterior_coordinates` the posterior of a handful of parameters is
near normal. Proposals come from a Student t law at the mode with the inverse Hessian as its scale matrix; their weights
make up for what it isn't, and the Pareto shape of the weights' tail says whether they can. Where they can't, as where one
parameter makes up for another along a bend, the next proposals follow the weighted draws: first one law with their mean and
covariance, then a mixture of such laws for the slices of their longest axis.

References
[1] L. Tierney and J. Kadane, "Accurate approximations for posterior moments and marginal densities", JASA 81 (1986).
[2] A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto smoothed importance sampling", JMLR 25 (2024),
    arXiv:1507.02646.
[3] O. Cappé, R. Douc, A. Guillin, J.-M. Marin, C. P. Robert, "Adaptive importance sampling in general mixture classes",
    Statistics and Computing 18 (2008), arXiv:0710.4242.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm.auto import tqdm

from pluralpref.errors import InferenceError, NumericsWarning
from pluralpref.inference.arviz_data import MAX_PARETO_K, pareto_smooth
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior_coordinates import Coordinates
from pluralpref.inference.posterior_engine import EngineResult, SamplerSettings
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.posterior_start import find_start

#: Degrees of freedom of the proposals: tails heavier than any posterior here, few proposals wasted in them.
_DEGREES = 5.0
#: By default; fewer where each costs a direct integration of all choices.
_PROPOSALS, _DIRECT_PROPOSALS = 4000, 1000
_RESTARTS = 3
#: Rounds in which the proposal is taken from the weighted draws, where the first doesn't fit: as one law, then in slices.
_ADAPTATIONS, _IN_ONE = 5, 2
_SLICES = 4
#: A round with at least this share of effective draws is good enough.
_EFFICIENT = 0.3
#: And one that has that many times the effective draws of the rounds before isn't the last.
_IMPROVED = 1.3
#: Fewer effective draws than these are too few to report; so many times the proposals are drawn at most to get there.
_ENOUGH, _MOST_TIMES = 500.0, 8
#: The same for the weights' tail: a k-hat near the limit may hide a tail that no proposal has reached.
_GOOD_PARETO_K = 0.4
#: A share of the proposals has a scale several times that of the mode's curvature, for tails that it doesn't know of.
_WIDE_SHARE, _WIDE_SCALE = 0.15, 3.0
_NEWTON_STEPS = 12
#: Of a Newton step, in standard deviations of the posterior.
_CLOSE = 1e-3
#: Two modes further apart than this, in standard deviations, are two.
_APART = 1.0
#: A folded coordinate is even around 0, where its law is degenerate and a gamma law's second derivatives have lost their
#: digits: nearer to 0 than this the curvature is taken here, where it is the same to a relative 1e-3.
_BESIDE_ZERO = 0.02
_MOST_FOLDED = 8


@dataclass(frozen=True)
class _Mode:
    """A maximum of the density: where, log p there, and the covariance that belongs to the curvature."""

    location: Tensor
    height: float
    covariance: Tensor


def run_laplace(problem: PosteriorProblem, settings: SamplerSettings) -> EngineResult:
    """Draws that depend on ``settings.seed`` alone.

    :raises InferenceError: if no mode is found, the Hessian isn't positive definite, or Pareto k-hat is above 0.7; the
        message names the method to use instead.
    """
    if problem.is_too_large:
        raise InferenceError(
            f"{problem.choices.num_pairs:,} choices would all be integrated anew for each proposal, because "
            f"{problem.why_no_table}: use method='svi' with batch_size=..."
        )
    with warnings.catch_warnings(), borrowed_state(child_seed(settings.seed, 0), threads=1):
        # What is tried far outside of the posterior has no weight; an integral that is hard there is no news.
        warnings.simplefilter("ignore", NumericsWarning)
        target = _Target(Coordinates(problem))
        modes = _find_modes(target)
        # How many rounds of proposals there will be isn't known before.
        with tqdm(desc="posterior (laplace)", unit="proposal", disable=not settings.progress_bar) as bar:
            draws, facts, stats = _importance_resample(target, modes, settings, bar)
    shape = (settings.num_chains, settings.num_samples)
    draws = {name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()}
    return EngineResult(draws, {name: value.reshape(shape) for name, value in stats.items()}, facts)


class _Target:
    """The log-density in flat coordinates (d,)."""

    def __init__(self, coordinates: Coordinates) -> None:
        self.coordinates = coordinates
        self.problem = coordinates.problem
        start = find_start(coordinates)
        self.shapes = {name: value.shape for name, value in start.items()}
        self.folded = torch.cat(
            [torch.full((max(1, shape.numel()),), coordinates.is_folded(name)) for name, shape in self.shapes.items()]
        )
        if int(self.folded.sum()) > _MOST_FOLDED:
            raise InferenceError(
                f"{int(self.folded.sum())} spreads whose posterior may reach 0 are too many for method='laplace' "
                f"(at most {_MOST_FOLDED}): use method='nuts'"
            )

    def start(self) -> Tensor:
        """A jittered start, flat."""
        return torch.cat([value.reshape(-1) for value in find_start(self.coordinates).values()])

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """(..., d) to coordinates by parameter name, (..., *shape)."""
        parts = torch.split(z, [max(1, shape.numel()) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape((*z.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def fast(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log-density and its gradient."""
        leaf = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        value = self.coordinates.potential(self.split(leaf))
        (slope,) = torch.autograd.grad(value, leaf)
        if not bool(torch.isfinite(value)) or not bool(torch.isfinite(slope).all()):
            return math.inf, np.zeros_like(z)
        return float(value.detach()), slope.numpy()

    def curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient, Hessian) of minus the log-density, exact, from twice differentiable marginals."""
        z = torch.where(self.folded & (z.abs() < _BESIDE_ZERO), torch.full_like(z, _BESIDE_ZERO), z)

        def prior(x: Tensor) -> Tensor:
            values, jacobian = self.coordinates.constrain(self.split(x))
            return self.problem.log_prior_at(values) + jacobian

        pieces = [
            lambda x, piece=piece: piece(self.coordinates.constrain(self.split(x))[0])
            for piece in self.problem.smooth_pieces()
        ]
        gradient, hessian = torch.zeros_like(z), torch.zeros(z.shape[0], z.shape[0], dtype=z.dtype)
        for piece in (prior, *pieces):
            leaf = z.clone().requires_grad_()
            (slope,) = torch.autograd.grad(piece(leaf), leaf, create_graph=True)
            gradient -= slope.detach()
            for i in range(z.shape[0]):
                if slope.requires_grad:
                    (row,) = torch.autograd.grad(slope[i], leaf, retain_graph=True, allow_unused=True)
                    hessian[i] -= 0 if row is None else row
        return gradient, (hessian + hessian.T) / 2

    @torch.no_grad()
    def log_density(self, z: Tensor) -> Tensor:
        """(S, d) to (S,); -inf where it isn't a number."""
        values, jacobian = self.coordinates.constrain_rows(self.split(z))
        prior = self.problem.log_prior(values) + jacobian
        value = torch.full_like(prior, -math.inf)
        inside = torch.isfinite(prior)
        if bool(inside.any()):
            kept = {name: x[inside] for name, x in values.items()}
            value[inside] = prior[inside] + self.problem.total_log_likelihood(kept)
        return torch.nan_to_num(value, nan=-math.inf, posinf=-math.inf)

    def named(self, index: int) -> str:
        """The parameter that a flat coordinate belongs to."""
        names = [name for name, shape in self.shapes.items() for _ in range(max(1, shape.numel()))]
        return names[index]


def _find_modes(target: _Target) -> list[_Mode]:
    """The highest mode, and others found on the way that aren't negligible beside it."""
    from scipy.optimize import minimize

    found: list[_Mode] = []
    reasons: list[str] = []
    for _ in range(1 + _RESTARTS):
        start = target.start().numpy()
        search = minimize(target.fast, start, jac=True, method="BFGS", options={"gtol": 1e-3, "maxiter": 500})
        if not np.isfinite(search.fun):
            reasons.append("the search for a mode left the parameters' range")
            continue
        at = torch.tensor(search.x, dtype=torch.float64)
        at = torch.where(target.folded, at.abs(), at)
        if any(_distance(mode, at) < _APART for mode in found):
            continue
        try:
            found.append(_polish(target, at))
        except InferenceError as error:
            reasons.append(str(error))
    if not found:
        raise InferenceError(f"{reasons[0]}. Use method='nuts', or give tighter priors={{...}}")
    highest = max(mode.height for mode in found)
    return [mode for mode in found if mode.height > highest - 12]


def _distance(mode: _Mode, at: Tensor) -> float:
    offset = (at - mode.location).unsqueeze(-1)
    return float((offset.T @ torch.linalg.solve(mode.covariance, offset)).sqrt())


def _polish(target: _Target, at: Tensor) -> _Mode:
    """Newton's method with the exact Hessian from a point near a mode."""
    value, _ = target.fast(at.numpy())
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = target.curvature(at)
        eigenvalues, vectors = torch.linalg.eigh(hessian)
        if not bool(torch.isfinite(eigenvalues).all()):
            raise InferenceError("the Hessian at the mode isn't finite")
        # Away from the mode, directions that bend the wrong way are walked along by their size.
        safe = eigenvalues.abs().clamp_min(1e-8 * float(eigenvalues.abs().max()))
        step = -(vectors @ ((vectors.T @ gradient) / safe))
        definite = bool((eigenvalues > 1e-10 * eigenvalues.abs().max()).all())
        size = float((step @ hessian @ step).abs().sqrt())
        if definite and size < _CLOSE:
            break
        length = min(1.0, 3.0 / max(size, 1e-300))
        while length > 1e-4:
            trial = at + length * step
            trial = torch.where(target.folded, trial.abs(), trial)
            new, _ = target.fast(trial.numpy())
            if new <= value + 1e-9 * abs(value):
                break
            length /= 2
        else:
            break
        at, value = trial, new
    if not definite:
        worst = target.named(int(vectors[:, 0].abs().argmax()))
        raise InferenceError(
            f"the Hessian of the log posterior isn't positive definite at its mode (smallest eigenvalue "
            f"{float(eigenvalues[0]):.2g}, mostly {worst}), so the posterior isn't near normal there"
        )
    # A few digits less: the last bits of a factorisation depend on where in memory its arguments lie.
    covariance = torch.linalg.inv(hessian).float().double()
    return _Mode(at.float().double(), -value, (covariance + covariance.T) / 2)


class _Proposal:
    """A mixture of Student t laws at the modes, made even in the folded coordinates."""

    def __init__(self, modes: list[_Mode], folded: Tensor) -> None:
        self.folded = folded
        scales = (1.0, _WIDE_SCALE)
        self.normals = [MultivariateNormal(mode.location, s**2 * mode.covariance) for s in scales for mode in modes]
        logs = torch.tensor([mode.height for mode in modes], dtype=torch.float64)
        logs = logs + torch.stack([torch.logdet(mode.covariance) for mode in modes]) / 2
        logs = logs - torch.logsumexp(logs, 0)
        self.log_weights = torch.cat([logs + math.log1p(-_WIDE_SHARE), logs + math.log(_WIDE_SHARE)])
        signs = itertools.product(*([[1.0, -1.0] if flag else [1.0] for flag in folded.tolist()]))
        self.signs = torch.tensor(list(signs), dtype=torch.float64)

    def sample(self, count: int) -> Tensor:
        """(count, d), folded."""
        which = torch.multinomial(self.log_weights.exp(), count, replacement=True)
        chi2 = torch.distributions.Chi2(torch.tensor(_DEGREES, dtype=torch.float64)).sample((count, 1))
        drawn = torch.stack([normal.sample((count,)) for normal in self.normals])[which, torch.arange(count)]
        centre = torch.stack([normal.loc for normal in self.normals])[which]
        z = centre + (drawn - centre) * torch.sqrt(_DEGREES / chi2)
        return torch.where(self.folded, z.abs(), z)

    def log_prob(self, z: Tensor) -> Tensor:
        """(S, d) to (S,): of folded points."""
        d = z.shape[1]
        terms = []
        for weight, normal in zip(self.log_weights, self.normals, strict=True):
            constant = (
                math.lgamma((_DEGREES + d) / 2)
                - math.lgamma(_DEGREES / 2)
                - d / 2 * math.log(_DEGREES * math.pi)
                - normal.scale_tril.diagonal().log().sum()
            )
            for sign in self.signs:
                offset = (z * sign - normal.loc).T
                distance = torch.linalg.solve_triangular(normal.scale_tril, offset, upper=False).square().sum(0)
                terms.append(weight + constant - (_DEGREES + d) / 2 * torch.log1p(distance / _DEGREES))
        return torch.logsumexp(torch.stack(terms), 0)


def _importance_resample(
    target: _Target, modes: list[_Mode], settings: SamplerSettings, bar: Any
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, np.ndarray]]:
    count = settings.num_samples * settings.num_chains
    size = settings.num_proposals
    if size is None:
        size = _DIRECT_PROPOSALS if target.problem.costs_every_choice else max(_PROPOSALS, count)
    best: _Round | None = None
    proposal, rounds = _Proposal(modes, target.folded), 0
    for _ in range(1 + _ADAPTATIONS):
        rounds += 1
        latest = _Round.draw(target, proposal, size, bar)
        before, best = best, _better(best, latest)
        good = best.pareto_k <= _GOOD_PARETO_K
        if good and best.effective >= _EFFICIENT * size:
            break
        if good and before is not None and best.effective < _IMPROVED * before.effective:
            break
        # Of the latest, not of the best, from which the same proposal would come again.
        adapted = _from_weights(latest.z, latest.log_weights.exp(), 1 if rounds <= _IN_ONE else _SLICES)
        if not adapted:
            break
        proposal = _Proposal(adapted, target.folded)
    assert best is not None
    # Where no proposal fits well, more of the best one's do; a number that was asked for is kept to.
    while (
        settings.num_proposals is None
        and best.pareto_k <= MAX_PARETO_K
        and best.effective < _ENOUGH
        and len(best.z) < _MOST_TIMES * size
    ):
        rounds += 1
        before, best = best, _better(best, best.joined(_Round.draw(target, best.proposal, len(best.z), bar)))
        if best is before:
            break
    if not best.pareto_k <= MAX_PARETO_K:
        raise InferenceError(
            f"importance resampling can't be relied on: Pareto k-hat {best.pareto_k:.2f} is above {MAX_PARETO_K} after "
            f"{rounds} round(s) of {size} proposals, so the posterior of {', '.join(target.shapes)} "
            "is too far from normal for method='laplace'. Use method='nuts', or give tighter priors={...}"
        )
    rows = _systematic(best.log_weights.exp(), count)
    values, _ = target.coordinates.constrain_rows(target.split(best.z[rows]))
    facts = {
        "pareto_k": best.pareto_k,
        "importance_ess": best.effective,
        "num_proposals": len(best.z),
        "proposal_rounds": rounds,
        "num_modes": len(modes),
    }
    stats = {"lp": best.value[rows].numpy()}
    return {name: x.detach().double() for name, x in values.items()}, facts, stats


class _Round:
    """Draws of a proposal with their weights.

    :param z: (S, d); ``value`` (S,) log-density of the target there; ``ratio`` (S,) that minus the proposal's.
    """

    def __init__(self, proposal: _Proposal, z: Tensor, value: Tensor, ratio: Tensor) -> None:
        self.proposal, self.z, self.value, self.ratio = proposal, z, value, ratio
        smoothed, self.pareto_k = pareto_smooth(ratio)
        self.log_weights = torch.as_tensor(smoothed)
        self.effective = _effective(z, self.log_weights)

    @classmethod
    def draw(cls, target: _Target, proposal: _Proposal, size: int, bar: Any) -> _Round:
        z = proposal.sample(size)
        parts = []
        for part in z.split(500):
            parts.append(target.log_density(part))
            bar.update(len(part))
        value = torch.cat(parts)
        return cls(proposal, z, value, value - proposal.log_prob(z))

    def joined(self, other: _Round) -> _Round:
        """Both, of one proposal."""
        pairs = ((self.z, other.z), (self.value, other.value), (self.ratio, other.ratio))
        return _Round(self.proposal, *(torch.cat(pair) for pair in pairs))


def _better(one: _Round | None, other: _Round) -> _Round:
    """Weights that can be relied on come first, then many of them."""
    if one is None:
        return other
    ranks = [
        (r.pareto_k <= MAX_PARETO_K, r.effective if r.pareto_k <= MAX_PARETO_K else -r.pareto_k) for r in (one, other)
    ]
    return other if ranks[1] > ranks[0] else one


def _effective(z: Tensor, log_weights: Tensor) -> float:
    r"""The number of independent draws with the same error: the smallest for any coordinate's mean, and for the weights.

    The variance of a self-normalised mean is :math:`\sum_s w_s^2 (z_s - \bar z)^2`, larger than the weights alone tell
    where the far draws are the heavy ones: A. B. Owen, *Monte Carlo theory, methods and examples*, 2013, section 9.3.
    """
    weights = log_weights.exp()
    offset = (z - weights @ z).square()
    by_coordinate = (weights @ offset) / (weights.square() @ offset).clamp_min(1e-300)
    return float(torch.cat([by_coordinate, 1 / weights.square().sum().reshape(1)]).min())


def _from_weights(z: Tensor, weights: Tensor, slices: int) -> list[_Mode]:
    """Laws with the means and covariances of the weighted draws, sliced across their longest axis into equal weights.

    :returns: none where there are too few draws to tell.
    """
    mean = weights @ z
    covariance = _covariance(z - mean, weights)
    spread = covariance.diagonal().clamp_min(1e-300).sqrt()
    _, axes = torch.linalg.eigh(covariance / torch.outer(spread, spread))
    order = (((z - mean) / spread) @ axes[:, -1]).argsort()
    which = (weights[order].cumsum(0) * slices).long().clamp_max(slices - 1)
    found = []
    for number in range(slices):
        rows = order[which == number]
        share = weights[rows].sum()
        own = weights[rows] / share
        if not 1 / float(own.square().sum()) >= 2 * z.shape[1] + 5:
            continue
        centre = own @ z[rows]
        shape = 1.2 * _covariance(z[rows] - centre, own) + 1e-10 * torch.diag(covariance.diagonal())
        shape = ((shape + shape.T) / 2).float().double()
        # The height that gives the slice its weight in the mixture.
        height = float(share.log() - torch.logdet(shape) / 2)
        found.append(_Mode(centre.float().double(), height, shape))
    return found


def _covariance(offset: Tensor, weights: Tensor) -> Tensor:
    return (offset * weights[:, None]).T @ offset


def _systematic(weights: Tensor, count: int) -> Tensor:
    """Numbers of resampled draws, each about count times its weight, in random order."""
    edges = weights.cumsum(0)
    points = (torch.arange(count, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / count * edges[-1]
    return torch.searchsorted(edges, points).clamp_max(len(weights) - 1)[torch.randperm(count)]
