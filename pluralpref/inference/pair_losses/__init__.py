"""Losses of other methods on the same margins, to compare with MixDPO in the same trainer."""

from pluralpref.inference.pair_losses.base import PairLoss
from pluralpref.inference.pair_losses.choose import make_pair_loss
from pluralpref.inference.pair_losses.dynamic_beta import DynamicBetaLoss
from pluralpref.inference.pair_losses.group_robust import GroupRobustLoss
from pluralpref.inference.pair_losses.identity import IdentityLoss
from pluralpref.inference.pair_losses.label_noise import ConservativeLoss, RobustLoss

__all__ = [
    "ConservativeLoss",
    "DynamicBetaLoss",
    "GroupRobustLoss",
    "IdentityLoss",
    "PairLoss",
    "RobustLoss",
    "make_pair_loss",
]
