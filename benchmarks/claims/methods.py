"""What is compared: DPO at several betas, the control, MixDPO, and other methods' losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength, StrengthModel

BETA = 0.3
NOISE = 0.1


@dataclass(frozen=True)
class Method:
    """A policy and a strength trained together.

    :param strength: makes the strength to train with. :param options: of ``MixDPOConfig``.
    :param then: a mixture over people instead (``"em_dpo"``), or on top of the policy (``"pal"``), see mixtures.py.
    :param policy_of: another method that ends with the same policy, so that one training serves both.
    """

    name: str
    strength: Callable[[], StrengthModel]
    options: dict[str, Any] = field(default_factory=dict)
    then: str = ""
    policy_of: str = ""


def fixed(beta: float = BETA) -> Callable[[], StrengthModel]:
    return lambda: FixedStrength(beta)


METHODS = [
    Method("DPO, β = 0.1", fixed(0.1)),
    Method("DPO, β = 0.3", fixed(0.3)),
    Method("DPO, β = 1", fixed(1.0)),
    Method("DPO, β learned", lambda: FixedStrength(BETA, learned=True)),
    Method("MixDPO, log-normal", lambda: LogNormalStrength(mean=BETA, cv=0.5)),
    Method("MixDPO, log-normal, K=16", lambda: LogNormalStrength(mean=BETA, cv=0.5), {"num_samples": 16}),
    Method("MixDPO, gamma", lambda: GammaStrength(mean=BETA, cv=0.5)),
    Method("MixDPO, log-normal, panel", lambda: LogNormalStrength(mean=BETA, cv=0.5), {"panel": True}),
    Method("MixDPO, gamma, panel", lambda: GammaStrength(mean=BETA, cv=0.5), {"panel": True}),
    Method("cDPO, ε = 0.1", fixed(), {"loss_type": "cdpo", "label_smoothing": NOISE}),
    Method("robust DPO, ε = 0.1", fixed(), {"loss_type": "robust", "label_smoothing": NOISE}),
    Method("IPO", fixed(), {"loss_type": "ipo"}),
    Method("GR-DPO", fixed(), {"loss_type": "gr_dpo", "gr_dpo_column": "group", "gr_dpo_step_size": 0.05}),
    Method("EM-DPO, two policies", fixed(), then="em_dpo"),
    Method(
        "PAL-B on the control's embeddings",
        lambda: FixedStrength(BETA, learned=True),
        then="pal",
        policy_of="DPO, β learned",
    ),
    Method("β-DPO", fixed(), {"loss_type": "beta_dpo"}),
]
#: Whose margins are explained in several ways, see run.py.
EXPLAINED = ("DPO, β learned", "MixDPO, log-normal")
SHORT = ("DPO, β = 0.3", "DPO, β learned", "MixDPO, log-normal")
