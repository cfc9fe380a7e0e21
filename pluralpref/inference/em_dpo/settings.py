"""What a run of EM-DPO is asked for: options without effect, and what a resumed run must share with its beginning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from torch import nn

from pluralpref.data.tokenize import TOKEN_COLUMNS
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.em_dpo.e_step import check_num_classes
from pluralpref.likelihood import is_reward_model

START_FROM = ("previous", "base")
#: Options of the trainer that can't have an effect here, and why.
_IDLE = {
    "loss_type": "the E-step is that of DPO's likelihood",
    "panel": "beta is the same for everybody",
    "marginal": "beta is a number",
    "num_samples": "beta is a number",
    "strength_learning_rate": "beta isn't learned",
    "eval_strategy": "held-out pairs are scored after every iteration",
    "load_best_model_at_end": "every class ends with its M-step",
    "push_to_hub": "there are several policies; upload their folders",
}
#: Options that have to stay as they are when a run goes on.
_LASTING = (
    "seed", "data_seed", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "weight_decay", "max_grad_norm", "warmup_steps", "max_length", "truncation_mode",
)  # fmt: skip


def check_options(beta: float, num_classes: int, iterations: int, start_from: str, args: MixDPOConfig) -> None:
    """Refuse what makes no sense, has no effect or isn't supported.

    :raises ConfigError: naming the option.
    :raises UnsupportedError: for several processes.
    """
    check_num_classes(num_classes)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ConfigError(f"iterations={iterations!r}: must be a whole number of at least 1")
    if not 0 < beta < float("inf"):
        raise ConfigError(f"beta={beta!r}: must be a finite number greater than 0")
    if start_from not in START_FROM:
        raise ConfigError(f"start_from={start_from!r}: choose one of {', '.join(START_FROM)}")
    for option in fields(args):
        if option.name in _IDLE:
            default = option.default if option.default_factory is MISSING else option.default_factory()
            value = getattr(args, option.name)
            if value != default:
                raise ConfigError(
                    f"{option.name}={value!r} has no effect on EM-DPO: {_IDLE[option.name]}; leave it out"
                )
    if args.world_size > 1:
        raise UnsupportedError(f"EM-DPO runs in one process, not in {args.world_size}: start it without torchrun")


def check_policy(policy: Any) -> None:
    """Refuse what can't be trained as a policy.

    :raises ConfigError: if it is no model.
    :raises UnsupportedError: for a reward model.
    """
    if not isinstance(policy, nn.Module):
        raise ConfigError(
            f"policy is {type(policy).__name__}: give a model, or a function without arguments that makes one"
        )
    if is_reward_model(policy):
        raise UnsupportedError("policy is a reward model: EM-DPO trains language models, one for each class")


def run_settings(beta: float, num_classes: int, start_from: str, seed: int, args: MixDPOConfig) -> dict[str, Any]:
    """The options that a resumed run must share with its beginning; JSON's own kinds only."""
    return {
        "beta": float(beta),
        "num_classes": num_classes,
        "start_from": start_from,
        "initial_seed": seed,
        **{name: getattr(args, name) for name in _LASTING},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
    }


def data_settings(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """What says whether the pairs are the same: a hash of tokens, annotators, weights and labels of each data set.

    :param pairs: data sets by name, tokenised.
    """
    return {f"{name}_pairs": _hash(pairs[name]) if name in pairs else None for name in ("train", "held_out")}


def _hash(pairs: Any) -> str:
    found = hashlib.sha256()
    for column in (*TOKEN_COLUMNS, "annotator", "weight", "preferred"):
        values = pairs[column][:] if column in pairs.column_names else None
        found.update(json.dumps([column, values]).encode())
    return found.hexdigest()[:32]
