"""The reference: a frozen copy of the policy as it was handed over, or log-probabilities computed beforehand."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from pluralpref.errors import ConfigError
from pluralpref.likelihood.batches import batches_by_length, device_of, to_device
from pluralpref.likelihood.dropout import disable_dropout, no_dropout
from pluralpref.likelihood.frozen_parts import FrozenParts
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES
from pluralpref.likelihood.margins import PairLogps, pair_logps
from pluralpref.likelihood.reference_key import reference_key
from pluralpref.likelihood.reward import NoReference
from pluralpref.likelihood.row_cache import RowCache

#: Columns of reference log-probabilities, named as in TRL.
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy the model as it stands in memory: evaluation mode, no gradients, no dropout, no gradient checkpointing.

    It is the object that is copied, not a checkpoint on disk with the model's name: a policy changed since it was
    loaded (further tuned, adapters not at their start) is its own reference, and the first margins are exactly 0.
    Tied weights stay tied in the copy.

    :param model: the policy, plain or with PEFT adapters.
    :returns: the copy.
    :raises ConfigError: when the model is wrapped for distributed training: copy it before it is wrapped.
    """
    if isinstance(getattr(model, "module", None), nn.Module):
        raise ConfigError(
            f"{type(model).__name__} wraps the policy for distributed training; make the reference from the policy "
            "before it is wrapped"
        )
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            module.gradient_checkpointing = False  # type: ignore[assignment]
    for parameter in reference.parameters():
        parameter.grad = None
    reference.requires_grad_(False)
    reference.eval()
    disable_dropout(reference)
    return reference


def reference_pair_logps(
    batch: Mapping[str, Any],
    reference_model: nn.Module | FrozenParts | NoReference | None = None,
    *,
    attn_layout: str = "auto",
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> PairLogps:
    """Reference log-probabilities of a batch of pairs: its precomputed columns, or else the model's.

    :param batch: a collated batch; ``ref_chosen_logps`` and ``ref_rejected_logps`` (pairs,) are used when present.
    :param reference_model: the reference; runs without gradients and without dropout. With
        :class:`~pluralpref.likelihood.FrozenParts` nothing of the policy may be differentiated meanwhile: call this before
        the policy's forward, or after its backward. ``NO_REFERENCE``, for a reward model, gives zeros.
    :param attn_layout: see :func:`~pluralpref.likelihood.pair_logps`.
    :param logits_budget_bytes: see :func:`~pluralpref.likelihood.answer_logps`.
    :returns: (pairs,) twice, in nats, without gradients.
    :raises ConfigError: when the batch has no reference columns and there is no model.
    """
    if isinstance(reference_model, NoReference):
        zeros = torch.zeros_like(batch["weight"])
        return PairLogps(zeros, zeros)
    present = [name for name in REFERENCE_COLUMNS if batch.get(name) is not None]
    if len(present) == 2:
        return PairLogps(batch[REFERENCE_COLUMNS[0]], batch[REFERENCE_COLUMNS[1]]).detach()
    if present:
        raise ConfigError(
            f"the batch has {present[0]} but not the other of {' and '.join(REFERENCE_COLUMNS)}; give both columns or none"
        )
    if reference_model is None:
        raise ConfigError(
            f"no reference: give a reference model, or a data set with the columns {' and '.join(REFERENCE_COLUMNS)} "
            "(pluralpref.likelihood.precompute_reference makes them)"
        )
    if isinstance(reference_model, FrozenParts):
        with reference_model.active() as model:
            return reference_pair_logps(batch, model, attn_layout=attn_layout, logits_budget_bytes=logits_budget_bytes)
    with torch.no_grad(), no_dropout(reference_model):
        return pair_logps(reference_model, batch, attn_layout=attn_layout, logits_budget_bytes=logits_budget_bytes)


def precompute_reference(
    model: nn.Module | FrozenParts,
    dataset: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    batch_size: int = 8,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: bool = True,
    attn_layout: str = "auto",
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Add the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` (float64, nats) to a tokenised data set.

    The same function as in training computes them; give the training's ``autocast`` as well, or the first margins
    are off by the rounding of the lower precision.

    :param model: the reference model; its mode and weights are left as they are.
    :param dataset: a tokenised ``datasets.Dataset``.
    :param collator: makes a batch from rows.
    :param batch_size: pairs per batch; changes the numbers by rounding only.
    :param device: where to run; None for the model's device.
    :param autocast: called for each batch, returns the context in which the model runs.
    :param progress: show a progress bar.
    :param attn_layout: see :func:`~pluralpref.likelihood.pair_logps`.
    :param logits_budget_bytes: see :func:`~pluralpref.likelihood.answer_logps`.
    :param cache_dir: a folder in which the numbers are kept, under a hash of weights, configuration, tokens, precision,
        layout and versions: an interrupted pass goes on, a repeated one is read. ``None`` keeps nothing.
    :returns: the data set with both columns, rows in the same order; columns of that name are replaced.
    :raises DataError: when the data set isn't tokenised.
    """
    dataset = dataset.remove_columns([name for name in REFERENCE_COLUMNS if name in dataset.column_names])
    path = None
    if cache_dir is not None:
        with model.active() if isinstance(model, FrozenParts) else nullcontext(model) as reference:
            key = reference_key(reference, dataset, attn_layout, autocast)
        path = Path(cache_dir) / f"reference-{key[:32]}.safetensors"
    found = RowCache(len(dataset), 2, path)
    device = device_of(model) if device is None else device
    with tqdm(total=len(dataset), desc="Reference log-probabilities", unit="pair", disable=not progress) as bar:
        for indices, rows in batches_by_length(dataset, batch_size):
            if found.has(indices):
                bar.update(len(indices))
                continue
            with autocast():
                logps = reference_pair_logps(
                    to_device(collator(rows), device),
                    model,
                    attn_layout=attn_layout,
                    logits_budget_bytes=logits_budget_bytes,
                )
            found.put(indices, torch.stack([logps.chosen, logps.rejected]).double())
            bar.update(len(indices))
    found.finish()
    columns = [[], []] if found.values is None else found.values.tolist()
    for name, values in zip(REFERENCE_COLUMNS, columns, strict=True):
        dataset = dataset.add_column(name, values)
    return dataset
