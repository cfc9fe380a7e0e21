"""Fit a PAL model to people's choices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pluralpref.errors import DataError, InferenceError
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.pal.config import BATCH_SIZE, LEARNING_RATE, PATIENCE, WEIGHT_LEARNING_RATE, PalConfig
from pluralpref.inference.pal.data import PalPairs, hold_out_choices
from pluralpref.inference.pal.model import Pal
from pluralpref.models import FixedStrength, StrengthModel

#: Pairs that are run at once where no gradient is needed.
_BLOCK = 8192


def fit_pal(
    pairs: PalPairs, config: PalConfig | None = None, *, strength: StrengthModel | None = None, progress: bool = True
) -> Pal:
    r"""Learn f, the prototypes, the people's weights and the strength's parameters, if it has any.

    The loss is the weighted mean over pairs of :math:`-y \log P - (1 - y) \log (1 - P)` with
    :math:`P = E_\beta[\sigma(\beta (u_i(c) - u_i(r)))]`, in nats, plus ``weight_decay``/2 times the squares of the parameters of
    f and g_k. It isn't convex: another seed can end elsewhere. Prototypes are numbered arbitrarily. The fit runs on the CPU.

    :param pairs: with annotators.
    :param config: default: PAL-B with two prototypes.
    :param strength: the law of beta at the start, which is copied; default ``FixedStrength(1.0)``, the logistic loss.
    :param progress: show a progress bar.
    :returns: the model in evaluation mode; :attr:`~pluralpref.inference.pal.Pal.history` tells the losses.
    :raises DataError: without annotators; if nobody has enough choices for early stopping, or no pair has weight.
    :raises InferenceError: if the loss stops being finite.
    """
    config = PalConfig() if config is None else config
    if pairs.annotator is None:
        raise DataError("PAL needs to know who chose: give every pair an annotator (column 'annotator')")
    strength = copy.deepcopy(FixedStrength(1.0) if strength is None else strength)
    prompt_size = None if pairs.prompt is None or config.variant == "a" else pairs.prompt.shape[1]
    with borrowed_state(config.seed):
        pal = Pal(config, pairs.names, pairs.chosen.shape[1], prompt_size, strength)
        fitted, stopping = pairs, None
        if config.stopping_fraction is not None:
            fitted, stopping = hold_out_choices(pairs, config.stopping_fraction, child_seed(config.seed, 1))
        for part in (fitted, stopping):
            if part is not None and not bool((part.weight > 0).any()):
                raise DataError(
                    "weight is 0 in every row that is fitted, or that says when to stop: nothing is learned from them"
                )
        pal.reward.learn_scales(fitted)
        with tqdm(total=config.max_epochs, desc="PAL", unit="epoch", disable=not progress) as bar:
            if config.optimizer == "lbfgs":
                _by_lbfgs(pal, fitted, bar)
            else:
                _by_adam(pal, fitted, stopping, bar)
    return pal.eval()


def mean_loss(pal: Pal, pairs: PalPairs) -> float:
    """The weighted mean of :meth:`~pluralpref.inference.pal.Pal.losses`, without gradient and in blocks.

    :param pairs: their annotators' codes are rows of the model's weights.
    """
    total = 0.0
    with torch.no_grad():
        for start in range(0, pairs.num_pairs, _BLOCK):
            block = pairs.take(slice(start, start + _BLOCK))
            total += float((block.weight * pal.losses(block)).sum())
    return total / float(pairs.weight.sum())


def _by_adam(pal: Pal, pairs: PalPairs, stopping: PalPairs | None, bar: Any) -> None:
    config = pal.config
    shared = pal.reward.shared_parameters()
    own = {id(parameter) for parameter in shared}
    optimizer = torch.optim.Adam(
        [
            {
                "params": shared,
                "lr": LEARNING_RATE if config.learning_rate is None else config.learning_rate,
                "weight_decay": config.weight_decay,
            },
            {
                "params": [parameter for parameter in pal.parameters() if id(parameter) not in own],
                "lr": WEIGHT_LEARNING_RATE if config.weight_learning_rate is None else config.weight_learning_rate,
            },
        ]
    )
    patience = PATIENCE if config.patience is None else config.patience
    mean_weight = float(pairs.weight.mean())
    best, best_state, since = float("inf"), None, 0
    for epoch in range(1, config.max_epochs + 1):
        total = 0.0
        for batch in _batches(pairs, BATCH_SIZE if config.batch_size is None else config.batch_size):
            # Not divided by the batch's own weights: the gradient's mean over batches is that of the whole.
            loss = (batch.weight * pal.losses(batch)).sum() / (batch.num_pairs * mean_weight)
            _check(loss, f"in epoch {epoch}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * batch.num_pairs
        record = {"epoch": float(epoch), "loss": total / pairs.num_pairs}
        if stopping is not None:
            record["held_out_loss"] = mean_loss(pal, stopping)
        pal.history.append(record)
        bar.set_postfix({name: f"{value:.4g}" for name, value in record.items() if name != "epoch"})
        bar.update()
        if stopping is None:
            continue
        since += 1
        if record["held_out_loss"] < best:
            best, best_state, since = record["held_out_loss"], copy.deepcopy(pal.state_dict()), 0
        if since >= patience:
            break
    if best_state is not None:
        pal.load_state_dict(best_state)


def _batches(pairs: PalPairs, batch_size: int) -> Iterator[PalPairs]:
    for rows in torch.randperm(pairs.num_pairs).split(batch_size):
        yield pairs.take(rows)


def _by_lbfgs(pal: Pal, pairs: PalPairs, bar: Any) -> None:
    pairs = replace(pairs, weight=pairs.weight / pairs.weight.sum())
    shared = pal.reward.shared_parameters()
    optimizer = torch.optim.LBFGS(
        list(pal.parameters()),
        max_iter=pal.config.max_epochs,
        max_eval=10 * pal.config.max_epochs,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (pairs.weight * pal.losses(pairs)).sum()
        _check(loss, f"at step {len(pal.history) + 1}")
        pal.history.append({"epoch": float(len(pal.history) + 1), "loss": loss.item()})
        if pal.config.weight_decay:
            loss = loss + pal.config.weight_decay / 2 * sum(p.double().square().sum() for p in shared)
        loss.backward()
        bar.set_postfix({"loss": f"{loss.item():.4g}"})
        return loss

    optimizer.step(closure)
    bar.update(optimizer.state[optimizer._params[0]]["n_iter"])


def _check(loss: Tensor, when: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise InferenceError(f"PAL's loss stopped being finite {when}: lower learning_rate, or raise weight_decay")
