"""What is known about a strength family: its parameters, how it is integrated, and how exactly, measured here and now."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, biject_to
from torch.nn.functional import logsigmoid

from pluralpref.distributions.generators import generators_kept
from pluralpref.distributions.structure import factor_of, parts_of
from pluralpref.errors import UnsupportedError
from pluralpref.inference.marginal import MonteCarlo, available_methods, log_marginal
from pluralpref.inference.marginal.dispatch import available_panel_methods, unwrap_law
from pluralpref.models import StrengthModel

#: Margins, in units of 1/E|beta|, at which a family is measured.
_MARGINS = (0.03, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
#: Monte Carlo is measured up to this one: in the tails K = 16 draws say next to nothing.
_LARGEST_SAMPLED = 3.0
_REPLICATES = 200
_SEED = 20_261_126


@dataclass(frozen=True)
class FamilyFacts:
    """One strength model, looked at.

    :param name: how it's called.
    :param parameters: its learned parameters and those with a prior.
    :param mean: E[beta] of the law as it stands.
    :param cv: its coefficient of variation.
    :param methods: how single pairs can be integrated, the most exact first, which is what ``"auto"`` takes.
    :param panel_methods: how several choices that share one beta can be.
    :param error: the largest relative error of P that was found for the first method, against SciPy's tanh-sinh
        quadrature of the density (for point masses: the plain sum); ``None`` where there is no density to integrate.
    :param sampling_error: the largest root mean square relative error of P by Monte Carlo with K = 16 independent draws,
        for margins up to 3/E|beta|; ``None`` where there are no draws with a gradient.
    """

    name: str
    parameters: tuple[str, ...]
    mean: float
    cv: float
    methods: tuple[str, ...]
    panel_methods: tuple[str, ...]
    error: float | None
    sampling_error: float | None


def describe_family(name: str, strength: StrengthModel) -> FamilyFacts:
    """Look at a strength model and measure its integration at fourteen margins of both signs.

    Global generators are left as they were.

    :param name: how to call it.
    :param strength: the model; its law without a context is measured.
    """
    law = unwrap_law(strength.law())
    with torch.no_grad(), generators_kept(_SEED):
        size = float(law.sample(torch.Size([10_000])).double().abs().mean())
        magnitude = torch.tensor(_MARGINS, dtype=torch.float64) / (size if size > 0 else 1.0)
        margins = torch.cat([-magnitude, magnitude])
        methods = available_methods(law)
        truth = _truth(law, margins)
        error = None
        if truth is not None and methods and methods[0] != "monte_carlo":
            error = float((log_marginal(law, margins) - truth).abs().max())
        sampling_error = None
        if "monte_carlo" in methods:
            near = margins[torch.tensor(2 * [m <= _LARGEST_SAMPLED for m in _MARGINS])]
            exact = log_marginal(law, near, "auto" if error is not None else MonteCarlo(100_000))
            runs = torch.stack([log_marginal(law, near, MonteCarlo(16)) for _ in range(_REPLICATES)])
            sampling_error = float(torch.expm1(runs - exact).square().mean(0).sqrt().max())
    return FamilyFacts(
        name=name,
        parameters=tuple(strength.parameter_names()),
        mean=float(strength.mean),
        cv=float(strength.cv),
        methods=methods,
        panel_methods=available_panel_methods(law),
        error=error,
        sampling_error=sampling_error,
    )


def _truth(law: Distribution, margins: Tensor) -> Tensor | None:
    """Log E[sigmoid(beta h)] by a way that shares nothing with the package's, or ``None`` without a density."""
    try:
        return _log_expectation(law, margins)
    except (NotImplementedError, UnsupportedError):
        return None


def _log_expectation(law: Distribution, margins: Tensor) -> Tensor:
    if (parts := parts_of(law)) is not None:
        values = [w.double() + _log_expectation(c, margins) for w, c in zip(*parts, strict=True)]
        return torch.logsumexp(torch.stack(values), 0)
    if isinstance(law, Delta):
        return logsigmoid(law.mean.double() * margins)
    if isinstance(law, TransformedDistribution) and (factor := factor_of(law)) is not None:
        return _log_expectation(law.base_dist, margins * factor)
    return _tanh_sinh(law, margins)


def _tanh_sinh(law: Distribution, margins: Tensor) -> Tensor:
    from scipy.integrate import tanhsinh

    support: Any = law.support
    transform = biject_to(support)
    if support.is_discrete:
        raise NotImplementedError

    def log_integrand(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        nodes = torch.as_tensor(np.asarray(x, dtype=np.float64))
        beta = transform(nodes)
        inside = support.check(beta) & torch.isfinite(beta)
        safe = torch.where(inside, beta, transform(torch.zeros_like(nodes)))
        density = law.log_prob(safe) + transform.log_abs_det_jacobian(nodes, beta)
        value = density + logsigmoid(safe * torch.as_tensor(h))
        value = torch.where(inside & torch.isfinite(value), value, torch.full_like(value, -math.inf))
        return value.numpy()

    # Centred where the law is: the rule's nodes are densest around 0.
    centre, width = _bulk(law, transform)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = tanhsinh(
            lambda y, h: log_integrand(centre + width * y, h),
            -math.inf,
            math.inf,
            args=(margins.numpy(),),
            log=True,
            rtol=-35.0,
            # The rule compares levels, and the coarse ones may agree by chance.
            minlevel=6,
            maxlevel=12,
        )
    return torch.as_tensor(np.real(result.integral)) + math.log(width)


def _bulk(law: Distribution, transform: Any) -> tuple[float, float]:
    drawn = transform.inv(law.sample(torch.Size([2000])).double())
    drawn = drawn[torch.isfinite(drawn)]
    return float(drawn.median()), max(2 * float(drawn.std()), 1e-6)
