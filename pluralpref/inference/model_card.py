"""What a model card says about the law of preference strength that a policy was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pluralpref._version import __version__

_HEADING = "## Preference strength"
_TAGS = ("pluralpref", "mixdpo", "dpo")
_METRICS = ("loss", "margins", "rewards/accuracies", "rewards/margins")


def card_tags(tags: str | Sequence[str] | None) -> list[str]:
    """A card's tags with those of this package."""
    given = [tags] if isinstance(tags, str) else list(tags or ())
    return [*given, *(tag for tag in _TAGS if tag not in given)]


def strength_section(
    description: str,
    law: Mapping[str, float],
    marginal: str,
    panel: bool,
    history: Sequence[Mapping[str, Any]],
    rewards: bool = False,
) -> str:
    """Markdown about the trained law and the last evaluation.

    :param description: the strength model as it prints itself.
    :param law: ``beta/...`` by name, as they are logged.
    :param marginal: how beta was integrated out.
    :param panel: whether an annotator's pairs shared it.
    :param history: the trainer's log.
    :param rewards: whether margins are differences of a reward model's rewards.
    """
    unit = "annotator" if panel else "pair"
    margin = "the difference of rewards" if rewards else "the log-ratio margin in nats"
    rows = [f"| {name.removeprefix('beta/')} of β | {value:.4g} |" for name, value in law.items()]
    last = next((line for line in reversed(history) if "eval_loss" in line), None)
    if last is not None:
        found = {name: last.get(f"eval_{name}") for name in _METRICS}
        rows += [f"| held-out {name} | {value:.4g} |" for name, value in found.items() if value is not None]
    return "\n".join(
        [
            _HEADING,
            "",
            f"Trained with pluralpref {__version__} on P(chosen ≻ rejected) = E[σ(β h)], h {margin} and β "
            f"drawn for each {unit} from `{description}` (integrated out: {marginal}). The law of β was learned together with "
            "the policy; the numbers are where training ended, not a posterior: `pluralpref posterior` fits one to margins.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "References: MixDPO, arXiv:2601.06180; Direct Preference Optimization, arXiv:2305.18290.",
            "",
        ]
    )
