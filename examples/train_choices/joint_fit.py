r"""Utilities and the law of strength together, by maximum likelihood.

A choice between two journeys with attribute differences x has the margin h = w·x, and P(first | beta) = sigmoid(beta h).
Doubling w and halving beta changes nothing, so the mean of beta (of \|beta\| for laws of both signs) is 1 here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Distribution
from train_data import TrainChoices

from pluralpref.errors import InferenceError
from pluralpref.inference import log_marginal, log_marginal_panel
from pluralpref.models import (
    FixedStrength,
    GammaStrength,
    LatentClassStrength,
    LogNormalStrength,
    OpposedStrength,
    StrengthModel,
    WeibullStrength,
)

#: Beyond these a law can't be told from its limit: cv 0 or infinite, share 0 or 1, equal classes.
BOUNDS = {"log_cv": (-7.0, 4.0), "logit_share": (-12.0, 12.0), "log_increase": (-7.0, 9.0)}
#: Newton's method stops where the step would change the log-likelihood by less than this, in nats.
NEWTON_TOLERANCE = 1e-12
#: The least eigenvalue of the Hessian, scaled to a diagonal of ones, that standard errors are computed from.
LEAST_EIGENVALUE = 1e-8


@dataclass(frozen=True)
class Family:
    """A law of strength whose mean is 1, in coordinates without constraints.

    :param name: as in the tables.
    :param strength: a strength model of the family, for its class; every parameter is overridden.
    :param coordinates: the coordinates' kinds, keys of ``BOUNDS``.
    :param starts: where to start from; the best optimum is kept.
    :param parameters: coordinates to the strength model's parameters by name.
    :param names: what is reported of the law beside w.
    :param values: coordinates to these numbers.
    :param free: parameters to a strength model with a free mean, for a posterior of margins that are known.
    """

    name: str
    strength: StrengthModel
    coordinates: tuple[str, ...]
    starts: tuple[tuple[float, ...], ...]
    parameters: Callable[[Tensor], dict[str, Tensor]]
    names: tuple[str, ...]
    values: Callable[[Tensor], Tensor]
    free: Callable[[dict[str, Tensor]], StrengthModel]

    def law(self, u: Tensor) -> Distribution:
        """The law of beta at coordinates ``u``, differentiable in them."""
        return self.strength.with_priors().law(parameters=self.parameters(u))


_ONE = torch.ones((), dtype=torch.float64)
_CV_STARTS = ((math.log(0.5),), (math.log(1.5),))


def _by_moments(name: str, kind: type[StrengthModel]) -> Family:
    return Family(
        name,
        kind(mean=1.0, cv=0.5),
        ("log_cv",),
        _CV_STARTS,
        lambda u: {"beta_mean": _ONE, "beta_cv": u[0].exp()},
        ("cv",),
        lambda u: u.exp(),
        lambda p: kind(mean=1.0, cv=float(p["beta_cv"])),
    )


def _classes(u: Tensor) -> dict[str, Tensor]:
    increase, share = u[:1].exp(), u[1].sigmoid()
    lowest = 1 / (1 + share * increase[0])
    return {"lowest": lowest, "increase": increase, "shares": torch.stack([1 - share, share])}


def _class_values(u: Tensor) -> Tensor:
    p = _classes(u)
    low, high = p["lowest"], p["lowest"] * (1 + p["increase"][0])
    cv = (p["shares"][0] * (low - 1) ** 2 + p["shares"][1] * (high - 1) ** 2).sqrt()
    return torch.stack([low, high, p["shares"][1], cv])


def _two_classes(p: dict[str, Tensor]) -> StrengthModel:
    low = float(p["lowest"])
    return LatentClassStrength(values=[low, low * (1 + float(p["increase"]))], shares=p["shares"].tolist())


#: One, with what single choices and panels make of it. ``opposed_fixed`` is label noise for single choices.
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "fixed",
            FixedStrength(1.0),
            (),
            ((),),
            lambda u: {},
            (),
            lambda u: u,
            lambda p: FixedStrength(1.0, learned=True),
        ),
        Family(
            "opposed_fixed",
            OpposedStrength(FixedStrength(1.0)),
            ("logit_share",),
            ((-3.0,), (-1.0,)),
            lambda u: {"share": u[0].sigmoid()},
            ("share",),
            lambda u: u.sigmoid(),
            lambda p: OpposedStrength(FixedStrength(1.0, learned=True), share=float(p["share"])),
        ),
        _by_moments("lognormal", LogNormalStrength),
        _by_moments("gamma", GammaStrength),
        _by_moments("weibull", WeibullStrength),
        Family(
            "latent_class_2",
            LatentClassStrength(values=[0.5, 1.5], shares=[0.5, 0.5]),
            ("log_increase", "logit_share"),
            ((1.0, 0.0), (2.0, -2.0), (3.0, 1.0)),
            _classes,
            ("low", "high", "share high", "cv"),
            _class_values,
            _two_classes,
        ),
        Family(
            "opposed_lognormal",
            OpposedStrength(LogNormalStrength(1.0, 0.5), share=0.1),
            ("logit_share", "log_cv"),
            ((-3.0, math.log(0.5)), (-1.5, math.log(1.5))),
            lambda u: {"share": u[0].sigmoid(), "strength.beta_mean": _ONE, "strength.beta_cv": u[1].exp()},
            ("share", "cv of |β|"),
            lambda u: torch.stack([u[0].sigmoid(), u[1].exp()]),
            lambda p: OpposedStrength(LogNormalStrength(1.0, float(p["strength.beta_cv"])), share=float(p["share"])),
        ),
    )
}


@dataclass(frozen=True)
class JointFit:
    """A maximum of the likelihood.

    :param family: the family.
    :param panel: whether a person's choices share one beta; otherwise every choice is one of a person of its own.
    :param w: (4,) the utilities of a guilder, an hour, a change and a class of comfort.
    :param coordinates: the law's coordinates.
    :param log_likelihood: nats.
    :param gradient_norm: Euclidean, in w times the attributes' standard deviations, and the law's coordinates that
        don't stand at a bound.
    :param standard_errors: of w and of ``family.values``, or None where the Hessian gives none.
    :param refused: why not.
    :param starts_agreeing: how many of the starts came within 1e-4 nats of the best, and how many there were.
    :param seconds: wall-clock time of all starts.
    """

    family: Family
    panel: bool
    w: Tensor
    coordinates: Tensor
    log_likelihood: float
    gradient_norm: float
    standard_errors: Tensor | None
    refused: str
    starts_agreeing: tuple[int, int]
    seconds: float

    @property
    def num_parameters(self) -> int:
        """W and the law's."""
        return len(self.w) + len(self.coordinates)

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def estimates(self) -> Tensor:
        """W, then what is reported of the law."""
        return torch.cat([self.w, self.family.values(self.coordinates)])

    def law(self) -> Distribution:
        """The law of beta."""
        return self.family.law(self.coordinates)

    def margins(self, data: TrainChoices) -> Tensor:
        """H of chosen over other, nats at beta = 1."""
        return data.chosen_minus_other @ self.w

    def free_strength(self) -> StrengthModel:
        """The family with a free mean, where the fit stands."""
        return self.family.free(self.family.parameters(self.coordinates))


