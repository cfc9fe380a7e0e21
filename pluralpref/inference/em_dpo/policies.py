"""Policies that aren't trained at the moment, on disk."""

from __future__ import annotations

import os
from typing import Any

import torch


def load_policy_into(model: Any, folder: str | os.PathLike[str]) -> None:
    """Put the weights that ``save_pretrained`` wrote to ``folder`` in the place of the model's own.

    The object stays: what is frozen in it, its adapters, device and attention are as they were. Of a model with adapters
    only these were saved, and only they are replaced.

    :param model: of the same kind as the one that was saved.
    """
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    kinds = {parameter.dtype for parameter in model.parameters()}
    # Of several precisions float32 holds every value; the model's own tensors round back to what they were.
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    saved = type(model).from_pretrained(str(folder), dtype=dtype)
    model.load_state_dict(saved.state_dict())
