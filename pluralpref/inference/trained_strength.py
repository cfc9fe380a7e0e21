"""The strength's part in a training run: its objective, guide, gradients, metrics and files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from accelerate.utils import broadcast, reduce
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import load_file, save_file
from torch import Tensor

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.marginal import MonteCarlo
from pluralpref.inference.mixdpo import MixDPO
from pluralpref.inference.pair_losses import PairLoss
from pluralpref.models import FixedStrength, PreferenceModel, StrengthModel, TwoSiteModel
from pluralpref.models.quantiles import quantile

_GUIDE_NAME = "strength_guide.safetensors"
_LOSS_NAME = "pair_loss.safetensors"
_TWO_SITE_NAME = "strength.safetensors"
#: Optimisers that can't step the strength's float64 numbers, and those that step the policy's in its backward pass.
_BITSANDBYTES = re.compile(
    r"paged_.*|rmsprop_bnb.*|(galore_)?adamw_(bnb_)?8bit(_layerwise)?|ademamix(_8bit)?|lion_(8|32)bit"
)
_IN_BACKWARD = re.compile(r".*_layerwise|(ada)?lomo")
_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


class TrainedStrength:
    """A strength model, or a Pyro function of one's own, as it is trained beside a policy.

    :param strength: a strength model, or any Pyro function or module with the sites ``"beta"`` and ``"preferred"``.
    :param args: the run's options.
    :raises ConfigError: for what is no strength, and for options without effect on it.
    """

    def __init__(self, strength: Any, args: MixDPOConfig) -> None:
        self.preference_model = _as_preference_model(strength)
        #: The strength model; of a Pyro function the module that holds its parameters.
        self.model: Any = self.preference_model if isinstance(self.preference_model, TwoSiteModel) else strength
        if isinstance(self.model, FixedStrength) and args.num_samples is not None:
            raise ConfigError(f"num_samples={args.num_samples} has no effect on a fixed strength: leave it out")
        if args.panel and isinstance(self.preference_model, TwoSiteModel):
            raise ConfigError(
                f"panel=True needs a StrengthModel, not the Pyro function {self.preference_model.name}: what its choices "
                "share is up to its plates"
            )
        if args.panel and isinstance(self.model, FixedStrength):
            raise ConfigError("panel=True has no effect on a fixed strength, which everybody shares: leave it out")
        self.objective = MixDPO(args.marginal, num_samples=args.num_samples)
        if isinstance(self.objective.method, MonteCarlo):
            self.objective.method = replace(
                self.objective.method,
                design=args.sampling_design,
                shared=args.shared_draws,
                seed=args.draws_seed,
                bias_correction=args.bias_correction,
            )
        self.guide = _make_guide(self.model)
        self.modules = torch.nn.ModuleList([self.preference_model] + ([] if self.guide is None else [self.guide]))
        #: Another method's loss in the place of the objective.
        self.pair_loss: PairLoss | None = None

    def check_saving(self) -> None:
        """Refuse before training what its first checkpoint, perhaps hours later, couldn't hold.

        :raises ConfigError: if the strength model can't be saved.
        """
        if not isinstance(self.model, StrengthModel):
            return
        try:
            self.model.configuration()
        except ConfigError as error:
            raise ConfigError(
                f"checkpoints can't hold this {type(self.model).__name__}: {error}. To train without checkpoints give "
                "save_strategy='no'"
            ) from error

    @property
    def learns(self) -> bool:
        """Whether training changes the strength."""
        return any(parameter.requires_grad for parameter in self.modules.parameters())

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The columns of the data set that the law depends on."""
        return self.model.context_columns if isinstance(self.model, StrengthModel) else ()

    def make_context(self, columns: Any) -> Any:
        """What the law gets of these columns; ``None`` where there are none."""
        return self.model.make_context(columns) if columns else None

    def take_pair_loss(self, loss: PairLoss | None) -> None:
        """Train with another method's loss, whose state is kept as the strength's is."""
        self.pair_loss = loss
        if loss is not None:
            self.modules.append(loss)

    # -- objective -----------------------------------------------------------------------------------------------

    def loss(
        self,
        margins: Tensor,
        preferred: Tensor,
        weight: Tensor,
        num_pairs: int,
        names: Sequence[str] | None = None,
        context: Any = None,
        loss_weight: Tensor | None = None,
        groups: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(nats a pair, with what priors add spread over all pairs; the sum of the weights).

        :param margins: (pairs,), nats; likewise ``preferred`` and ``weight``.
        :param num_pairs: of the whole training set, for which this batch stands.
        :param names: who chose, where choices of one person share a strength.
        :param context: of :meth:`make_context`.
        :param loss_weight: how much each pair counts in this step, of a loss that looks ahead; by default as in evaluation.
        :param groups: of each pair, likewise.
        """
        total = weight.sum()
        if not total > 0:
            return margins.sum() * 0, total
        if self.pair_loss is not None:
            if loss_weight is None:
                loss_weight = self.pair_loss.eval_weight(margins.detach(), preferred, weight, groups)
            return (weight * loss_weight * self.pair_loss(margins, preferred)).sum() / total, total
        # Priors count as they do beside all pairs. The weights of a panel stand inside its expectation, those of single
        # pairs before it.
        more: dict[str, Any] = {} if context is None else {"context": context}
        if names is None:
            weight = weight * (num_pairs / total)
        else:
            code = {name: i for i, name in enumerate(dict.fromkeys(names))}
            more["annotator"] = torch.tensor([code[name] for name in names], device=margins.device)
            more["scale"] = float(num_pairs / total)
        guide = _no_guide if self.guide is None else self.guide
        with pyro.settings.context(module_local_params=True), _param_store_untouched():
            loss = self.objective.differentiable_loss(self.preference_model, guide, margins, preferred, weight, **more)
        return loss / num_pairs, total

    # -- gradients -----------------------------------------------------------------------------------------------

    def average_gradients(self) -> None:
        """Over the processes: what the wrapper does for the policy's gradients."""
        for parameter in self.modules.parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = reduce(gradient, "mean")

    def gradients_are_finite(self) -> bool:
        """Whether a step may be taken."""
        return all(bool(torch.isfinite(p.grad).all()) for p in self.modules.parameters() if p.grad is not None)

    @torch.no_grad()
    def take_from_first_process(self) -> None:
        """Start from the first process's values: a guide's are drawn."""
        for tensor in self.modules.state_dict().values():
            tensor.copy_(broadcast(tensor))

    # -- metrics -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def law(self) -> Any:
        """The law of beta, with parameters that have priors at the guide's median."""
        if self.guide is None:
            return self.model.law()
        with pyro.settings.context(module_local_params=True), _param_store_untouched():
            return self.model.law(parameters=self.guide.median())

    def mean(self) -> Tensor:
        """E[beta]."""
        return self.law().mean.mean()

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Mean, standard deviation, cv and quantiles of beta by name."""
        law = self.law()
        result = {"beta/mean": float(law.mean.mean()), "beta/std": float(law.stddev.mean())}
        result["beta/cv"] = result["beta/std"] / result["beta/mean"]
        if self.pair_loss is not None:
            result |= self.pair_loss.metrics()
        if not isinstance(self.model, FixedStrength):
            levels = quantile(law, torch.tensor(list(_QUANTILES.values()), dtype=torch.float64))
            result.update({f"beta/{name}": float(v) for name, v in zip(_QUANTILES, levels.flatten(), strict=False)})
        return result

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the strength model, and the guide of its priors."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, StrengthModel):
            self.model.save_pretrained(folder)
        else:
            save_file(_state(self.model), folder / _TWO_SITE_NAME)
        if self.guide is not None:
            save_file(_state(self.guide), folder / _GUIDE_NAME)
        if self.pair_loss is not None and self.pair_loss.state_dict():
            save_file(_state(self.pair_loss), folder / _LOSS_NAME)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote.

        :raises DataError: if it is damaged or of another family.
        """
        if isinstance(self.model, StrengthModel):
            self.model.load_strength(directory)
        else:
            self.model.load_state_dict(load_file(Path(directory) / _TWO_SITE_NAME))
        if self.guide is not None:
            self.guide.load_state_dict(load_file(Path(directory) / _GUIDE_NAME))
        if self.pair_loss is not None and self.pair_loss.state_dict():
            self.pair_loss.load_state_dict(load_file(Path(directory) / _LOSS_NAME))


def check_optimizer(name: str) -> None:
    """Refuse an optimiser that can't train the strength beside the policy.

    :param name: of transformers' option ``optim``.
    :raises ConfigError: naming it.
    """
    if _IN_BACKWARD.fullmatch(name):
        reason = "steps the policy's parameters alone, so beta would never be learned"
    elif _BITSANDBYTES.fullmatch(name):
        reason = "of bitsandbytes knows no float64, in which the strength is trained"
    else:
        return
    raise ConfigError(f"optim={name!r} {reason}: choose another one such as 'adamw_torch', or a fixed strength")


def _as_preference_model(strength: Any) -> PreferenceModel | TwoSiteModel:
    if isinstance(strength, StrengthModel):
        return PreferenceModel(strength)
    if isinstance(strength, TwoSiteModel):
        return strength
    if not callable(strength):
        raise ConfigError(
            f"strength={strength!r}: give a strength model such as LogNormalStrength(mean=0.1, cv=0.5), or a Pyro model "
            "with the sites 'beta' and 'preferred'"
        )
    return TwoSiteModel(strength)


def _make_guide(strength: Any) -> AutoNormal | None:
    if not isinstance(strength, StrengthModel) or not strength.priors():
        return None
    with pyro.settings.context(module_local_params=True), _param_store_untouched(), generators_kept():
        guide = AutoNormal(_Globals(strength))
        guide()
    return guide


class _Globals:
    """The strength's global sites alone, whatever arguments the objective passes."""

    def __init__(self, strength: StrengthModel) -> None:
        self.strength = strength

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.strength()


def _no_guide(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def _param_store_untouched() -> Any:
    with pyro.get_param_store().scope(), poutine.block():
        yield


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
