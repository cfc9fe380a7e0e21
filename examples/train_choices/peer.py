r"""The same models estimated by xlogit, which simulates: the average over draws in place of the integral over beta.

What xlogit 0.2.7 can be asked, as its source stands. It has log-normal coefficients, but they are independent of each
other, so a strength that multiplies all of w at once has to be one coefficient on margins that are given. Its
``scale_factor`` is one estimated constant for everybody (models in willingness-to-pay space), not a random scale. So w
and the law's spread can't be estimated together; w is checked by its plain logit, and by refitting the law on margins
of other w, a profile of the likelihood.

Traps: ``random_state`` has no effect on Halton draws unless they are shuffled; ``panels`` must be ordered, since the
last row's code is taken for the highest; the default start is a plain logit's coefficient, taken for the logarithm's
mean; the estimated standard deviation may come out negative; the standard errors are BFGS's, of the outer product of
gradients; ``predict`` doesn't condition on a person's other choices. And it takes exp(-beta h) of the utilities
without a guard: a beta from the tail overflows float64 in the losing choice of a large margin and makes the gradient
NaN. Utilities in long double, which NumPy carries through all of it, have room enough.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from joint_fit import FAMILIES, JointFit, log_likelihood
from torch import Tensor
from train_data import TrainChoices

from pluralpref.errors import InferenceError
from pluralpref.models import LogNormalStrength

#: Elements of one array of draws; xlogit keeps about eight.
_BATCH_ELEMENTS = 2**21


@dataclass(frozen=True)
class LawFit:
    """A log-normal law fitted to given margins: log beta ~ Normal(loc, scale)."""

    log_likelihood: float
    loc: float
    scale: float
    seconds: float

    @property
    def values(self) -> np.ndarray:
        """Log-likelihood, loc and scale."""
        return np.array([self.log_likelihood, self.loc, self.scale])


@dataclass(frozen=True)
class Agreement:
    """One quantity, ours against the peer's.

    :param error: what the peer leaves open by its simulation, or by where it stops.
    """

    what: str
    ours: float
    peer: float
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the error."""
        return abs(self.ours - self.peer) <= self.error


def installed() -> bool:
    """Whether xlogit can be imported."""
    return importlib.util.find_spec("xlogit") is not None


