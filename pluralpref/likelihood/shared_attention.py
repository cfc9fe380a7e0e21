"""Attention over rows in which a pair's two answers stand behind one copy of their prompt.

Such a row holds prompt, chosen answer, rejected answer. The rejected answer continues the prompt, so it doesn't see the
chosen one, and its positions go on from the prompt's end. Rows come in two forms: all pairs one behind the other in a single
row without padding (*ragged*), whose segments are attended to one by one, or in one kernel on GPUs; or one padded row for each
pair (*batched*), with a mask.

The lengths travel in the place of a four-dimensional attention mask, which transformers hands to every layer unchanged; so
they are there as well when gradient checkpointing runs a layer again. Everything else that is asked of the function goes to
the attention function that the model had.

Reference: F. Wang and P. Hegde, "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv:2410.20305.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from pluralpref.errors import UnsupportedError
from pluralpref.likelihood.flex_attention import ragged_attention
from pluralpref.likelihood.flex_mask import Lengths

_PREFIX = "pluralpref_shared_"
#: What some models add to the logits of attention, which this function doesn't know.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")


def lengths_as_mask(lengths: Tensor) -> Tensor:
    """(pairs, 3) lengths of prompt, chosen and rejected answer in the form of an attention mask, (1, 1, pairs, 3)."""
    return lengths.to("cpu", torch.int64).reshape(1, 1, -1, 3)


def is_lengths(attention_mask: Any) -> bool:
    """Whether an attention mask holds lengths: real masks are boolean or floating."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and attention_mask.dtype == torch.int64


def install_shared_attention(model: nn.Module) -> None:
    """Let a transformers model read rows with shared prompts; other inputs are attended to as before.

    The name of the attention function in the model's configuration changes, in memory only: it isn't saved.

    :raises UnsupportedError: for a model whose attention functions can't be replaced.
    """
    configs = _configurations(model)
    if not configs:
        raise UnsupportedError(f"{type(model).__name__} has no configuration that names its attention function")
    for config in configs:
        current = config._attn_implementation or "eager"
        if current.startswith(_PREFIX):
            continue
        if current not in AttentionInterface().valid_keys():
            raise UnsupportedError(f"its attention function {current!r} is its own, and can't be put behind another")
        config._attn_implementation = _register(current)


def uninstall_shared_attention(model: nn.Module) -> None:
    """Give the model's own attention functions their names back."""
    for config in _configurations(model):
        config._attn_implementation = str(config._attn_implementation or "").removeprefix(_PREFIX) or None


def _configurations(model: nn.Module) -> list[Any]:
    found = {id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "to_dict")}
    return list(found.values())


def _register(original: str) -> str:
    name = _PREFIX + original
    AttentionInterface.register(name, partial(_attend, original))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[original])
    return name


def _attend(
    original: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if not is_lengths(attention_mask):
        own = AttentionInterface()[original]
        return own(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    assert attention_mask is not None
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise UnsupportedError(f"{type(module).__name__} attends with {', '.join(unknown)}")
    window = kwargs.get("sliding_window")
    lengths = tuple(tuple(row) for row in attention_mask[0, 0].tolist())
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    if query.shape[0] == len(lengths) and len(lengths) > 1:
        mask = _pairs_mask(lengths, query.shape[2], window, query.device)
        out = attend(query, *_for_every_head(query, key, value), attn_mask=mask)
    else:
        out = ragged_attention(
            query,
            key,
            value,
            lengths,
            window=window,
            scaling=scaling,
            dropout=dropout,
            segments=partial(_segment_by_segment, attend),
        )
    return out.transpose(1, 2).contiguous(), None


def _for_every_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def _segment_by_segment(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, window: int | None
) -> Tensor:
    key, value = _for_every_head(query, key, value)
    return torch.cat(list(_segments(attend, query, key, value, lengths, window)), 2)


def _segments(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, window: int | None
) -> Iterator[Tensor]:
    """The output of each answer's tokens in turn; the prompt's come with the chosen answer's."""
    start = 0
    for prompt, chosen, rejected in lengths:
        middle, stop = start + prompt + chosen, start + prompt + chosen + rejected
        first = slice(start, middle)
        q, k, v = (x[:, :, first] for x in (query, key, value))
        if window is None or middle - start <= window:
            yield attend(q, k, v, is_causal=True)
        else:
            yield attend(q, k, v, attn_mask=_suffix_mask(0, middle - start, window, query.device))
        if not rejected:
            start = stop
            continue
        q = query[:, :, middle:stop]
        k, v = (torch.cat([x[:, :, start : start + prompt], x[:, :, middle:stop]], 2) for x in (key, value))
        yield attend(q, k, v, attn_mask=_suffix_mask(prompt, rejected, window, query.device))
        start = stop


@lru_cache(maxsize=256)
def _suffix_mask(prefix: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """What each of the last ``length`` tokens sees of ``prefix`` tokens and of each other, (length, prefix + length)."""
    behind = torch.arange(prefix, prefix + length, device=device)[:, None] - torch.arange(
        prefix + length, device=device
    )
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


@lru_cache(maxsize=4)
def _pairs_mask(lengths: Any, width: int, window: int | None, device: torch.device) -> Tensor:
    """What each token of one padded row for each pair sees, (pairs, 1, width, width)."""
    prompt, chosen, rejected = torch.tensor(lengths, device=device)[:, :, None].unbind(1)
    place = torch.arange(width, device=device)
    in_rejected = place >= prompt + chosen
    position = torch.where(in_rejected, place - chosen, place)
    behind = position[:, :, None] - position[:, None, :]
    sees = behind >= 0
    # Between the two answers of a pair nothing is seen; padding sees itself, so that no row of the softmax is empty.
    in_chosen = (place >= prompt) & ~in_rejected
    sees &= ~(in_rejected[:, :, None] & in_chosen[:, None, :])
    sees &= ~(in_chosen[:, :, None] & in_rejected[:, None, :])
    if window is not None:
        sees &= behind < window
    real = place < prompt + chosen + rejected
    sees &= real[:, None, :] | torch.eye(width, dtype=torch.bool, device=device)
    return sees.unsqueeze(1)
