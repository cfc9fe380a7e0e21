"""A preference strength that is the same for everybody: ordinary DPO."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from pluralpref.inference.marginal.dispatch import ClosedForm, register_marginal
from pluralpref.inference.marginal.safe_math import promote


@register_marginal(dist.Delta, ClosedForm)
def _delta(law: dist.Delta, margins: Tensor, method: ClosedForm) -> Tensor:
    """Log sigmoid(v h), for a point mass at v."""
    dtype = promote(law.v.dtype, margins.dtype)
    return logsigmoid(law.v.to(dtype) * margins.to(dtype))
