r"""One policy of several by min-max regret, MMRA (arXiv:2405.15065).

Class i's reward is what DPO says that it is, :math:`r_i(x, y) = \beta \log \pi_i(y|x) / \pi_{ref}(y|x)` up to a function of the
prompt. What the class loses when policy j answers in the place of its own is its regret

.. math::
    R_{ij} = L_{ii} - L_{ij}, \qquad
    L_{ij} = E_{x}\, E_{y \sim \pi_j(\cdot|x)} \log \frac{\pi_i(y|x)}{\pi_{ref}(y|x)},

here in nats of log-ratio, without :math:`\beta`, which multiplies all of them. The mixture :math:`\sum_j w_j \pi_j` whose
greatest regret is the least is one player's strategy in a zero-sum game.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from pluralpref.errors import ConfigError, DataError, InferenceError

#: How far over the least greatest regret equal weights may pull the mixture, relative to the regrets' size.
_SLACK = 1e-9
#: Weights that lie closer together are the same mixture.
_SAME = 1e-6


@dataclass(frozen=True)
class MinMaxRegret:
    """The mixture of policies with the least greatest regret.

    :param weights: (classes,) of the policies; add up to 1. Each answer is one policy's, drawn by these.
    :param regrets: (classes i, policies j) what class i loses when policy j answers, nats of log-ratio.
    :param standard_errors: of the regrets, over prompts; nan from one prompt.
    :param regret_weights: (classes,) factors of the classes' regrets.
    """

    weights: Tensor
    regrets: Tensor
    standard_errors: Tensor
    regret_weights: Tensor

    def regret_of(self, weights: Tensor) -> Tensor:
        """Each class's regret when a mixture answers, (classes,), nats, without ``regret_weights``.

        :param weights: (classes,) of the policies.
        """
        return self.regrets @ weights

    def worst_of(self, weights: Tensor) -> float:
        """The greatest of the classes' regrets times ``regret_weights``, at least 0, nats.

        :param weights: (classes,) of the policies.
        """
        return max(0.0, float((self.regret_weights * self.regret_of(weights)).max()))


def min_max_regret(log_ratios: Tensor, regret_weights: Sequence[float] | None = None) -> MinMaxRegret:
    r"""The mixture :math:`\arg\min_w \max(0, \max_i c_i \sum_j w_j R_{ij})`, see this module.

    As in the authors' program a further opponent has no regret, so that regrets below 0, which are noise of the answers, don't
    count. They play the game by optimistic multiplicative weights; here it is solved as a linear program. Where several mixtures
    are as good, the one closest to equal weights is taken.

    :param log_ratios: (prompts, classes i, policies j) log pi_i / pi_ref of policy j's answer to the prompt, nats.
    :param regret_weights: (classes,) c, how much a class's regret counts; default 1.
    :raises DataError: for another shape, no prompt, or values that aren't finite.
    :raises ConfigError: for weights that aren't positive numbers, one for each class.
    """
    values = torch.as_tensor(log_ratios, dtype=torch.float64)
    if values.dim() != 3 or values.shape[1] != values.shape[2] or not values.numel():
        raise DataError(f"log_ratios have shape {tuple(values.shape)}: expected (prompts, classes, classes)")
    if not bool(torch.isfinite(values).all()):
        prompt = int((~torch.isfinite(values)).nonzero()[0, 0])
        raise DataError(f"log_ratios of prompt {prompt} aren't finite: its answers can't be scored by every policy")
    prompts, classes = values.shape[:2]
    factors = check_regret_weights(regret_weights, classes)
    single = values.diagonal(dim1=1, dim2=2).unsqueeze(2) - values
    errors = single.std(0) / prompts**0.5 if prompts > 1 else torch.full((classes, classes), torch.nan).double()
    regrets = single.mean(0)
    weights = torch.from_numpy(_solve((factors.unsqueeze(1) * regrets).numpy()))
    return MinMaxRegret(weights, regrets, errors, factors)


def check_regret_weights(regret_weights: Sequence[float] | None, classes: int) -> Tensor:
    """:returns: (classes,) float64, 1 where there are none.

    :raises ConfigError: unless they are positive numbers, one for each class.
    """
    if regret_weights is None:
        return torch.ones(classes, dtype=torch.float64)
    factors = torch.as_tensor(list(regret_weights), dtype=torch.float64)
    if factors.shape != (classes,) or not bool(((factors > 0) & torch.isfinite(factors)).all()):
        raise ConfigError(f"regret_weights={list(regret_weights)}: give {classes} positive numbers, one for each class")
    return factors


def _solve(regrets: np.ndarray) -> np.ndarray:
    """The column player's strategy."""
    classes = len(regrets)
    # Variables: the weights, and the greatest regret, which is to be small.
    found = linprog(
        np.r_[np.zeros(classes), 1.0],
        A_ub=np.c_[regrets, -np.ones(classes)],
        b_ub=np.zeros(classes),
        A_eq=np.r_[np.ones(classes), 0.0][None],
        b_eq=[1.0],
        bounds=(0, None),
    )
    if not found.success:
        raise InferenceError(f"the min-max program can't be solved: {found.message}")
    size = max(1.0, np.abs(regrets).max())
    corner, worst = found.x[:-1] / found.x[:-1].sum(), found.x[-1] + _SLACK * size
    middle = minimize(
        lambda w: ((w - 1 / classes) ** 2).sum(),
        corner,
        jac=lambda w: 2 * (w - 1 / classes),
        method="SLSQP",
        bounds=[(0, 1)] * classes,
        options={"ftol": 1e-16},
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(classes)},
            {"type": "ineq", "fun": lambda w: worst - regrets @ w, "jac": lambda w: -regrets},
        ],
    )
    weights = np.clip(middle.x, 0, None)
    weights /= weights.sum()
    # The program's own corner where it is the only solution (it holds exact zeros), and where the second solver gave up.
    only = np.abs(weights - corner).max() < _SAME
    return corner if only or (regrets @ weights).max() > worst + _SLACK * size else weights
