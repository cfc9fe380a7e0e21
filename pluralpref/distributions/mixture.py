"""A finite mixture whose components may be of different families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import Categorical, Delta, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from pluralpref.errors import ConfigError

_HALF_LINES = (constraints.positive, constraints.nonnegative)


class MixtureGeneral(TorchDistribution):
    r"""A person belongs to class k with probability :math:`w_k` and has a strength from that class's law.

    .. math:: p(\beta) = \sum_k w_k \, p_k(\beta).

    Components of different families, point masses (:class:`~pyro.distributions.Delta`) among them, which
    :class:`torch.distributions.MixtureSameFamily` can't have. Draws aren't reparameterised (``has_rsample`` is False),
    but a marginal is differentiable in everything: it is the weighted sum of the components' marginals.

    :param mixing: a Categorical over the K components, batch shape ``batch_shape`` or one that broadcasts to it.
    :param components: K distributions, event shape ().
    :raises ConfigError: if the numbers don't match, or a component is over vectors.

    The name is NumPyro's. Reference: G. McLachlan and D. Peel, *Finite Mixture Models*, 2000, chapter 1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self, mixing: Categorical, components: Sequence[Distribution], *, validate_args: bool | None = None
    ) -> None:
        count = mixing.logits.shape[-1]
        if len(components) != count or not components:
            raise ConfigError(f"MixtureGeneral: {count} probabilities for {len(components)} components")
        for k, component in enumerate(components):
            if component.event_shape:
                raise ConfigError(
                    f"MixtureGeneral: component {k} ({type(component).__name__}) has event shape "
                    f"{tuple(component.event_shape)}; beta is a number, so it must be ()"
                )
        shape = torch.broadcast_shapes(mixing.batch_shape, *(c.batch_shape for c in components))
        self.mixing_distribution = mixing.expand(shape)
        self.component_distributions = tuple(
            c if c.batch_shape == shape else c.expand(torch.Size(shape)) for c in components
        )
        super().__init__(torch.Size(shape), torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: MixtureGeneral | None = None) -> MixtureGeneral:
        """The same mixture with a larger batch shape."""
        new = self._get_checked_instance(MixtureGeneral, _instance)
        shape = torch.Size(batch_shape)
        new.mixing_distribution = self.mixing_distribution.expand(shape)
        new.component_distributions = tuple(c.expand(shape) for c in self.component_distributions)
        super(MixtureGeneral, new).__init__(shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_weights(self) -> Tensor:
        """Log w_k, normalised, shape ``batch_shape + (K,)``."""
        return self.mixing_distribution.logits

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The half line from 0 where no component can be negative, else the real line."""
        return constraints.nonnegative if all(map(is_nonnegative, self.component_distributions)) else constraints.real

    @property
    def mean(self) -> Tensor:
        r""":math:`\sum_k w_k \mu_k`."""
        return (self.log_weights.exp() * self._stack([c.mean for c in self.component_distributions])).sum(-1)

    @property
    def variance(self) -> Tensor:
        r""":math:`\sum_k w_k (s_k^2 + (\mu_k - \mu)^2)`."""
        spread = self._stack([c.variance for c in self.component_distributions])
        offset = self._stack([c.mean for c in self.component_distributions]) - self.mean.unsqueeze(-1)
        return (self.log_weights.exp() * (spread + offset**2)).sum(-1)

    def _stack(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([v.expand(self.batch_shape) for v in values], -1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = torch.Size(sample_shape)
            values = torch.stack(torch.broadcast_tensors(*(c.sample(shape) for c in self.component_distributions)), -1)
            chosen = self.mixing_distribution.sample(shape)
            return values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The log-density; at a point mass, the log of the mass.

        With respect to Lebesgue measure plus a count of the point masses: :math:`\log\sum_k w_k p_k` over the
        components with a density everywhere but at the atoms.

        :param value: broadcasts with the batch shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        weights = self.log_weights
        masses, densities = [], []
        for k, component in enumerate(self.component_distributions):
            if isinstance(component, Delta):
                masses.append(weights[..., k] + component.log_prob(value))
            else:
                densities.append(weights[..., k] + log_density(component, value))
        if not masses:
            return torch.logsumexp(torch.stack(densities), 0)
        mass = torch.logsumexp(torch.stack(masses), 0)
        if not densities:
            return mass
        density = torch.logsumexp(torch.stack(densities), 0)
        return torch.where(torch.isneginf(mass), density, mass)

    def cdf(self, value: Tensor) -> Tensor:
        r""":math:`\sum_k w_k F_k(\beta)`."""
        return (self.log_weights.exp() * torch.stack(self._cdfs(value), -1)).sum(-1)

    def _cdfs(self, value: Tensor) -> list[Tensor]:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return [share_below(component, value).expand(shape) for component in self.component_distributions]


def share_below(law: Distribution, value: Tensor) -> Tensor:
    """The distribution function on the whole real line, which most laws define on their support only."""
    if isinstance(law, Delta):
        return (value >= law.v).to(law.v.dtype)
    inside, safe = _inside(law, value)
    upper = torch.as_tensor(getattr(law.support, "upper_bound", torch.inf))
    return torch.where(inside, law.cdf(safe), (value >= upper).to(safe.dtype))


def is_nonnegative(law: Distribution) -> bool:
    """Whether no value of the law can be negative, as far as its support says."""
    if isinstance(law, Delta):
        return bool((law.v.detach() >= 0).all())
    try:
        support: Any = law.support
    except NotImplementedError:
        return False
    if support is None:
        return False
    if any(support is c for c in _HALF_LINES):
        return True
    lower = getattr(support, "lower_bound", None)
    return lower is not None and bool((torch.as_tensor(lower) >= 0).all())


def _inside(law: Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ``value`` lies in the law's support, and ``value`` with a point of the support where it doesn't."""
    support: Any = law.support
    inside = support.check(value)
    point = biject_to(support)(torch.zeros_like(value))
    return inside, torch.where(inside, value, point)


def log_density(law: Distribution, value: Tensor) -> Tensor:
    """The law's log-density, -inf outside of its support (where ``log_prob`` may raise)."""
    inside, safe = _inside(law, value)
    density = law.log_prob(safe)
    return torch.where(inside, density, torch.full_like(density, -torch.inf))
