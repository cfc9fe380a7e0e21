"""How well held-out choices are predicted, by the same numbers for every method."""

from __future__ import annotations

from typing import Any

import torch

from pluralpref.evaluation import held_out_metrics
from pluralpref.models import FixedStrength, StrengthModel


def measures(strength: StrengthModel, margins: torch.Tensor, pairs: Any) -> dict[str, float]:
    """Every choice as one of a person of its own; macro averages over people and groups."""
    groups = list(pairs["group"])
    found = held_out_metrics(strength, margins, annotator=list(pairs["annotator"]), groups={"group": groups})
    return {
        "log_loss": found["log_loss"],
        "log_loss_macro": found["log_loss/macro"],
        "log_loss_macro_group": found["log_loss/macro/group"],
        "accuracy": found["accuracy"],
        "accuracy_worst": found["accuracy/worst/group"],
        "margin": found["margins"],
        "margin_macro": found["margins/macro"],
        "margin_macro_group": found["margins/macro/group"],
    }


def measures_of_log_odds(log_odds: torch.Tensor, pairs: Any) -> dict[str, float]:
    """The same for a method that gives probabilities: as margins under a strength of 1, which say nothing by their size."""
    found = measures(FixedStrength(1.0), log_odds, pairs)
    return {name: value for name, value in found.items() if not name.startswith("margin")}
