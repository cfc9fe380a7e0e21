"""Which way leads from token ids to the logits of chosen positions, for any Hugging Face causal language model.

Scoring needs the logits at the answer positions only. The lean way runs the model's body once and its head on those
positions, but it is right only for models whose logits *are* the head's output on the body's last hidden state.
Gemma 2 caps its logits, Cohere and Granite scale them, others scale the hidden state first, and user code can do
anything. So the way is not looked up by architecture but found out by a probe, once per model.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pluralpref.errors import InferenceError, UnsupportedError

logger = logging.getLogger(__name__)

#: Number of tokens in the probe.
PROBE_LENGTH = 8
#: The probe replaces the head's output by values in [-PROBE_RANGE, PROBE_RANGE]: far enough out to show a soft cap.
PROBE_RANGE = 100.0


@dataclass(frozen=True)
class LogitsRoute:
    """How the logits at chosen positions are had from one model.

    :param kind: ``"head"``: body once, head on the chosen positions. ``"masked"``: the model's own forward with a
        boolean ``logits_to_keep``. ``"full"``: the model's own forward at every position.
    """

    kind: Literal["head", "masked", "full"]


_ROUTES: WeakKeyDictionary[nn.Module, LogitsRoute] = WeakKeyDictionary()


def is_distributed_wrapper(model: nn.Module) -> bool:
    """Whether ``model`` wraps a model whose own ``forward`` must be entered through the wrapper (DDP, FSDP, ...).

    Such a wrapper prepares the reduction of gradients in its forward, so the body may not be called behind its back.
    """
    return isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "get_output_embeddings")


def through_wrapper(wrapper: nn.Module, function: Callable[[nn.Module], Any]) -> Any:
    """``function`` of the wrapped model, run inside of the wrapper's own forward.

    The wrapper prepares and the backward pass reduces as if the model's forward had run; what runs instead may use the
    model's parts.
    """
    module: Any = wrapper.module
    own = module.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def instead(*arguments: Any, **options: Any) -> Any:
        restore()
        return function(module)

    module.forward = instead
    try:
        return wrapper()
    finally:
        restore()


def base_causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model inside ``model``: a PEFT model's base (its adapters live in the layers)."""
    inner: Any = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return inner


def find_body(model: nn.Module) -> nn.Module | None:
    """Return the module that gives the last hidden state, or None if the model doesn't say which it is."""
    base = base_causal_lm(model)
    body = getattr(base, "base_model", None)
    return body if isinstance(body, nn.Module) and body is not base else None


def find_head(model: nn.Module) -> nn.Module | None:
    """Return the module that maps hidden states to logits, or None if the model doesn't say which it is."""
    get_head = getattr(base_causal_lm(model), "get_output_embeddings", None)
    if get_head is None:
        return None
    try:
        head = get_head()
    except NotImplementedError:
        return None
    return head if isinstance(head, nn.Module) else None


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions of the real tokens counted from 0, so that left and right padding give the same numbers."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)


def _offset_position_ids(signature_of: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """:func:`position_ids`, or as the models of RoBERTa's kind count: from ``padding_idx`` + 1, leaving padding tokens out.

    Those look up what they are given as it is. They are known by an embedding of positions that has a padding index.
    """
    body: Any = find_body(signature_of) or signature_of
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is None:
        return position_ids(attention_mask)
    counted = attention_mask.long() * (input_ids != padding)
    return counted.cumsum(-1) * counted + padding


def _accepted(function: Any, name: str) -> bool:
    """Whether ``name`` is a parameter of ``function`` by name (a bare ``**kwargs`` may pass it on or choke on it)."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _forward_arguments(signature_of: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if _accepted(signature_of.forward, "position_ids"):
        arguments["position_ids"] = _offset_position_ids(signature_of, input_ids, attention_mask)
    # A cache would only cost memory; with gradient checkpointing it would also be refused with a warning.
    if _accepted(signature_of.forward, "use_cache"):
        arguments["use_cache"] = False
    return arguments


def last_hidden_state(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Run the body of ``model``: (rows, length) ids -> (rows, length, hidden)."""
    body = find_body(model)
    if body is None:
        raise UnsupportedError(f"{type(model).__name__} doesn't say which module is its body")
    output = body(**_forward_arguments(body, input_ids, attention_mask))
    return output[0]


def own_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: Tensor | None = None) -> Tensor:
    """Run the model's own forward.

    :param keep: None for the logits at all positions, (rows, length, vocabulary); or a boolean mask (rows, length)
        for those at the marked positions, (marked, vocabulary) in row-major order.
    """
    signature_of = getattr(model, "module", model) if is_distributed_wrapper(model) else base_causal_lm(model)
    arguments = _forward_arguments(signature_of, input_ids, attention_mask)
    if keep is not None:
        arguments["logits_to_keep"] = keep
    output = model(**arguments)
    return output.logits if hasattr(output, "logits") else output[0]


