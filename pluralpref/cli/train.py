"""``pluralpref train``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers.trainer_pt_utils import AcceleratorConfig

from pluralpref.atomic import written_aside
from pluralpref.cli.data_options import DataOptions, HeldOutOptions, load_training_pairs, tokenize_sets
from pluralpref.cli.hub import HubUpload, refuse_idle_options
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse
from pluralpref.cli.peft_options import PeftOptions, add_adapters
from pluralpref.cli.scoring import refuse_columns_of_scores, write_scored
from pluralpref.cli.strength_options import StrengthOptions, build_strength
from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig

CONFIG_NAME = "config.yaml"
#: Says how this start of the run was made, not what the run is.
_NOT_OF_THE_RUN = ("resume_from_checkpoint",)


@dataclass
class TrainOptions:
    """What is trained."""

    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference; default: the policy as loaded."}
    )


def main(argv: Sequence[str]) -> int:
    """Train, save the policy and the strength model, score the held-out pairs.

    Writes to ``--output_dir``: ``config.yaml``, ``checkpoint-*``, ``metrics.jsonl``, ``rows.json``, ``policy/``
    (with a model card), ``strength/`` and, with held-out pairs, ``margins.parquet``.
    """
    kinds = (DataOptions, HeldOutOptions, ModelOptions, PeftOptions, TrainOptions, StrengthOptions, MixDPOConfig)
    data, held_out_options, model_options, peft, options, strength_options, config = parse(
        "train", kinds, argv, main.__doc__ or ""
    )
    source = data.source()
    push = config.push_to_hub
    if not push:
        refuse_idle_options(config)
    run = Path(need(config.output_dir, "output_dir"))
    resume = _resume(config.resume_from_checkpoint)
    if (run / CONFIG_NAME).exists() and resume is None:
        raise ConfigError(
            f"--output_dir {run} holds another run: choose another folder, or go on with --resume_from_checkpoint True"
        )
    # Of several processes the first one writes and talks, once all have looked at the folder.
    first = config.process_index == 0
    if config.world_size > 1:
        PartialState().wait_for_everyone()
    train_pairs, held_out, notes = load_training_pairs(data, held_out_options, config.seed)
    if first:
        for note in notes:
            print(note, flush=True)
    if held_out is None and config.eval_strategy != "no":
        raise ConfigError(
            "eval_strategy needs held-out pairs: give --dataset_test_split, --eval_dataset_name or --held_out_by"
        )
    if held_out is not None:
        refuse_columns_of_scores(held_out)
    strength = build_strength(strength_options, [pairs for pairs in (train_pairs, held_out) if pairs is not None])
    if config.strength_learning_rate != MixDPOConfig.__dataclass_fields__["strength_learning_rate"].default and not (
        strength.priors() or any(parameter.requires_grad for parameter in strength.parameters())
    ):
        raise ConfigError(
            f"--strength_learning_rate {config.strength_learning_rate} has no effect: this strength isn't learned; leave it out"
        )
    tokenizer, model = load_tokenizer(model_options), load_model(model_options)
    model = add_adapters(model, peft, config.disable_dropout)
    reference = None
    if options.ref_model_name_or_path is not None:
        if model_options.reward_model:
            raise ConfigError("--ref_model_name_or_path has no effect with --reward_model: leave it out")
        reference = load_model(model_options, options.ref_model_name_or_path)

    from pluralpref.inference.trainer import MixDPOTrainer

    sets = {"train": train_pairs, "held_out": held_out}
    prepared, reports = tokenize_sets(sets, tokenizer, data, config, show=first)
    upload = HubUpload(config) if push and first else None
    config.push_to_hub = False  # transformers would upload the run's folder with every checkpoint
    trainer = MixDPOTrainer(
        model=model,
        ref_model=reference,
        strength=strength,
        args=config,
        train_dataset=prepared["train"],
        eval_dataset=prepared.get("held_out"),
        processing_class=tokenizer,
    )
    trainer.row_reports.update({"train": reports["train"]})
    run.mkdir(parents=True, exist_ok=True)
    # Not only without --resume_from_checkpoint: jobs that may be taken off a machine carry it from their first start.
    if first and not (run / CONFIG_NAME).exists():
        settings = {
            **asdict(data),
            **asdict(held_out_options),
            **asdict(model_options),
            **asdict(peft),
            **asdict(options),
            **asdict(strength_options),
            **changed_options(config),
            **({"push_to_hub": True} if push else {}),
        }
        with written_aside(run / CONFIG_NAME) as partial:
            partial.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    if first:
        (run / "rows.json").write_text(json.dumps({k: r.to_dict() for k, r in reports.items()}, indent=2) + "\n")
    result = trainer.train(resume_from_checkpoint=resume)
    if not first:
        return 0
    trainer.model.save_pretrained(run / "policy")
    tokenizer.save_pretrained(run / "policy")
    trainer.save_strength(run / "strength")
    _write_card(trainer, run / "policy")
    print(f"trained {result.global_step} steps; beta at the end of training: {trainer.strength}", flush=True)
    if held_out is not None:
        table = write_scored(
            run / "margins.parquet",
            trainer.model,
            trainer.ref_model,
            trainer.eval_dataset,
            trainer.data_collator,
            config.per_device_eval_batch_size,
            {"policy": str(run / "policy"), "reference": model_options.model_name_or_path, "dataset": source},
            config.attn_layout,
            trainer.compute_loss_context_manager,
            config.logits_budget_bytes,
        )
        print(f"margins of {len(table)} held-out pairs: {run / 'margins.parquet'}", flush=True)
    if upload is not None:
        print(f"uploaded to {upload(run / 'policy', run / 'strength')}", flush=True)
    return 0


def _write_card(trainer: Any, policy: Path) -> None:
    """The model card beside the policy; adapters have one already, which is added to."""
    made, card = Path(trainer.args.output_dir) / "README.md", policy / "README.md"
    if card.exists():
        card.replace(made)
    trainer.create_model_card(model_name=Path(trainer.args.output_dir).resolve().name)
    made.replace(card)


def _resume(value: str | None) -> str | bool | None:
    if value is None or value.lower() in ("false", "no"):
        return None
    return True if value.lower() in ("true", "yes") else value


def changed_options(config: MixDPOConfig) -> dict[str, object]:
    """The options that differ from their defaults: enough to run again, short enough to read. Secrets are left out."""
    # Compared with the declared defaults: making a second config would reset accelerate's state under the trainer.
    settings: dict[str, object] = {}
    for option in fields(config):
        if not option.init or option.name in _NOT_OF_THE_RUN or option.name.endswith("_token"):
            continue
        value = getattr(config, option.name)
        if isinstance(value, AcceleratorConfig):  # what transformers makes of no configuration, too
            usual = AcceleratorConfig().to_dict()
            value = {name: chosen for name, chosen in value.to_dict().items() if chosen != usual.get(name)}
        default = option.default if option.default_factory is MISSING else option.default_factory()
        wanted = option.name in ("output_dir", "seed") or value != default
        if wanted and isinstance(value, str | int | float | list | dict) and value not in ([], {}):
            settings[option.name] = _plain(value)
    return settings


def _plain(value: Any) -> Any:
    """Without enumerations, strings of their own kind, which YAML would write as Python objects."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(getattr(value, "value", value)) if isinstance(value, str) else value