def our_law(margins: Tensor, person: Tensor | None, num_people: int) -> LawFit:
    """The exact maximum over loc and scale, margins given.

    :raises InferenceError: if Newton's method doesn't reach it.
    """
    began = time.perf_counter()
    strength = LogNormalStrength(loc=0.0, scale=1.0).with_priors()

    def loss(theta: Tensor) -> Tensor:
        law = strength.law(parameters={"loc": theta[0], "scale": theta[1].exp()})
        return -log_likelihood(law, margins, person, num_people)

    theta = torch.tensor([0.0, math.log(0.5)], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    optimiser.step(closure)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    if not float(gradient.norm()) < 1e-3:
        raise InferenceError(f"the law's own fit ended with a gradient of norm {float(gradient.norm()):.1g}")
    loc, log_scale = theta.tolist()
    return LawFit(-loss(theta).item(), loc, math.exp(log_scale), time.perf_counter() - began)


def peer_law(margins: Tensor, person: Tensor | None, *, draws: int, drop: int = 100) -> LawFit:
    """Xlogit's maximum of the simulated likelihood over the same two parameters.

    :param draws: Halton draws for each choice, or for each person.
    :param drop: how many Halton points are left out first: another number gives other draws.
    :raises InferenceError: if xlogit says that it hasn't converged.
    """
    from xlogit import MixedLogit

    if np.finfo(np.longdouble).maxexp <= np.finfo(np.float64).maxexp:
        raise InferenceError("xlogit's exponentials overflow, and this platform's long double is no wider: --peer off")
    began = time.perf_counter()
    model = MixedLogit()
    table = _long_format(margins.unsqueeze(-1), ["h"])
    model.fit(
        **table | {"X": table["X"].astype(np.longdouble)},
        randvars={"h": "ln"},
        panels=None if person is None else np.repeat(person.numpy(), 2),
        init_coeff=np.array([0.0, 0.5]),
        n_draws=draws,
        halton_opts={"drop": drop},
        batch_size=max(1, _BATCH_ELEMENTS // len(margins)),
        # Its default tolerance asks for more than its line search can tell from round-off.
        tol_opts={"ftol": 1e-8, "gtol": 1e-6},
        skip_std_errs=True,
        verbose=0,
    )
    if not model.convergence:
        raise InferenceError(f"xlogit: {model.estimation_message} ({draws} draws)")
    loc, scale = model.coeff_.tolist()
    return LawFit(float(model.loglikelihood), loc, abs(scale), time.perf_counter() - began)


def peer_logit(data: TrainChoices) -> tuple[float, np.ndarray]:
    """Xlogit's plain logit: log-likelihood and w."""
    from xlogit import MultinomialLogit

    model = MultinomialLogit()
    names = [f"x{k}" for k in range(data.differences.shape[1])]
    model.fit(**_long_format(data.chosen_minus_other, names), verbose=0)
    return model.loglikelihood, model.coeff_


def _long_format(attributes: Tensor, names: list[str]) -> dict[str, Any]:
    """One row for what was chosen and one, of zeros, for the other: utilities count by their differences only."""
    count = len(attributes)
    rows = torch.stack([attributes, torch.zeros_like(attributes)], 1).flatten(0, 1)
    return {
        "X": rows.numpy(),
        "y": np.tile([1, 0], count),
        "varnames": names,
        "alts": np.tile([0, 1], count),
        "ids": np.repeat(np.arange(count), 2),
    }


def compare(
    margins: Tensor, person: Tensor | None, num_people: int, draws: Sequence[int], drops: Sequence[int]
) -> tuple[LawFit, dict[int, list[LawFit]], list[Agreement]]:
    """Our maximum, the peer's by number of draws, and whether they agree.

    :param draws: a smaller number, fitted with each of ``drops``, which shows the error of the simulation, and a larger
        one, fitted once, which is compared.
    """
    ours = our_law(margins, person, num_people)
    few, many = draws
    peers: dict[int, list[LawFit]] = {few: [], many: []}
    for number, drop in [*((few, drop) for drop in drops), (many, drops[0])]:
        peers[number].append(peer_law(margins, person, draws=number, drop=drop))
        print(f"  xlogit, {number} draws: log-likelihood {peers[number][-1].log_likelihood:.4f}", flush=True)
    error = 3 * np.stack([p.values for p in peers[few]]).std(0, ddof=1)
    agreements = [
        Agreement(what, float(a), float(b), float(e))
        for what, a, b, e in zip(
            ("log-likelihood", "loc", "scale"), ours.values, peers[many][0].values, error, strict=True
        )
    ]
    return ours, peers, agreements


def profile(
    fitted: JointFit, data: TrainChoices, draws: int, error: float, deviations: float = 2.0
) -> list[tuple[int, float, Agreement]]:
    """The log-likelihood, maximised over the law, where one coefficient of w is moved and the others stay.

    :param error: of a log-likelihood with so many draws, from :func:`compare` at the fitted w.
    :param deviations: how far, in standard errors; both ways.
    :returns: (attribute, move, ours against the peer's).
    """
    assert fitted.family is FAMILIES["lognormal"]
    assert fitted.standard_errors is not None
    person = data.person if fitted.panel else None
    out = []
    for k in range(len(fitted.w)):
        for move in (-deviations, deviations):
            w = fitted.w.clone()
            w[k] += move * fitted.standard_errors[k]
            margins = data.chosen_minus_other @ w
            ours = our_law(margins, person, data.num_people).log_likelihood
            theirs = peer_law(margins, person, draws=draws).log_likelihood
            out.append((k, move, Agreement("log-likelihood", ours, theirs, error)))
    return out
