"""The loss that a run's options ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.pair_losses.base import PairLoss
from pluralpref.inference.pair_losses.dynamic_beta import DynamicBetaLoss
from pluralpref.inference.pair_losses.group_robust import GroupRobustLoss
from pluralpref.inference.pair_losses.identity import IdentityLoss
from pluralpref.inference.pair_losses.label_noise import ConservativeLoss, RobustLoss
from pluralpref.models import FixedStrength

_MAKERS: dict[str, Callable[[float, MixDPOConfig, Sequence[str]], PairLoss]] = {
    "cdpo": lambda beta, args, groups: ConservativeLoss(beta, _given(args, "label_smoothing")),
    "robust": lambda beta, args, groups: RobustLoss(beta, _given(args, "label_smoothing")),
    "ipo": lambda beta, args, groups: IdentityLoss(beta),
    "gr_dpo": lambda beta, args, groups: GroupRobustLoss(beta, groups, _given(args, "gr_dpo_step_size")),
    "beta_dpo": lambda beta, args, groups: DynamicBetaLoss(
        beta,
        _or(args.beta_dpo_scaling, 0.6),
        _or(args.beta_dpo_filtered, 0.2),
        _or(args.beta_dpo_momentum, 0.9),
        args.seed,
    ),
}


def make_pair_loss(args: MixDPOConfig, strength: Any, groups: Sequence[str] = ()) -> PairLoss | None:
    """The loss of margins that ``loss_type`` names; ``None`` for MixDPO's.

    :param args: the run's options.
    :param strength: the strength model, which gives beta.
    :param groups: the training pairs' groups, for ``"gr_dpo"``.
    :raises ConfigError: for a strength that isn't fixed, and missing options.
    """
    if args.loss_type == "mixdpo":
        return None
    if not isinstance(strength, FixedStrength) or any(True for _ in strength.parameters()) or strength.priors():
        raise ConfigError(
            f"loss_type={args.loss_type!r} has one constant beta: give strength=FixedStrength(0.1) (--strength fixed --beta 0.1)"
        )
    if args.panel:
        raise ConfigError(f"panel=True has no effect on loss_type={args.loss_type!r}: leave it out")
    return _MAKERS[args.loss_type](float(strength.law().mean), args, groups)


def _given(args: MixDPOConfig, name: str) -> float:
    value = getattr(args, name)
    if value is None:
        raise ConfigError(f"loss_type={args.loss_type!r} needs {name}")
    return float(value)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
