"""The method that every reparameterised family has: the mean over draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pluralpref.inference.marginal.dispatch import MonteCarlo, register_marginal
from pluralpref.inference.marginal.draws import draw_strengths
from pluralpref.inference.marginal.safe_math import log_mean_exp, promote


@register_marginal(Distribution, MonteCarlo)
def _monte_carlo(law: Distribution, margins: Tensor, method: MonteCarlo) -> Tensor:
    r"""Log of the mean of sigmoid(beta_k h) over K draws, new ones for every pair unless they are shared.

    Without a seed the draws come from torch's global generator, so that restoring its state (as a trainer's
    checkpoints do) repeats them.
    """
    shape = torch.broadcast_shapes(law.batch_shape, margins.shape)
    beta = draw_strengths(law.expand(shape), method)
    dtype = promote(beta.dtype, margins.dtype)
    return log_average(logsigmoid(beta.to(dtype) * margins.to(dtype)), method)


def log_average(log_values: Tensor, method: MonteCarlo) -> Tensor:
    r"""Log of the mean of exp(log_values) over the K draws, with the correction that ``method`` asks for.

    With r_k = p_k/m the correction is :math:`\sum_k (r_k - 1)^2 / (2 K (K-1))`, at most 1/2.

    :param log_values: (K, ...), nats.
    :returns: (...), nats.
    """
    value = log_mean_exp(log_values, 0)
    if not method.bias_correction:
        return value
    count = log_values.shape[0]
    # A mean of 0 has no ratios; its logarithm stays -inf.
    known = torch.isfinite(value)
    ratio = torch.exp(log_values - torch.where(known, value, 0.0))
    excess = torch.where(known, ((ratio - 1) ** 2).sum(0), 0.0)
    # Rounding may lift a probability of 1 above it.
    return (value + excess / (2 * count * (count - 1))).clamp_max(0.0)
