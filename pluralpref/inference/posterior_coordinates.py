"""The space in which a sampler moves: unconstrained, and straightened where the posterior is known to be bent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, HalfCauchy, HalfNormal, Independent, Transform, biject_to, constraints

from pluralpref.inference.posterior_problem import PosteriorProblem

#: Values of beta_cv at which the ridge of the posterior is looked for.
_RIDGE_AT = (0.02, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
_SECANT_STEPS = 15
#: Of log E[beta]; the ridge needn't be exact.
_TOLERANCE = 0.01


class _Fold(Transform):
    r"""u -> |u|, for a parameter whose density at 0 is finite and not 0, such as a spread with a half-normal prior.

    The sampler sees an even density on the whole line. On the log scale, values near 0 would lie in a long tail, which
    it crosses slowly just where the question is whether there is any heterogeneity.
    """

    domain = constraints.real
    codomain = constraints.nonnegative
    # Two points for each value, with half the density each: a constant in log|du| doesn't matter to a sampler.
    bijective = False

    def _call(self, x: Tensor) -> Tensor:
        return x.abs()

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Coordinates:
    r"""Unconstrained coordinates of a problem's parameters.

    Positive parameters live on the log scale, spreads with a half-normal prior are folded. Where the parameters are
    ``beta_mean`` and ``beta_cv``, the posterior is a banana: a wider law needs a larger mean to explain the same
    choices. The coordinate of the mean is then its distance from that ridge,

    .. math:: z_{mean} = (\log E[\beta] - c_0 - c_1 q - c_2 q^2) / s, \qquad q = \log(1 + \mathrm{cv}^2),

    with constants fitted once; s is the ridge's width. The map has a triangular Jacobian, so any constants give the
    same posterior; good ones make it easy to sample.

    :param problem: the posterior.
    """

    def __init__(self, problem: PosteriorProblem) -> None:
        self.problem = problem
        self.links: dict[str, Transform] = {
            name: _Fold() if _is_half(prior) else _biject_to(prior.support) for name, prior in problem.priors.items()
        }
        #: (c_0, c_1, c_2, s)
        self.ridge: Tensor | None = None
        if set(problem.names) == {"beta_mean", "beta_cv"}:
            self.ridge = _fit_ridge(problem)

    def constrain(self, z: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters and the log-Jacobian of the map; ``z`` may have leading dimensions, then the latter has none."""
        z, values = self._straight(z)
        # s is constant: its logarithm doesn't matter to a sampler.
        jacobian = sum(link.log_abs_det_jacobian(z[name], values[name]).sum() for name, link in self.links.items())
        return values, torch.as_tensor(jacobian)

    def constrain_rows(self, z: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters (S, ...) and the log-Jacobian (S,) of many points z (S, ...) at once."""
        z, values = self._straight(z)
        total = torch.zeros(next(iter(z.values())).shape[0], dtype=torch.float64)
        for name, link in self.links.items():
            terms = link.log_abs_det_jacobian(z[name], values[name])
            total = total + terms.reshape(len(total), -1).sum(1)
        return values, total

    def _straight(self, z: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(the links' arguments, their values)."""
        z = dict(z)
        if self.ridge is not None:
            shift = self._shift(self.links["beta_cv"](z["beta_cv"]))
            z["beta_mean"] = z["beta_mean"] * self.ridge[3] + shift
        return z, {name: link(z[name]) for name, link in self.links.items()}

    def is_folded(self, name: str) -> bool:
        """Whether u and -u are the same value of a parameter."""
        return isinstance(self.links[name], _Fold)

    def free(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`constrain`."""
        z = {name: link.inv(values[name]) for name, link in self.links.items()}
        if self.ridge is not None:
            z["beta_mean"] = (z["beta_mean"] - self._shift(values["beta_cv"])) / self.ridge[3]
        return z

    def _shift(self, cv: Tensor) -> Tensor:
        assert self.ridge is not None
        q = torch.log1p(cv**2)
        return self.ridge[0] + (self.ridge[1] + self.ridge[2] * q) * q

    def potential(self, z: Mapping[str, Tensor]) -> Tensor:
        """Minus the log joint density in these coordinates."""
        values, jacobian = self.constrain(z)
        return -(self.problem.log_joint(values) + jacobian)


def _is_half(prior: Distribution) -> bool:
    return isinstance(prior.base_dist if isinstance(prior, Independent) else prior, HalfNormal | HalfCauchy)


def _biject_to(support: Any) -> Transform:
    """The link, element by element also for a vector with an independent constraint."""
    return biject_to(support.base_constraint if isinstance(support, constraints.independent) else support)


def _fit_ridge(problem: PosteriorProblem) -> Tensor | None:
    """The constants (c_0, c_1, c_2, s), or ``None`` if no ridge can be found."""
    prior = problem.priors["beta_mean"].sample(torch.Size([1001]))
    log_mean = prior.double().quantile(0.5).log()
    modes, widths, shapes = [], [], []
    for cv in _RIDGE_AT:
        fixed = torch.tensor(cv, dtype=torch.float64)
        found = _conditional_mode(problem, log_mean, fixed)
        if found is not None:
            log_mean, width = found
            modes.append(log_mean)
            widths.append(width)
            shapes.append(torch.log1p(fixed**2))
    if len(modes) < 3:
        return None
    constants = _fit_parabola([float(q) for q in shapes], [float(mode) for mode in modes])
    return torch.tensor([*constants, float(torch.stack(widths).median())], dtype=torch.float64)


def _fit_parabola(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares for y = c_0 + c_1 x + c_2 x^2, by orthogonal polynomials.

    In plain arithmetic: LAPACK's last bits depend on where in memory its arguments happen to lie, and a sampler turns a
    last bit into other draws.
    """
    count = len(x)
    centre = sum(x) / count
    linear = [v - centre for v in x]
    norm = sum(v * v for v in linear)
    skew = sum(v**3 for v in linear) / norm
    square = [v * v - norm / count - skew * v for v in linear]
    bend = sum(p * v for p, v in zip(square, y, strict=True)) / sum(p * p for p in square)
    slope = sum(p * v for p, v in zip(linear, y, strict=True)) / norm
    # Back to powers of x, from mean + slope (x - centre) + bend ((x - centre)^2 - norm/count - skew (x - centre)).
    first = slope - bend * skew
    constant = sum(y) / count - first * centre + bend * (centre * centre - norm / count)
    return constant, first - 2 * bend * centre, bend


def _conditional_mode(problem: PosteriorProblem, start: Tensor, cv: Tensor) -> tuple[Tensor, Tensor] | None:
    """Argmax over log E[beta] at a fixed cv, and the standard deviation that belongs to the curvature there.

    By secant steps on the slope, kept short.
    """
    x, step = start, torch.ones(())
    previous: tuple[Tensor, Tensor] | None = None
    for _ in range(_SECANT_STEPS):
        leaf = x.clone().requires_grad_()
        value = problem.log_joint({"beta_mean": leaf.exp(), "beta_cv": cv}) + leaf
        (slope,) = torch.autograd.grad(value, leaf)
        if not torch.isfinite(slope):
            return None
        step = 0.5 * torch.sign(slope)
        if previous is not None:
            curvature = (slope - previous[1]) / (x - previous[0])
            if curvature < 0:
                step = (-slope / curvature).clamp(-2.0, 2.0)
                if abs(float(step)) < _TOLERANCE:
                    return x + step, (-curvature).rsqrt()
        elif slope == 0:
            step = torch.full_like(x, 1e-3)
        previous = (x, slope)
        x = x + step
    return None
