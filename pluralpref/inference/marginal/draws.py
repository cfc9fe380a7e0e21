"""The draws of a Monte-Carlo marginal: independent, or spread over the law more evenly than chance would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import UnsupportedError
from pluralpref.inference.marginal.dispatch import MonteCarlo, unwrap_law


def draw_strengths(law: Distribution, method: MonteCarlo, padding: tuple[int, ...] = ()) -> Tensor:
    r"""K draws of beta for every cell of the law, differentiable in its parameters.

    Independent draws come from ``rsample``. Every other design puts points q in (0, 1) through the quantile function:
    :math:`\beta_k = F^{-1}(q_k)`. The points are uniform each by itself, so the mean over draws is unbiased.

    :param law: the law of beta.
    :param method: number, design, sharing and seed of the draws. Without a seed they come from the global generator.
    :param padding: dimensions of size 1 or more between the draws' and the law's own.
    :returns: ``(K, *padding, *law.batch_shape)``; with ``shared``, cells of the same law have the same draws.
    :raises UnsupportedError: if the design needs ``icdf`` and the law has none.
    """
    shape = (*padding, *law.batch_shape)
    if method.design == "iid" and not method.shared:
        with _seeded(method.seed):
            return law.rsample(torch.Size((method.num_samples, *padding)))
    law = unwrap_law(law)
    like = _median(law, method)
    with _seeded(method.seed):
        points = _points(method, (1,) * len(shape) if method.shared else shape)
    # Points are made on the CPU and in float64 wherever the law is: the same ones on every device.
    return law.icdf(points.to(like.device)).to(like.dtype).expand(method.num_samples, *shape)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with generators_kept(seed):
        yield


def _points(method: MonteCarlo, cells: tuple[int, ...]) -> Tensor:
    """(K, *cells) in (0, 1), float64, independent between cells."""
    count = method.num_samples
    ones = (1,) * len(cells)
    if method.design == "antithetic":
        half = torch.rand((count // 2, *cells), dtype=torch.float64)
        points = torch.cat([half, 1 - half])
    elif method.design == "stratified":
        strata = torch.arange(count, dtype=torch.float64).reshape(-1, *ones)
        points = (strata + torch.rand((count, *cells), dtype=torch.float64)) / count
    else:
        points = torch.rand((count, *cells), dtype=torch.float64)
    return points.clamp(2.0**-60, 1 - 2.0**-53)


def _median(law: Distribution, method: MonteCarlo) -> Tensor:
    """The law's medians, for their dtype and device; says so where there is no quantile function."""
    try:
        with torch.no_grad():
            return law.icdf(torch.tensor(0.5))
    except NotImplementedError:
        raise UnsupportedError(
            f"{type(law).__name__} has no quantile function (icdf), which {method} needs. Use MonteCarlo("
            f"{method.num_samples}), whose draws are independent and come from rsample, or give the family an icdf."
        ) from None
