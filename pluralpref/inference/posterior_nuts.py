"""The No-U-Turn sampler on the collapsed model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pluralpref.errors import NumericsWarning
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior_coordinates import Coordinates
from pluralpref.inference.posterior_engine import EngineResult, SamplerSettings
from pluralpref.inference.posterior_problem import PosteriorProblem
from pluralpref.inference.posterior_start import find_start


class _RecordingNUTS(NUTS):
    """Pyro's kernel, which keeps no record of a single transition, with one."""

    def sample(self, params: Any) -> Any:
        self._leapfrogs: list[Tensor] = []
        self._start_energy: float | None = None
        before = self._potential_energy_last
        result = super().sample(params)
        accept = torch.stack(self._leapfrogs).mean().item() if self._leapfrogs else 1.0
        potential = self._potential_energy_last
        self.record = {
            "acceptance_rate": accept,
            "n_steps": len(self._leapfrogs),
            "energy": float(before) + (self._start_energy or 0.0),
            "lp": -float(potential),
        }
        return result

    def _kinetic_energy(self, r_unscaled: Any) -> Any:
        value = super()._kinetic_energy(r_unscaled)
        if getattr(self, "_start_energy", 0.0) is None:
            self._start_energy = float(value)
        return value

    def _build_basetree(self, *args: Any, **kwargs: Any) -> Any:
        tree = super()._build_basetree(*args, **kwargs)
        self._leapfrogs.append(torch.as_tensor(tree.sum_accept_probs))
        return tree


def run_nuts(problem: PosteriorProblem, settings: SamplerSettings) -> EngineResult:
    """Each chain by itself, from a start and with a seed of its own, in one process with one thread.

    So the draws depend on ``settings.seed`` alone, not on the number of cores.

    :raises InferenceError: if no start has a finite density.
    """
    progress = _Progress(settings)
    chains = []
    with warnings.catch_warnings():
        # A sampler tries parameters that no draw will have; an integral that is hard there is no news.
        warnings.simplefilter("ignore", NumericsWarning)
        with borrowed_state(child_seed(settings.seed, 0), threads=1):
            coordinates = Coordinates(problem)
        try:
            for chain in range(settings.num_chains):
                with borrowed_state(child_seed(settings.seed, 0, chain), threads=1):
                    chains.append(_run_chain(coordinates, settings, chain, progress))
        finally:
            progress.close()
    draws = {name: torch.stack([chain[0][name] for chain in chains]) for name in problem.names}
    stats = {name: np.stack([chain[1][name] for chain in chains]) for name in chains[0][1]}
    return EngineResult(draws, stats)


def _run_chain(
    coordinates: Coordinates, settings: SamplerSettings, chain: int, progress: _Progress
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    kernel = _RecordingNUTS(
        potential_fn=coordinates.potential,
        full_mass=True,
        target_accept_prob=settings.target_accept_prob,
        max_tree_depth=settings.max_tree_depth,
    )
    records: list[dict[str, float]] = []
    divergent: list[int] = []

    def after(kernel: Any, samples: Any, stage: str, step: int) -> None:
        if stage.startswith("Warmup"):
            progress.update(chain, "warm-up")
            return
        records.append({**kernel.record, "step_size": float(kernel.step_size)})
        divergent[:] = kernel._divergences
        progress.update(chain, "sampling")

    mcmc = MCMC(
        kernel,
        num_samples=settings.num_samples,
        warmup_steps=settings.num_warmup,
        initial_params=find_start(coordinates),
        num_chains=1,
        hook_fn=after,
        disable_progbar=True,
    )
    mcmc.run()
    draws, _ = coordinates.constrain(mcmc.get_samples())
    stats = {name: np.array([record[name] for record in records]) for name in records[0]}
    stats["n_steps"] = stats["n_steps"].astype(np.int64)
    # A tree of depth d has at most 2^d - 1 steps; a doubling that was cut short counts as one.
    stats["tree_depth"] = np.ceil(np.log2(stats["n_steps"] + 1)).astype(np.int64)
    stats["diverging"] = np.zeros(len(records), dtype=bool)
    stats["diverging"][[step for step in divergent if step < len(records)]] = True
    return {name: value.detach().double() for name, value in draws.items()}, stats


class _Progress:
    """One bar over all chains."""

    def __init__(self, settings: SamplerSettings) -> None:
        self.bar: Any = None
        if settings.progress_bar:
            from tqdm.auto import tqdm

            total = settings.num_chains * (settings.num_warmup + settings.num_samples)
            self.bar = tqdm(total=total, desc="posterior", unit="draw", dynamic_ncols=True)
        self.chains = settings.num_chains

    def update(self, chain: int, stage: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"chain {chain + 1}/{self.chains}, {stage}", refresh=False)
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
