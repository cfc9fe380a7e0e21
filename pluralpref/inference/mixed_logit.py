"""The mixed logit as a distribution: a Bernoulli whose log-odds are beta times the margin, with beta integrated out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.marginal import log_marginal
from pluralpref.inference.marginal.dispatch import Method, check_margins


class MixedLogit(TorchDistribution):
    r"""Choices of people whose preference strengths are drawn from ``strength``.

    ``P(value = 1) = E_beta[sigmoid(beta h)]``: a compound distribution over {0, 1}, as BetaBinomial and
    GammaPoisson are over counts. Every element has a beta of its own; for people who choose several times see
    :func:`~pluralpref.inference.marginal.log_marginal_panel`.

    ::

        with pyro.plate("pairs", len(h)):
            pyro.sample("preferred", MixedLogit(dist.Gamma(2.0, 20.0), h), obs=torch.ones(len(h)))

    :param strength: the distribution of beta, or an object with a method ``law()`` that returns it (a
        :class:`~pluralpref.models.StrengthModel`).
    :param margins: h, in nats; the batch shape is that of ``margins`` and the law broadcast together.
    :param method: how to integrate, as in :func:`~pluralpref.inference.marginal.log_marginal`.
    :raises DataError: if a margin is NaN.
    :raises ConfigError: if ``strength`` is neither a distribution nor has a ``law()``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"margins": constraints.real}
    support = constraints.boolean
    has_enumerate_support = True

    def __init__(
        self,
        strength: Any,
        margins: Tensor,
        method: str | Method = "auto",
        *,
        validate_args: bool | None = None,
    ) -> None:
        law = strength
        if not isinstance(law, Distribution):
            if not callable(getattr(strength, "law", None)):
                raise ConfigError(
                    f"MixedLogit needs a distribution of beta or a StrengthModel, not {type(strength).__name__}."
                )
            law = strength.law()
        self.strength = law
        self.method = method
        batch_shape = torch.broadcast_shapes(law.batch_shape, torch.as_tensor(margins).shape)
        self.margins = check_margins(margins).expand(batch_shape)
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: MixedLogit | None = None) -> MixedLogit:
        """The same distribution with a larger batch shape."""
        new = self._get_checked_instance(MixedLogit, _instance)
        new.strength = self.strength
        new.method = self.method
        new.margins = self.margins.expand(torch.Size(batch_shape))
        super(MixedLogit, new).__init__(torch.Size(batch_shape), torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log P(value), in nats.

        A hard choice, 1 or 0, gives ``log E[sigmoid(+-beta h)]``, in one evaluation with the sign of the margin
        turned. A value v between them is a soft label: the result is the expected log-likelihood
        ``v log P(1) + (1 - v) log P(0)`` of a choice that is 1 with probability v.

        :param value: in [0, 1], broadcastable with the batch shape.
        :raises DataError: naming the first index, if a value is outside [0, 1] or NaN.
        """
        value = torch.as_tensor(value, device=self.margins.device).to(self.margins.dtype)
        detached = value.detach()
        hard_one = detached == 1
        if bool((hard_one | (detached == 0)).all()):
            sign = torch.where(hard_one, 1.0, -1.0).to(self.margins.dtype)
            return log_marginal(self.strength, sign * self.margins, self.method)
        outside = ~((detached >= 0) & (detached <= 1))
        if bool(outside.any()):
            first = tuple(outside.nonzero()[0].tolist()) if detached.dim() else ()
            raise DataError(
                f"MixedLogit: {int(outside.sum())} values are outside [0, 1] (or NaN), the first at index {first}: "
                "give 1 for a chosen first answer, 0 for the other, or a probability."
            )
        log_one, log_zero = self._log_both()
        # A weight of 0 drops its term even where that is -inf.
        return torch.where(detached > 0, value * log_one, 0.0) + torch.where(detached < 1, (1 - value) * log_zero, 0.0)

    def _log_both(self) -> tuple[Tensor, Tensor]:
        return (
            log_marginal(self.strength, self.margins, self.method),
            log_marginal(self.strength, -self.margins, self.method),
        )

    @property
    def probs(self) -> Tensor:
        """P(value = 1)."""
        return torch.exp(log_marginal(self.strength, self.margins, self.method))

    @property
    def logits(self) -> Tensor:
        """Log P(1) - log P(0), the log-odds, accurate in both tails."""
        log_one, log_zero = self._log_both()
        return log_one - log_zero

    @property
    def mean(self) -> Tensor:
        """P(value = 1)."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """P(1) P(0)."""
        log_one, log_zero = self._log_both()
        return torch.exp(log_one + log_zero)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of 0. and 1., shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            probs = self.probs.clamp(0, 1)
            return torch.bernoulli(probs.expand(self._extended_shape(torch.Size(sample_shape))))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The values 0. and 1. along a new leftmost dimension."""
        values = torch.tensor([0.0, 1.0], dtype=self.margins.dtype, device=self.margins.device)
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values
