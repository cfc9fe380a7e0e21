"""A reward model in the place of policy and reference: margins are differences of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from pluralpref.errors import UnsupportedError
from pluralpref.likelihood.causal_lm import base_causal_lm, find_body, last_hidden_state, own_logits
from pluralpref.likelihood.head_logps import sum_dtype


class NoReference:
    """Stands where a reference would: a reward has none, r_w - r_l is the margin."""

    def __repr__(self) -> str:
        return "NO_REFERENCE"


NO_REFERENCE: Final = NoReference()


def is_reward_model(model: nn.Module) -> bool:
    """Whether ``model`` gives one number for a text: a Hugging Face sequence classifier with one label.

    :raises UnsupportedError: for a classifier with more labels, which gives no reward.
    """
    inner: Any = base_causal_lm(model)
    if not type(inner).__name__.endswith("ForSequenceClassification"):
        return False
    if inner.config.num_labels != 1:
        raise UnsupportedError(
            f"{type(inner).__name__} has {inner.config.num_labels} labels; a reward model has one: load it with num_labels=1"
        )
    return True


def pair_rewards(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    r"""Rewards of all rows of a batch of pairs, each of prompt and answer together.

    A decoder's reward is that of the last token that isn't padding, whichever token that is: the classifiers' own forward
    looks for the last one that isn't the padding token, which is another where texts end with it.

    :param model: one that :func:`is_reward_model`.
    :param batch: ``input_ids``, ``attention_mask`` (2 pairs, length), padded on either side.
    :returns: (2 pairs,) float64 (float32 on devices without float64), in nats where :math:`P = \sigma(\beta (r_w - r_l))`.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    score = getattr(base_causal_lm(model), "score", None)
    if isinstance(score, nn.Module) and find_body(model) is not None:
        last = mask.long().cumsum(1).argmax(1)
        rewards = score(last_hidden_state(model, ids, mask)[torch.arange(len(ids), device=ids.device), last])[:, 0]
    else:
        # An encoder reads the reward off the first place of a row, so the text has to begin there.
        first = mask.long().argmax(1, keepdim=True)
        places = (torch.arange(ids.shape[1], device=ids.device) + first) % ids.shape[1]
        rewards = own_logits(model, ids.gather(1, places), mask.gather(1, places))[:, 0]
    return rewards.to(sum_dtype(rewards.device))
