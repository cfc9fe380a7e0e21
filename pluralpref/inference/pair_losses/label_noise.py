"""DPO for choices of which a known share is mislabelled."""

from __future__ import annotations

from torch import Tensor

from pluralpref.errors import ConfigError
from pluralpref.inference.pair_losses.base import PairLoss, cross_entropy


class ConservativeLoss(PairLoss):
    r"""Conservative DPO: :math:`-(1-\epsilon) \log\sigma(\beta h) - \epsilon \log\sigma(-\beta h)`.

    Least where :math:`\sigma(\beta h) = 1 - \epsilon`, so margins stay finite.

    :param beta: > 0.
    :param label_smoothing: :math:`\epsilon`, the share of labels that are wrong, in (0, 0.5).
    :raises ConfigError: for another share.

    Reference: E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.
    """

    def __init__(self, beta: float, label_smoothing: float) -> None:
        super().__init__(beta)
        self.label_smoothing = _check(label_smoothing)

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """See :meth:`PairLoss.forward`; nats."""
        noise = self.label_smoothing
        return cross_entropy(self.beta * margins, (1 - noise) * preferred + noise * (1 - preferred))


class RobustLoss(PairLoss):
    r"""Robust DPO: :math:`\frac{-(1-\epsilon) \log\sigma(\beta h) + \epsilon \log\sigma(-\beta h)}{1 - 2\epsilon}`.

    Its expectation over labels of which a share :math:`\epsilon` was flipped is the loss on the true ones. It may be negative
    and has no lower bound.

    :param beta: > 0.
    :param label_smoothing: :math:`\epsilon`, in (0, 0.5).
    :raises ConfigError: for another share.

    Reference: S. Ray Chowdhury, A. Kini and N. Natarajan, "Provably Robust DPO", arXiv:2403.00409, equation 12.
    """

    def __init__(self, beta: float, label_smoothing: float) -> None:
        super().__init__(beta)
        self.label_smoothing = _check(label_smoothing)

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """See :meth:`PairLoss.forward`; nats."""
        noise, logits = self.label_smoothing, self.beta * margins
        right, wrong = cross_entropy(logits, preferred), cross_entropy(logits, 1 - preferred)
        return ((1 - noise) * right - noise * wrong) / (1 - 2 * noise)


def _check(label_smoothing: float) -> float:
    if not 0 < label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={label_smoothing}: the share of wrong labels lies between 0 and 0.5")
    return label_smoothing
