"""A name for what a model says of a data set: another one as soon as anything changes the numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import transformers
from torch import nn

from pluralpref._version import __version__
from pluralpref.likelihood.batches import TOKEN_COLUMNS, device_of


@torch.no_grad()
def reference_key(
    model: nn.Module, dataset: Any, attn_layout: str, autocast: Callable[[], AbstractContextManager[Any]]
) -> str:
    """A hash of everything that changes the numbers: weights, configuration, tokens, precision, layout, versions.

    :param model: whose numbers are kept.
    :param dataset: tokenised.
    :param attn_layout: see :func:`~pluralpref.likelihood.pair_logps`.
    :param autocast: the context in which the model runs.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous()
        found.update(raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    config: Any = getattr(model, "config", None)
    found.update((config.to_json_string() if hasattr(config, "to_json_string") else repr(config)).encode())
    for column in TOKEN_COLUMNS:
        for row in dataset[column]:
            found.update(len(row).to_bytes(8, "little"))
            found.update(torch.tensor(row, dtype=torch.int64).numpy().tobytes())
    kind = device_of(model).type
    with autocast():
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "none"
    versions = [__version__, torch.__version__, transformers.__version__]
    found.update(json.dumps([kind, precision, attn_layout, *versions]).encode())
    return found.hexdigest()
