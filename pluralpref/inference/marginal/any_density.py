r"""Quadrature for any law with a density: what a family gets that nobody has written numerics for.

The law's support decides the coordinate: :math:`\beta = T(x)` with the bijection that :func:`torch.distributions.biject_to`
gives, so x = log beta for positive laws, a logit for bounded ones. For laws on the whole line it is
:math:`\beta = c \sinh x`, a logarithm on both sides, so that the step of :math:`\sigma(\beta h)` at 0 is resolved however
large h is, and tails that fall like a power have an end. The trapezoidal rule in x
converges geometrically for smooth densities (Trefethen and Weideman, SIAM Review 56, 2014). Its range is where the
integrand isn't negligible for any of the pairs; the number of nodes is doubled until that changes nothing any more.
Nodes are constants in the backward pass and serve all pairs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints
from torch.distributions.transforms import identity_transform
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from pluralpref.distributions import MixtureGeneral
from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import NumericsWarning, UnsupportedError
from pluralpref.inference.marginal.dispatch import Quadrature, register_marginal, register_panel_marginal
from pluralpref.inference.marginal.panel import PanelProblem
from pluralpref.inference.marginal.safe_math import absolute, complete, log1mexp, promote, working_dtype

_SEED = 20_140_801
_SAMPLES = 64
_COARSE = 65
_FIRST_NODES = 64
_CHUNK = 2**21
_WIDENINGS = 60
_ZOOMS = 4
_LARGEST_EXPONENT = 750.0
#: Below it, and above its inverse, strengths are as good as 0 and infinite.
_SMALLEST = 1e-300
#: A law in whose range there are fewer numbers than this has a density with few digits.
_FEWEST_NUMBERS = 2**14
#: The density must add up to 1 this closely, or it isn't one.
_MASS_TOLERANCE = 1e-4
#: A rule that misses more than this isn't only inexact.
_LOST_MASS = 0.01

#: The log-likelihood of units at beta (nodes, *law.batch_shape): (nodes, units..., *law.batch_shape).
LogLikelihood = Callable[[Tensor], Tensor]


def has_density(law: Distribution) -> bool:
    """Whether a law over numbers has a density that can be integrated on its support."""
    if isinstance(law, dist.Delta | dist.Empirical | MixtureGeneral):
        return False
    component = getattr(law, "component_distribution", None)
    if component is not None and not has_density(component):
        return False
    try:
        support = _support(law)
        if support is None or support.is_discrete or support.event_dim:
            return False
        biject_to(support)
    except (NotImplementedError, AttributeError):
        return False
    return type(law).log_prob is not Distribution.log_prob


def _support(law: Distribution) -> Any:
    """Of a mixture, that of its components, if it is the same for all of them."""
    component = getattr(law, "component_distribution", None)
    if component is None:
        return law.support
    support = _support(component)
    return (
        support
        if any(support is c for c in (constraints.positive, constraints.nonnegative, constraints.real))
        else None
    )


@dataclass(frozen=True)
class _Rule:
    """Equidistant nodes in x for each law of the batch: beta and log-density (nodes, *law.batch_shape), step
    (*law.batch_shape).
    """

    strength: Tensor
    log_density: Tensor
    step: Tensor
    law_dtype: torch.dtype

    def log_average(self, log_likelihood: Tensor, stride: int = 1) -> Tensor:
        """The log of the average over every ``stride``-th node, (units..., *law.batch_shape).

        Dividing by the sum of the density, which should be 1/step, takes out the rounding of its constants.
        """
        density = _beside(self.log_density, log_likelihood)[::stride]
        return torch.logsumexp(density + log_likelihood[::stride], 0) - torch.logsumexp(density, 0)

    def log_mass(self, stride: int = 1) -> Tensor:
        """The log of the integral of the density, (*law.batch_shape); 0 if all is well."""
        return torch.logsumexp(self.log_density[::stride], 0) + torch.log(self.step * stride)


def _beside(nodes: Tensor, values: Tensor) -> Tensor:
    """``nodes`` (nodes, *batch) with dimensions of size 1 where ``values`` (nodes, units..., *batch) has units."""
    return nodes.reshape(nodes.shape[0], *(1,) * (values.dim() - nodes.dim()), *nodes.shape[1:])


class _Sinh(Transform):
    """X -> c sinh(x)."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def _call(self, x: Tensor) -> Tensor:
        return self.scale * torch.sinh(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.asinh(y / self.scale)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        size = x.abs()
        return math.log(self.scale / 2) + size + torch.log1p(torch.exp(-2 * size))


def _coordinate(law: Distribution, drawn: Tensor, steepest: float) -> Transform:
    """The map from the line to the law's support."""
    transform = biject_to(_support(law))
    if transform != identity_transform:
        return transform
    size = float(drawn.abs()[torch.isfinite(drawn)].double().quantile(0.5)) if drawn.numel() else 1.0
    # Fine enough around 0 for both the law and the steepest sigmoid.
    return _Sinh(min(size, 1 / max(steepest, 1e-300)) or 1.0)


def make_rule(law: Distribution, tests: LogLikelihood, method: Quadrature, steepest: float) -> _Rule:
    """The nodes that integrate the law times each of the test likelihoods to the tolerance.

    Each law of a batch gets a range of its own; the number of nodes is that of the hardest.

    :param tests: the likelihoods of some units that stand for all.
    :param steepest: the largest |h| among them.
    :raises UnsupportedError: if the density doesn't add up to 1 over its support.
    :warns NumericsWarning: if ``max_nodes`` aren't enough.
    """
    with torch.no_grad():
        with generators_kept(_SEED):
            drawn = law.sample(torch.Size([_SAMPLES]))
        transform = _coordinate(law, drawn, steepest)
        # A density computed in float32 has no more digits than that.
        method = replace(method, tolerance=max(method.tolerance, 16 * torch.finfo(drawn.dtype).eps))
        left, right = _range(law, transform, drawn.to(working_dtype(drawn.device)), tests, method)
        count = min(_FIRST_NODES, method.max_nodes)
        while True:
            rule = _rule(law, transform, left, right, count, drawn.dtype)
            likelihood = tests(rule.strength)
            full, half = rule.log_average(likelihood), rule.log_average(likelihood, 2)
            # The digits of a log-probability of -1e15 are few, whatever the number of nodes.
            rounding = 64 * torch.finfo(full.dtype).eps * full.abs()
            error = float(torch.nan_to_num((half - full).abs() - rounding, nan=math.inf).max())
            # An average over one node that has all the weight doesn't change with their number; its mass does.
            mass = rule.log_mass()
            error = max(error, float(torch.nan_to_num((rule.log_mass(2) - mass).abs(), nan=math.inf).max()))
            if error <= method.tolerance or count >= method.max_nodes:
                break
            count = min(2 * count, method.max_nodes)
    worst = math.exp(float(mass.reshape(-1)[mass.abs().argmax()]))
    if error > method.tolerance:
        lost = (
            f" It finds {worst:.2g} of the law's mass: the value is of no use." if abs(worst - 1) > _LOST_MASS else ""
        )
        warnings.warn(
            f"Quadrature of {type(law).__name__} stopped at max_nodes={method.max_nodes} with an estimated error of "
            f"{error:.1e}, above the tolerance {method.tolerance:.1e}: raise max_nodes or the tolerance, or use "
            f"MonteCarlo. Densities with jumps or kinks inside their support converge slowly.{lost}",
            NumericsWarning,
            stacklevel=4,
        )
    elif bool((off := mass.abs() > max(_MASS_TOLERANCE, 10 * method.tolerance)).any()):
        # The range was widened to where exp(x) is 0 or infinite, and still isn't all; or rounding moves the nodes.
        beyond = (left <= math.log(_SMALLEST)) | (right >= -math.log(_SMALLEST))
        size = torch.maximum(left.abs(), right.abs()).clamp_min(1)
        narrow = right - left < _FEWEST_NUMBERS * torch.finfo(left.dtype).eps * size
        if not bool((beyond | narrow | ~off).all()):
            raise UnsupportedError(
                f"the density of {type(law).__name__} adds up to {worst:.4g} over its support instead "
                "of 1: check its log_prob and its support (all of its mass must lie inside)"
            )
        warnings.warn(
            f"Quadrature of {type(law).__name__} finds {worst:.5g} of its mass: the rest lies at strengths below "
            f"{_SMALLEST:.0e} or above {1 / _SMALLEST:.0e}, or the law is narrower than floating-point numbers can tell; "
            "the value may be off by about as much",
            NumericsWarning,
            stacklevel=4,
        )
    return _rule(law, transform, left, right, count, drawn.dtype)


def _rule(
    law: Distribution, transform: Transform, left: Tensor, right: Tensor, count: int, law_dtype: torch.dtype
) -> _Rule:
    # An odd number of nodes, so that every second one makes a rule of the same range.
    nodes = _grid(left, right, 2 * (count // 2) + 1)
    strength, density = _density(law, transform, nodes)
    return _Rule(strength, density, (right - left) / (len(nodes) - 1), law_dtype)


def _grid(left: Tensor, right: Tensor, count: int) -> Tensor:
    """(count, *left.shape) equidistant points."""
    share = torch.linspace(0, 1, count, dtype=left.dtype, device=left.device).reshape(-1, *(1,) * left.dim())
    return left + (right - left) * share


def _density(law: Distribution, transform: Transform, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """(beta, log-density of x) at nodes x, all (nodes, *law.batch_shape)."""
    beta = transform(nodes)
    # Where beta is rounded onto the edge of the support, or over it, there is no mass to speak of.
    inside = _support(law).check(beta) & torch.isfinite(beta)
    density = law.log_prob(torch.where(inside, beta, transform(torch.zeros_like(nodes))))
    density = density + transform.log_abs_det_jacobian(nodes, beta)
    return beta, torch.where(inside & torch.isfinite(density), density, torch.full_like(density, -math.inf))


def _range(
    law: Distribution, transform: Transform, drawn: Tensor, tests: LogLikelihood, method: Quadrature
) -> tuple[Tensor, Tensor]:
    """For each law, the x between which no test integrand is below its maximum by more than the tolerance and a
    reserve.
    """
    depth = 9.0 - math.log(method.tolerance)
    drawn = transform.inv(drawn)
    finite = torch.isfinite(drawn)
    left = torch.where(finite, drawn, math.inf).amin(0)
    right = torch.where(finite, drawn, -math.inf).amax(0)
    known = left <= right
    left, right = torch.where(known, left, -1.0), torch.where(known, right, 1.0)
    width = torch.maximum(right - left, 1e-9 * (1 + left.abs()))
    left, right = left - 0.1 * width, right + 0.1 * width

    def near(nodes: Tensor) -> Tensor:
        """Where some integrand is within the depth of its maximum, (nodes, *law.batch_shape)."""
        beta, density = _density(law, transform, nodes)
        likelihood = tests(beta)
        value = _beside(density, likelihood) + likelihood
        value = torch.where(torch.isnan(value), -math.inf, value)
        below = torch.nan_to_num(value.amax(0) - value, nan=math.inf)
        units = tuple(range(1, below.dim() - density.dim() + 1))
        below = below.amin(units) if units else below
        # Panels stand in the law's last dimension, which is 1 if they share it.
        return (below.amin(-1, keepdim=True) if below.shape != density.shape else below) < depth

    # Beyond this exp(x) is 0 or infinite, and nothing changes any more.
    limit = torch.full_like(left, _LARGEST_EXPONENT)
    for _ in range(_WIDENINGS):
        inside = near(_grid(left, right, _COARSE))
        if not bool((inside[0] | inside[-1]).any()):
            break
        reach = 0.5 * (right - left)
        left = torch.maximum(left - reach * inside[0], torch.minimum(left, -limit))
        right = torch.minimum(right + reach * inside[-1], torch.maximum(right, limit))
    for _ in range(_ZOOMS):
        inside = near(_grid(left, right, _COARSE)).to(torch.int8)
        first = (inside.argmax(0) - 1).clamp_min(0)
        last = (_COARSE - inside.flip(0).argmax(0)).clamp_max(_COARSE - 1)
        # Laws that can't be seen at all (no number at any node) keep their range.
        zoomed = inside.any(0) & (last - first < 0.8 * _COARSE)
        if not bool(zoomed.any()):
            break
        cell = (right - left) / (_COARSE - 1)
        left, right = torch.where(zoomed, left + cell * first, left), torch.where(zoomed, left + cell * last, right)
    return left, right


@register_marginal(Distribution, Quadrature, when=has_density)
def _single(law: Distribution, margins: Tensor, method: Quadrature) -> Tensor:
    return _evaluate(law, margins, method, with_error=False)[0]


def density_with_error(law: Distribution, margins: Tensor, method: Quadrature) -> tuple[Tensor, Tensor]:
    """The marginal, and the difference that every second node's absence makes, which is far above the error.

    :returns: both of shape ``broadcast(law.batch_shape, margins.shape)``; the second is absolute in log P.
    """
    return _evaluate(law, margins, method, with_error=True)


def _evaluate(law: Distribution, margins: Tensor, method: Quadrature, *, with_error: bool) -> tuple[Tensor, Tensor]:
    """(value, error); without ``with_error`` the second is only a floor."""
    shape = torch.broadcast_shapes(law.batch_shape, margins.shape)
    if not math.prod(shape):
        return margins.new_zeros(shape), margins.new_zeros(shape)
    h = margins.to(working_dtype(margins.device))
    magnitude = absolute(h)
    tests = _test_margins(magnitude.detach(), len(law.batch_shape))
    signed = bool((biject_to(_support(law))(torch.tensor(-1e3, dtype=h.dtype)) < 0).any())
    tests = torch.cat([tests, -tests]) if signed else tests
    rule = make_rule(law, lambda beta: logsigmoid(-beta.unsqueeze(1) * tests), method, float(tests.max()))
    against, error = _integrate(rule, magnitude.expand(shape), with_error)
    other = error / torch.expm1(-against)
    if signed:
        # Either side may be the improbable one, and that is the one to be integrated.
        towards, other = _integrate(rule, -magnitude.expand(shape), with_error)
        against, winning = complete(against, towards)
    else:
        winning = log1mexp(against)
    wins = (h >= 0).expand(shape)
    dtype = promote(margins.dtype, rule.law_dtype)
    value = torch.where(wins, winning, against).to(dtype)
    # What lies beyond the range, and rounding.
    floor = 1e-3 * method.tolerance + 16 * torch.finfo(dtype).eps * (1 + value.detach().abs())
    error = torch.where(wins, other, error) + floor
    return value, error.to(dtype)


def _integrate(rule: _Rule, magnitude: Tensor, with_error: bool) -> tuple[Tensor, Tensor]:
    """Log E[sigmoid(-beta |h|)] and, if asked for, its error's bound (else zeros), block by block of pairs."""
    count, shape = rule.strength.shape[0], magnitude.shape
    lead = (1,) * (len(shape) - rule.step.dim())

    def flat(nodes: Tensor) -> Tensor:
        # With one law for all pairs nothing is copied.
        wide = nodes.reshape(count, *lead, *nodes.shape[1:])
        return wide.reshape(count, 1) if rule.step.numel() == 1 else wide.expand(count, *shape).reshape(count, -1)

    strength, density = flat(rule.strength), flat(rule.log_density)
    pairs = magnitude.reshape(-1)
    size = max(1, _CHUNK // count)
    keep = pairs.shape[0] <= size or not torch.is_grad_enabled()
    values, errors = [], []
    for start in range(0, pairs.shape[0], size):
        part = slice(start, start + size)
        columns = slice(None) if strength.shape[1] == 1 else part
        arguments = (strength[:, columns], density[:, columns], pairs[part])
        value = _losing(*arguments) if keep else checkpoint(_losing, *arguments, use_reentrant=False)
        values.append(value)
        if with_error:
            with torch.no_grad():
                half = _losing(arguments[0][::2], arguments[1][::2], pairs[part])
                errors.append((half - value).abs())
    # Rounding may lift a probability of 1 above it.
    total = torch.cat(values).clamp_max(0.0).reshape(shape)
    return total, torch.cat(errors).reshape(shape) if with_error else torch.zeros_like(total)


def _losing(strength: Tensor, density: Tensor, magnitude: Tensor) -> Tensor:
    return torch.logsumexp(density + logsigmoid(-strength * magnitude), 0) - torch.logsumexp(density, 0)


def _test_margins(magnitude: Tensor, batch_dims: int) -> Tensor:
    """Zero, and some quantiles of |h| up to the largest; (tests, *(1,) * batch_dims)."""
    levels = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99, 1.0], dtype=magnitude.dtype, device=magnitude.device)
    ordered = magnitude.reshape(-1).sort().values
    chosen = ordered[(levels * (ordered.shape[0] - 1)).round().long()]
    return torch.cat([chosen.new_zeros(1), chosen]).unique().reshape(-1, *(1,) * batch_dims)


@register_panel_marginal(Distribution, Quadrature, when=has_density)
def _panel(law: Distribution, problem: PanelProblem, method: Quadrature) -> Tensor:
    if not problem.num_panels:
        return problem.margins.new_zeros(problem.shape)

    def likelihood(beta: Tensor) -> Tensor:
        return _panel_log_likelihood(problem, beta)

    def tests(beta: Tensor) -> Tensor:
        value = likelihood(beta)
        # The law by itself, which is what a person without choices has, is within the range as well.
        return torch.stack([value, torch.zeros_like(value)], 1)

    steepest = float(problem.margins.detach().abs().max()) if problem.margins.numel() else 1.0
    rule = make_rule(law, tests, method, steepest)
    value = rule.log_average(likelihood(rule.strength)).expand(problem.shape)
    return value.to(promote(problem.margins.dtype, rule.law_dtype))


def _panel_log_likelihood(problem: PanelProblem, beta: Tensor) -> Tensor:
    """Beta (nodes, *law.batch_shape) to (nodes, ..., panels)."""
    return problem.log_likelihood(beta.unsqueeze(-1) if beta.dim() == 1 else beta)
