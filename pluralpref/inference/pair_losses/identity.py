"""Identity preference optimisation."""

from __future__ import annotations

from torch import Tensor

from pluralpref.inference.pair_losses.base import PairLoss


class IdentityLoss(PairLoss):
    r"""IPO: :math:`y (h - \frac{1}{2\beta})^2 + (1-y)(h + \frac{1}{2\beta})^2`, squared nats.

    :math:`\beta` is the paper's :math:`\tau`. The margin is of sums over tokens, as in the paper; TRL's
    ``loss_type="ipo"`` divides log-probabilities by the answers' lengths.

    :param beta: > 0.

    Reference: M. G. Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arXiv:2310.12036, equation 17.
    """

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """See :meth:`PairLoss.forward`; squared nats."""
        target = 1 / (2 * self.beta)
        return preferred * (margins - target) ** 2 + (1 - preferred) * (margins + target) ** 2
