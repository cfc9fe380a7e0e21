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
    return log_mean_exp(logsigmoid(beta.to(dtype) * margins.to(dtype)), 0)