@contextmanager
def evaluation_flags(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode by its flag alone, and put each flag back (modes may differ by module)."""
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _head_is_all(model: nn.Module, ids: Tensor, mask: Tensor) -> bool:
    """Whether the logits are the head's output, unchanged, on the body's last hidden state, unchanged."""
    body, head = find_body(model), find_head(model)
    if body is None or head is None:
        return False
    seen: list[Tensor] = []
    probes: list[Tensor] = []

    def replace(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        # The values of a freshly built model's logits are so small that a soft cap leaves them unchanged; the probe
        # puts known ones in a wide range in their place.
        if not (inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)):
            return None
        seen.append(inputs[0].detach())
        size = output.numel()
        probe = torch.linspace(-PROBE_RANGE, PROBE_RANGE, size, device=output.device, dtype=torch.float32)
        probes.append(probe.to(output.dtype).reshape(output.shape))
        return probes[-1]

    handle = head.register_forward_hook(replace)
    try:
        logits = own_logits(model, ids, mask)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].dim() != 3:
        return False
    if logits.shape != probes[0].shape or not torch.equal(logits.float(), probes[0].float()):
        return False
    hidden = last_hidden_state(model, ids, mask)
    if hidden.shape != seen[0].shape:
        return False
    a, b = hidden.float(), seen[0].float()
    scale = float(b.abs().max())
    if not math.isfinite(scale):
        raise InferenceError(
            f"the hidden states of {type(base_causal_lm(model)).__name__} aren't finite on its first batch: its weights hold "
            "values that aren't numbers, or its dtype is too narrow"
        )
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale))


def _mask_is_kept(model: nn.Module, ids: Tensor, mask: Tensor, full: Tensor) -> bool:
    """Whether the model's forward takes a boolean ``logits_to_keep`` and gives the right logits for it."""
    keep = torch.zeros_like(mask, dtype=torch.bool)
    keep[..., ::2] = True
    keep[..., -1] = True
    try:
        kept = own_logits(model, ids, mask, keep)
    except Exception:  # whatever a model raises on an argument that it doesn't know, the answer is no
        return False
    expected = full[keep]
    return kept.shape == expected.shape and bool(
        torch.allclose(kept.float(), expected.float(), rtol=1e-3, atol=1e-4 * float(expected.float().abs().max()))
    )


def _find_route(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> LogitsRoute:
    real = input_ids[0][attention_mask[0].bool()][:PROBE_LENGTH].unsqueeze(0)
    ids = real if real.numel() else input_ids[:1, :1]
    mask = torch.ones_like(ids)
    with evaluation_flags(model), torch.no_grad():
        if not is_distributed_wrapper(model) and _head_is_all(model, ids, mask):
            return LogitsRoute("head")
        full = own_logits(model, ids, mask)
        if full.dim() != 3 or full.shape[:2] != ids.shape:
            raise UnsupportedError(
                f"{type(model).__name__} gives logits of shape {tuple(full.shape)} for token ids of shape "
                f"{tuple(ids.shape)}; answers can be scored only with one row of logits per token (virtual tokens, as in "
                "prompt tuning, are not supported)"
            )
        if _mask_is_kept(model, ids, mask, full):
            return LogitsRoute("masked")
    logger.warning(
        "%s computes its logits in a way that can't be restricted to the answers: every step computes the logits at "
        "all positions, which is right but takes more memory and time.",
        type(base_causal_lm(model)).__name__,
    )
    return LogitsRoute("full")


def logits_route(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> LogitsRoute:
    """Return the leanest route to the logits of ``model`` that is right, probing the model at its first use.

    The probe runs a few tokens of the first row in evaluation mode and without gradients; it draws no random numbers
    and leaves the modes of all modules as they were.

    :raises UnsupportedError: when the model doesn't give one row of logits per token.
    :raises InferenceError: when its hidden states aren't finite.
    """
    route = _ROUTES.get(model)
    if route is None:
        route = _find_route(model, input_ids, attention_mask)
        _ROUTES[model] = route
    return route
