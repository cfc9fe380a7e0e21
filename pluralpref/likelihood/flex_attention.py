"""One kernel for a row of many pairs, on GPUs.

Attending to a ragged row segment by segment starts a few small kernels for each pair and layer, which leaves a GPU idle. With
FlexAttention the whole row is one kernel, which skips the blocks in which nothing is seen.

Kernels are compiled for fixed lengths. Row lengths differ from batch to batch, so rows are padded, for the attention alone,
to one of few lengths; padding sees itself and nothing sees it. Kernels for variable lengths would do without, but several
versions of torch compile them again for every length, or compile a wrong backward pass
(https://github.com/pytorch/pytorch/issues/146377, https://github.com/pytorch/pytorch/pull/189952). For the latter reason each
kernel has to give the segments' values and gradients on a made-up row before it is used; if it fails, or doesn't compile, rows
are attended to segment by segment.

Reference: J. Dong, B. Feng, D. Guessous, Y. Liang and H. He, "Flex Attention: A Programming Model for Generating Optimized
Attention Kernels", arXiv:2412.05496.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from pluralpref.errors import InferenceError, UnsupportedError
from pluralpref.likelihood.flex_mask import Lengths, padded_width, row_mask

logger = logging.getLogger(__name__)

#: Attention over a ragged row: query, key, value, lengths, window.
Segments = Callable[[Tensor, Tensor, Tensor, Lengths, int | None], Tensor]

#: Triton multiplies no matrices with fewer columns, and none in float64.
_SMALLEST_HEAD, _DTYPES = 16, (torch.float32, torch.bfloat16, torch.float16)
#: How far a kernel may lie from the segments: see :func:`_apart`. Wrong ones differ by about 1.
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 0.02, 0.2
#: Lengths, heads and dtypes share torch's limit, which is 8; beyond it nothing is compiled any more.
_MOST_KERNELS = 128

#: Kernels that gave the right numbers, and heads for which there are none.
_CHECKED: set[Any] = set()
_REFUSED: set[Any] = set()


def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    *,
    window: int | None,
    scaling: float | None,
    dropout: float,
    segments: Segments,
) -> Tensor:
    """Attention over a row of pairs: by FlexAttention on GPUs, where it can be used; segment by segment elsewhere.

    :param query: (1, heads, length, head dimension).
    :param key: (1, key heads, length, head dimension); the number of heads is a multiple of that of key heads.
    :param value: (1, key heads, length, value dimension).
    :param lengths: of prompt, chosen and rejected answer of each pair; they add up to the row's length.
    :param window: how many positions a token sees, its own included; None for all.
    :param scaling: what scores are multiplied by; None for the inverse root of the head dimension.
    :param dropout: FlexAttention has none: with dropout the segments are used.
    :param segments: what gives the same numbers on any device.
    :returns: (1, heads, length, value dimension).
    """
    own = query, key, value
    if dropout or not _suits(*own):
        return segments(*own, lengths, window)
    if torch.is_autocast_enabled(query.device.type):
        # Which the segments' function is subject to, and this one isn't in every version of torch.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in own)
    heads = query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], value.shape[3], scaling
    width = padded_width(query.shape[2])
    if (heads, width) not in _CHECKED:
        if heads not in _REFUSED:
            _try(heads, width, query, key, value, scaling, segments)
        if heads in _REFUSED:
            return segments(*own, lengths, window)
    # A kernel that was used once stays in use: gradient checkpointing may run it again.
    return _flex(query, key, value, row_mask(lengths, width, window, query.device), scaling)


def _suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    plain = all(x.dtype in _DTYPES and x.shape[3] >= _SMALLEST_HEAD for x in (query, key, value))
    # In inference mode nothing can be differentiated, as every kernel is: see `_flex`.
    odd = torch.is_inference_mode_enabled() or torch.compiler.is_compiling()
    return _on_gpu(query) and plain and not odd


def _on_gpu(query: Tensor) -> bool:
    return query.device.type == "cuda"


@cache
def _compiled() -> Callable[..., Any]:
    if torch._dynamo.config.disable:
        # Without it, FlexAttention would be dense.
        raise UnsupportedError("torch.compile is switched off")
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None) -> Tensor:
    length, more = query.shape[2], mask.shape[-1] - query.shape[2]
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # which some versions of torch don't know
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    inputs = query, key, value
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    # The same kernel with and without gradients, whatever is trained: fewer are compiled, each is checked, and equal weights
    # give equal numbers.
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        rows = []
        for x in inputs:
            # For other strides, some versions of torch compile a wrong backward pass.
            row = pad(x, (0, 0, 0, more)) if more else x.clone(memory_format=torch.contiguous_format)
            rows.append(row if tracked and row.requires_grad else row.detach().requires_grad_())
        out = _compiled()(*rows, block_mask=mask, scale=scaling, enable_gqa=groups > 1)[:, :, :length]
    return out if tracked else out.detach()


def _try(heads: Any, width: int, *arguments: Any) -> None:
    logger.info("Compiling the attention over rows of up to %d tokens.", width)
    try:
        _check(width, *arguments)
        _CHECKED.add((heads, width))
    except Exception as error:  # whatever a compiler raises; the segments don't need it
        _REFUSED.add(heads)
        device, dtype, _, _, dimension, *_ = heads
        logger.warning(
            "FlexAttention can't be used on %s for heads of dimension %d in %s (%s: %s): rows with shared prompts are attended "
            "to segment by segment, which gives the same numbers in more time.",
            device,
            dimension,
            dtype,
            type(error).__name__,
            (str(error).strip().splitlines() or [""])[0],
        )


def _check(width: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments) -> None:
    """Compile the kernels of one padded length, forward and backward, and compare them with the segments.

    :raises InferenceError: if values or gradients differ.
    """
    lengths = _made_up_lengths(width)
    total = sum(map(sum, lengths))
    mask = row_mask(lengths, width, None, query.device)
    generator = torch.Generator(query.device).manual_seed(0)

    def draw(count: int, like: Tensor) -> Tensor:
        shape = 1, count, total, like.shape[3]
        return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)

    inputs = [draw(x.shape[1], x) for x in (query, key, value)]
    weights = draw(query.shape[1], value)

    def outcome(attend: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad(out.transpose(1, 2).contiguous(), leaves, weights.transpose(1, 2))]

    # Gradient checkpointing, in whose hooks this may run, mustn't count what is kept here.
    hooks = saved_tensors_hooks(lambda x: x, lambda x: x)
    off = torch.autocast(query.device.type, enabled=False)
    limit = torch._dynamo.config.patch(cache_size_limit=_MOST_KERNELS)
    with torch.enable_grad(), off, hooks, limit:
        found = outcome(lambda q, k, v: _flex(q, k, v, mask, scaling))
        expected = outcome(lambda q, k, v: segments(q, k, v, lengths, None))
    tolerance = _TOLERANCE if query.dtype.itemsize >= 4 else _LOW_PRECISION_TOLERANCE
    for name, one, other in zip(("values", "gradients", "gradients", "gradients"), found, expected, strict=True):
        apart = _apart(one, other)
        if not apart <= tolerance:
            raise InferenceError(f"its {name} differ from those of the segments by {apart:.2g} of their size")


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest distance of two vectors of a token, in units of the second's length and the lengths' root mean square."""
    size = other.float().norm(dim=-1)
    distance = (one.float() - other.float()).norm(dim=-1)
    return float((distance / (size + size.square().mean().sqrt())).max())


def _made_up_lengths(width: int) -> Lengths:
    """Pairs as they come, with blocks that are seen as a whole where they fit in; and a little padding."""
    lengths, left = [], width - 1
    for pair in cycle(((150, 100, 60), (13, 9, 5), (1, 1, 1), (20, 1, 7), (3, 6, 0), (512, 256, 256))):
        if left < 3:
            break
        if sum(pair) <= left:
            lengths.append(pair)
            left -= sum(pair)
    return tuple(lengths)