def log_likelihood(law: Distribution, margins: Tensor, person: Tensor | None, num_people: int) -> Tensor:
    """Of all choices, nats.

    :param person: codes, for panels; None for single choices.
    """
    if person is None:
        return log_marginal(law, margins).sum()
    return log_marginal_panel(law, margins, person, num_people).sum()


def fit(family: Family, data: TrainChoices, *, panel: bool, start: Tensor | None = None) -> JointFit:
    """Maximise the joint likelihood: L-BFGS from each start, then Newton steps with the exact Hessian.

    :param start: w to start from, such as that of the fixed family; 0 by default.
    :raises InferenceError: if no start ends at a finite likelihood.
    """
    began = time.perf_counter()
    attributes, person = data.chosen_minus_other, data.person if panel else None
    # Attributes of like spread: L-BFGS isn't invariant to units.
    spread = data.differences.std(0)
    count = attributes.shape[1]

    def loss(theta: Tensor) -> Tensor:
        margins = attributes @ (theta[:count] / spread)
        return -log_likelihood(family.law(theta[count:]), margins, person, data.num_people)

    first = torch.zeros(count, dtype=torch.float64) if start is None else start * spread
    ends = [
        _minimise(loss, torch.cat([first, torch.tensor(u, dtype=torch.float64)]), count, family.coordinates)
        for u in family.starts
    ]
    ends = [end for end in ends if math.isfinite(end.loss)]
    if not ends:
        raise InferenceError(f"{family.name}: the likelihood isn't finite at the end of any start")
    best = min(ends, key=lambda end: end.loss)
    theta, inside = best.theta, best.at_bound
    agreeing = sum(end.loss < best.loss + 1e-4 for end in ends)
    u = theta[count:]
    at = torch.cat([1 / spread, torch.ones_like(u)])
    errors, refused = None, inside
    if not refused:
        try:
            covariance = inverse_hessian(hessian(loss, theta)) * at[:, None] * at
            slope = (
                torch.block_diag(torch.eye(count, dtype=torch.float64), jacobian(family.values, u)) if len(u) else None
            )
            covariance = covariance if slope is None else slope @ covariance @ slope.T
            errors = covariance.diagonal().sqrt()
        except InferenceError as error:
            refused = str(error)
    return JointFit(
        family=family,
        panel=panel,
        w=theta[:count] / spread,
        coordinates=u,
        log_likelihood=-best.loss,
        gradient_norm=float(_gradient(loss, theta)[best.free].norm()),
        standard_errors=errors,
        refused=refused,
        starts_agreeing=(agreeing, len(family.starts)),
        seconds=time.perf_counter() - began,
    )


