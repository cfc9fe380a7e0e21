"""What a law is made of: the components of a mixture, the factor of a scaled law, the sign of its values."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    MixtureSameFamily,
    TransformedDistribution,
)

from pluralpref.distributions.mixture import MixtureGeneral, is_nonnegative
from pluralpref.errors import UnsupportedError


def parts_of(law: Distribution) -> tuple[list[Tensor], list[Distribution]] | None:
    """(log w_k, component k) of a mixture, all of the mixture's batch shape; ``None`` if it can't be taken apart."""
    if isinstance(law, MixtureGeneral):
        return list(law.log_weights.unbind(-1)), list(law.component_distributions)
    if not isinstance(law, MixtureSameFamily):
        return None
    logits = law.mixture_distribution.logits
    components = [_take(law.component_distribution, k) for k in range(logits.shape[-1])]
    if any(c is None or c.batch_shape != law.batch_shape for c in components):
        return None
    weights = (logits - torch.logsumexp(logits, -1, keepdim=True)).expand(*law.batch_shape, -1)
    return list(weights.unbind(-1)), [c for c in components if c is not None]


def _take(law: Distribution, k: int) -> Distribution | None:
    """The k-th along the last batch dimension, if the constructor takes the parameters that the class declares."""
    declared: Any = type(law).arg_constraints
    names = [name for name in declared if name in inspect.signature(type(law)).parameters]
    try:
        values: dict[str, Any] = {name: getattr(law, name).expand(law.batch_shape)[..., k] for name in names}
        return type(law)(**values, validate_args=False)
    except (TypeError, AttributeError, RuntimeError, NotImplementedError):
        return None


def factor_of(law: Distribution) -> Any | None:
    """C, if the law is that of c X with X from ``law.base_dist``."""
    if not isinstance(law, TransformedDistribution) or len(law.transforms) != 1 or law.base_dist.event_shape:
        return None
    (transform,) = law.transforms
    if not isinstance(transform, AffineTransform) or bool((torch.as_tensor(transform.loc) != 0).any()):
        return None
    return transform.scale


def log_shares(law: Distribution) -> tuple[Tensor, Tensor]:
    r"""(log P(beta > 0) + P(beta = 0)/2, and the same for beta < 0): the marginals at margins of plus and minus infinity.

    :returns: two tensors that broadcast with ``law.batch_shape``.
    :raises UnsupportedError: for a law on the real line without a distribution function.
    """
    if isinstance(law, Delta):
        half = torch.full_like(law.v, 0.5)
        above = torch.where(law.v == 0, half, (law.v > 0).to(half.dtype))
        return above.log(), (1 - above).log()
    if (parts := parts_of(law)) is not None:
        shares = [log_shares(c) for c in parts[1]]
        sums = [
            torch.logsumexp(
                torch.stack([(w + s[side]).expand(law.batch_shape) for w, s in zip(parts[0], shares, strict=True)]), 0
            )
            for side in (0, 1)
        ]
        return sums[0], sums[1]
    if isinstance(law, TransformedDistribution) and (factor := factor_of(law)) is not None:
        above, below = log_shares(law.base_dist)
        positive = torch.as_tensor(factor) > 0
        return torch.where(positive, above, below), torch.where(positive, below, above)
    if is_nonnegative(law):
        return torch.zeros(()), torch.full((), -torch.inf)
    try:
        below = law.cdf(torch.zeros(law.batch_shape))
    except NotImplementedError:
        raise UnsupportedError(
            f"{type(law).__name__} has negative strengths and no cdf, so its limit at an infinite margin is unknown: "
            "leave infinite margins out, or give the family a cdf"
        ) from None
    return torch.log1p(-below), below.log()


def has_atoms(law: Distribution) -> bool:
    """Whether some values have a positive probability."""
    if isinstance(law, Delta):
        return True
    if (parts := parts_of(law)) is not None:
        return any(map(has_atoms, parts[1]))
    if isinstance(law, TransformedDistribution):
        return has_atoms(law.base_dist)
    try:
        support: Any = law.support
    except NotImplementedError:
        return False
    return bool(support.is_discrete)


def point_masses(law: Distribution) -> list[Tensor]:
    """Where a law's point masses are, those of its components' components among them; of the batch's shape each."""
    if isinstance(law, Delta):
        return [law.v]
    parts = parts_of(law)
    return [] if parts is None else [v for component in parts[1] for v in point_masses(component)]


def atoms_of(law: Distribution) -> list[tuple[float, float]]:
    """(value, probability) of every point mass of one law, batch shape ()."""
    if isinstance(law, Delta):
        return [(float(law.v.detach()), 1.0)]
    if (parts := parts_of(law)) is not None:
        shares = [float(w.detach().exp()) for w in parts[0]]
        return [(v, share * p) for share, c in zip(shares, parts[1], strict=True) for v, p in atoms_of(c)]
    return []
