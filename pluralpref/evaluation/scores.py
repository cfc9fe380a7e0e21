"""What each held-out pair says about a law: the numbers that every metric is an average of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import ConfigError
from pluralpref.evaluation.labels import complete_labels, group_columns, table_column
from pluralpref.inference.choices import Choices, as_choices
from pluralpref.inference.marginal.dispatch import Method, MonteCarlo, resolve_method, unwrap_law
from pluralpref.inference.marginal.draws import draw_strengths
from pluralpref.inference.marginal.monte_carlo import log_average
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.models import StrengthModel

#: The column of a margins table that says which pair of the source a row is.
ROW_COLUMN = "row"
#: Draws where a law has no better method. Shared by all pairs, so that a pair's number depends on no other pair.
_DRAWS = 1024
_MOST_VALUES = 2**22


@dataclass(frozen=True)
class PairScores:
    r"""Held-out choices with what a law of :math:`\beta` makes of each. Made by :func:`pair_scores`.

    With margins :math:`h_i` and labels :math:`y_i`, all arrays (pairs,) float64 and in nats where they have a unit:

    :param margins: :math:`h_i`, chosen minus rejected.
    :param preferred: :math:`y_i` in [0, 1]; 1 where the answer called chosen was preferred.
    :param weight: :math:`w_i \geq 0`.
    :param log_loss: :math:`-y_i \log E[\sigma(\beta h_i)] - (1 - y_i) \log E[\sigma(-\beta h_i)]`.
    :param probability: :math:`E[\sigma(\beta h_i)]`, the mixed law's probability that the chosen answer is preferred.
    :param mean_beta: :math:`E[\beta]`.
    :param annotator: codes 0, 1, …, or ``None``.
    :param annotator_names: the label of each code.
    :param groups: labels as strings by column name; what isn't there is called ``"missing"``.
    :param cluster: labels of what is resampled in place of annotators, or ``None``.
    :param cluster_name: what they are called.
    :param key: which pair of the source each row is, or ``None``.
    """

    margins: np.ndarray
    preferred: np.ndarray
    weight: np.ndarray
    log_loss: np.ndarray
    probability: np.ndarray
    mean_beta: float
    annotator: np.ndarray | None = None
    annotator_names: tuple[Any, ...] = ()
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    cluster: np.ndarray | None = None
    cluster_name: str = "cluster"
    key: np.ndarray | None = None

    @property
    def num_pairs(self) -> int:
        """The number of pairs."""
        return len(self.margins)

    @property
    def margin(self) -> np.ndarray:
        """:math:`(2 y_i - 1) h_i`: the margin of the answer that was preferred."""
        return self.margins * (2 * self.preferred - 1)

    @property
    def win(self) -> np.ndarray:
        """The chance that the label agrees with the margin's sign; 0 for a tie."""
        agrees = np.where(self.margins > 0, self.preferred, 1 - self.preferred)
        return np.where(self.margins == 0, 0.0, agrees)

    @property
    def tie(self) -> np.ndarray:
        """1 where the margin is 0."""
        return (self.margins == 0).astype(np.float64)

    @property
    def has_plug_in(self) -> bool:
        r"""Whether :math:`E[\beta]` is finite: without, there is no plug-in law."""
        return math.isfinite(self.mean_beta)

    @property
    def plug_in(self) -> np.ndarray:
        r""":math:`\sigma(E[\beta] h_i)`: the probability with the mean strength in the place of its law."""
        return np.exp(-np.logaddexp(0, -self.mean_beta * self.margins))

    @property
    def plug_in_log_loss(self) -> np.ndarray:
        """The log-loss of :attr:`plug_in`."""
        z = self.mean_beta * self.margins
        return self.preferred * np.logaddexp(0, -z) + (1 - self.preferred) * np.logaddexp(0, z)

    def brier(self, probability: np.ndarray) -> np.ndarray:
        """:math:`y_i (1 - p_i)^2 + (1 - y_i) p_i^2`, expected over a soft label."""
        return self.preferred * (1 - probability) ** 2 + (1 - self.preferred) * probability**2

    def take(self, rows: np.ndarray) -> PairScores:
        """The scores of some rows, in that order."""
        chosen: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                chosen[each.name] = value[rows]
        return replace(self, **chosen, groups={name: labels[rows] for name, labels in self.groups.items()})