def inverse_hessian(matrix: Tensor) -> Tensor:
    """The covariance of the estimates, from the Hessian of minus the log-likelihood.

    :raises InferenceError: unless the Hessian is positive definite by a margin; its inverse would mean nothing.
    """
    diagonal = matrix.diagonal()
    if not bool(torch.isfinite(matrix).all()) or bool((diagonal <= 0).any()):
        raise InferenceError("the Hessian isn't positive definite")
    scale = diagonal.rsqrt()
    least = float(torch.linalg.eigvalsh(matrix * scale[:, None] * scale)[0])
    if least < LEAST_EIGENVALUE:
        raise InferenceError(f"the Hessian isn't positive definite: its least scaled eigenvalue is {least:.1g}")
    return torch.linalg.inv(matrix)


def _gradient(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(loss(theta), theta)[0]


@dataclass(frozen=True)
class _End:
    """Where one start ends: ``free`` are the coordinates that don't stand at a bound, ``at_bound`` says which do."""

    theta: Tensor
    loss: float
    free: Tensor
    at_bound: str


def _minimise(loss: Callable[[Tensor], Tensor], theta: Tensor, unbounded: int, kinds: Sequence[str]) -> _End:
    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(point, requires_grad=True)
        value = loss(at)
        return value.item(), torch.autograd.grad(value, at)[0].numpy()

    bounds = [(None, None)] * unbounded + [BOUNDS[kind] for kind in kinds]
    found = minimize(
        value_and_gradient, theta.numpy(), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 500},
    )  # fmt: skip
    theta = torch.tensor(found.x)
    free = torch.ones(len(theta), dtype=torch.bool)
    reasons = []
    for place, kind in enumerate(kinds, unbounded):
        if min(abs(found.x[place] - bound) for bound in BOUNDS[kind]) < 1e-6:
            free[place] = False
            reasons.append(f"{kind} ends at its bound {found.x[place]:g}, which stands for the law's limit")

    def fill(part: Tensor) -> Tensor:
        return theta.masked_scatter(free, part)

    theta = fill(_newton(lambda part: loss(fill(part)), theta[free]))
    return _End(theta, loss(theta).item(), free, "; ".join(reasons))


def _newton(loss: Callable[[Tensor], Tensor], theta: Tensor, steps: int = 30) -> Tensor:
    """Newton steps, halved until the loss falls; directions of negative curvature are turned round."""
    for _ in range(steps):
        value, gradient = loss(theta).item(), _gradient(loss, theta)
        curvature, directions = torch.linalg.eigh(hessian(loss, theta))
        curvature = curvature.abs().clamp_min(1e-10 * float(curvature.abs().max()))
        step = -directions @ (directions.T @ gradient / curvature)
        decrement = -float(gradient @ step)
        size = 1.0
        while size > 1e-6 and not loss(theta + size * step).item() <= value + 1e-11 * abs(value) * (decrement < 1e-6):
            size /= 2
        if size <= 1e-6:
            break
        theta = theta + size * step
        if decrement < NEWTON_TOLERANCE:
            break
    return theta
