"""Embeddings of prompts and answers: a frozen model's last hidden states, for heads that are trained on top of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pluralpref.errors import DataError, InferenceError
from pluralpref.likelihood.batches import batches_by_length, device_of, to_device
from pluralpref.likelihood.causal_lm import evaluation_flags, last_hidden_state
from pluralpref.likelihood.reference_key import reference_key
from pluralpref.likelihood.row_cache import RowCache

#: What :func:`answer_embeddings` gives, in this order.
EMBEDDINGS = ("chosen", "rejected", "prompt")


def answer_embeddings(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    batch_size: int = 8,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Embeddings of all pairs of a tokenised data set, without gradients and in evaluation mode.

    An answer's embedding is the last hidden state (what the head of the language model gets) at its last token, with the
    prompt before it; a prompt's is that at its last token. Attention is causal, so the prompt's doesn't depend on the answer.
    All of them are held in memory: 12 bytes times pairs times hidden size.

    :param model: a Hugging Face causal language model, or a reward model made of one; the modes of its modules are left as
        they are.
    :param dataset: a tokenised ``datasets.Dataset``.
    :param collator: makes a batch from rows; padding on either side.
    :param batch_size: pairs per batch; changes the numbers by rounding only.
    :param device: where to run; None for the model's device. The model must be there.
    :param autocast: called for each batch, returns the context in which the model runs.
    :param progress: show a progress bar.
    :param cache_dir: keep the embeddings in a file here, named by a hash of weights, tokens and precision: an interrupted
        pass goes on, and a second one is read.
    :returns: ``chosen``, ``rejected``, ``prompt``: each (pairs, hidden) float32 on the CPU, in the data set's order.
    :raises DataError: when the data set isn't tokenised, or a prompt has no token.
    :raises UnsupportedError: for a model that doesn't say which module is its body.
    :raises InferenceError: for an embedding that isn't finite, naming the row.
    """
    device = device_of(model) if device is None else device
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"embeddings-{reference_key(model, dataset, 'padded', autocast)[:32]}.safetensors"
    kept = RowCache(len(dataset), len(EMBEDDINGS), path)
    with (
        torch.no_grad(),
        evaluation_flags(model),
        tqdm(total=len(dataset), desc="Embeddings", unit="pair", disable=not progress) as bar,
    ):
        for indices, rows in batches_by_length(dataset, batch_size):
            if kept.has(indices):
                bar.update(len(indices))
                continue
            with autocast():
                found = pair_embeddings(model, to_device(collator(rows), device)).cpu()
            bad = (~torch.isfinite(found).all(2).all(0)).nonzero().flatten().tolist()
            if bad:
                raise InferenceError(
                    f"the embeddings of row {indices[bad[0]]} aren't finite: the model's weights hold values that aren't "
                    "numbers, or its dtype is too narrow"
                )
            kept.put(indices, found)
            bar.update(len(indices))
    if kept.values is None:
        raise DataError("the data set is empty: at least one pair is needed")
    kept.finish()
    return dict(zip(EMBEDDINGS, kept.values.unbind(0), strict=True))


def pair_embeddings(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Embeddings of a batch of pairs.

    :param model: as for :func:`answer_embeddings`.
    :param batch: ``input_ids``, ``attention_mask``, ``completion_mask`` (2 pairs, length): all chosen rows first.
    :returns: (3, pairs, hidden) float32: of the chosen answers, the rejected ones and the prompts.
    :raises DataError: for a prompt without a token, naming its place in the batch.
    """
    mask, completion = batch["attention_mask"].long(), batch["completion_mask"].long()
    pairs = len(mask) // 2
    rows = torch.arange(2 * pairs, device=mask.device)
    last = mask.cumsum(1).argmax(1)
    before = completion.argmax(1) - 1
    empty = ((before < 0) | (mask[rows, before.clamp(min=0)] == 0)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"pair {empty[0] % pairs} of the batch has a prompt without tokens: there is nothing to embed")
    hidden = last_hidden_state(model, batch["input_ids"], batch["attention_mask"])
    answers = hidden[rows, last]
    return torch.stack([answers[:pairs], answers[pairs:], hidden[rows, before][:pairs]]).float()