@torch.no_grad()
def pair_scores(
    law: Distribution | StrengthModel,
    margins: Any,
    *,
    weight: Any = None,
    annotator: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | Sequence[str] | None = None,
    cluster: Any = None,
    key: Any = None,
    method: str | Method = "auto",
) -> PairScores:
    r"""Score held-out choices under a law of :math:`\beta`.

    Each pair's numbers depend on that pair and the law alone, so that no metric depends on the rows' order or on how they
    are divided. Where a law is integrated by Monte Carlo, all pairs have the same draws for this reason (seed 0 and 1024
    draws where ``method`` doesn't say otherwise), and the global generators are left alone.

    :param law: the law of beta with batch shape (), or a strength model, whose law as it stands is taken.
    :param margins: (pairs,) finite, nats; or a margins table, from which annotators, weights and labels are taken too.
    :param weight: (pairs,) >= 0.
    :param annotator: labels, one for each pair.
    :param preferred: (pairs,) in [0, 1].
    :param groups: columns of labels by name, or names of the table's columns.
    :param cluster: labels of what to resample in place of annotators (a conversation, say), or the name of a column of
        the table.
    :param key: labels that tell which pair a row is, or the name of a column of the table; default the table's column
        ``row``, which ``train`` and ``margins`` write. Needed only to match the pairs of several runs.
    :param method: how to integrate over beta, see :func:`~pluralpref.inference.marginal.log_marginal`.
    :raises DataError: for margins that aren't finite, columns of the wrong length or that aren't in the table, and labels
        of annotators, clusters or keys that are missing, naming the rows.
    :raises ConfigError: if ``law`` is neither a distribution nor a strength model, or is a law for each pair.
    """
    distribution = _as_law(law)
    if distribution.batch_shape.numel() != 1:
        raise ConfigError(f"one law for all pairs is needed, not one of batch shape {tuple(distribution.batch_shape)}")
    named = group_columns(margins, groups)
    if groups is None and isinstance(margins, Choices):
        named = margins.groups
    data = as_choices(margins, annotator=annotator, weight=weight, preferred=preferred, groups=named)
    pairs = data.num_pairs
    if key is None and ROW_COLUMN in (getattr(margins, "groups", None) or {}):
        key = ROW_COLUMN
    log_prob, probability = _probabilities(distribution, data, method)
    return PairScores(
        margins=data.margins.numpy(),
        preferred=data.preferred.numpy(),
        weight=np.ones(pairs) if data.weight is None else data.weight.numpy(),
        log_loss=-log_prob.double().numpy(),
        probability=probability.double().numpy(),
        mean_beta=float(distribution.mean),
        annotator=None if data.annotator is None else data.annotator.numpy(),
        annotator_names=data.annotator_names,
        groups=data.groups,
        cluster=_column(margins, cluster, "cluster", pairs),
        cluster_name=cluster if isinstance(cluster, str) else "cluster",
        key=_column(margins, key, "key", pairs),
    )


def _as_law(law: Any) -> Distribution:
    if isinstance(law, StrengthModel):
        return law.law()
    if not isinstance(law, Distribution):
        raise ConfigError(f"law must be a distribution of beta or a StrengthModel, not {type(law).__name__}")
    return law


def _column(margins: Any, column: Any, option: str, pairs: int) -> np.ndarray | None:
    if column is None:
        return None
    if isinstance(column, str):
        return complete_labels(table_column(margins, column, option), f"{option} {column!r}", pairs)
    return complete_labels(column, option, pairs)


def _probabilities(law: Distribution, data: Choices, method: str | Method) -> tuple[Tensor, Tensor]:
    """(log-likelihood of each label, probability that the chosen answer is preferred)."""
    h, y = data.margins, data.preferred
    _, found = resolve_method(unwrap_law(law), method)
    if isinstance(found, MonteCarlo):
        log_one, log_zero = _by_shared_draws(law, h, MonteCarlo(_DRAWS) if isinstance(method, str) else found)
        # A weight of 0 drops its term even where that is -inf.
        log_prob = torch.where(y > 0, y * log_one, 0.0) + torch.where(y < 1, (1 - y) * log_zero, 0.0)
        return log_prob, log_one.exp()
    mixed = MixedLogit(law, h, method)
    log_prob = mixed.log_prob(y)
    if bool(((y > 0) & (y < 1)).any()):
        return log_prob, mixed.probs
    # The likelihood of a hard label tells the probability without a second integral.
    return log_prob, torch.where(y == 1, log_prob.exp(), -log_prob.expm1())


def _by_shared_draws(law: Distribution, h: Tensor, method: MonteCarlo) -> tuple[Tensor, Tensor]:
    """(log P(1), log P(0)) with the same draws for every pair, in blocks of pairs that fit in memory."""
    own = replace(method, shared=False, seed=0 if method.seed is None else method.seed)
    if own.design == "iid":  # no gradient is needed, so neither is rsample
        with generators_kept(own.seed):
            beta = law.sample(torch.Size([own.num_samples]))
    else:
        beta = draw_strengths(law, own)
    beta = beta.double().reshape(-1, 1)
    one, zero = [], []
    for block in h.split(max(1, _MOST_VALUES // len(beta))):
        one.append(log_average(logsigmoid(beta * block), own))
        zero.append(log_average(logsigmoid(-beta * block), own))
    return torch.cat(one), torch.cat(zero)
