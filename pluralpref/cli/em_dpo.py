"""``pluralpref em-dpo``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pluralpref.atomic import written_aside
from pluralpref.cli.data_options import DataOptions, HeldOutOptions, load_training_pairs, tokenize_sets
from pluralpref.cli.hub import refuse_idle_options
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse
from pluralpref.cli.peft_options import PeftOptions, add_adapters
from pluralpref.cli.train import CONFIG_NAME, TrainOptions, changed_options
from pluralpref.data import MarginsTable, write_margins
from pluralpref.errors import ConfigError
from pluralpref.inference.config import MixDPOConfig


@dataclass
class EMDPOOptions:
    """The mixture."""

    num_classes: int = field(default=2, metadata={"help": "K, classes of annotators; each gets a policy."})
    iterations: int = field(
        default=5, metadata={"help": "Of EM; --num_train_epochs or --max_steps is the training of a class in each."}
    )
    beta: float = field(default=0.1, metadata={"help": "DPO's beta, the same in every class."})
    start_from: str = field(
        default="previous",
        metadata={
            "help": "What a class is trained from: previous, its policy of the iteration before; base, the model."
        },
    )


def main(argv: Sequence[str]) -> int:
    """Train a policy for each latent class of annotators by EM-DPO (arXiv:2405.15065), and score held-out pairs.

    The data need a column annotator. Example: pluralpref em-dpo --model_name_or_path gpt2 --dataset_name pairs.jsonl
    --held_out_by annotator --num_classes 2 --iterations 5 --num_train_epochs 1 --beta 0.1 --learning_rate 5e-6
    --output_dir run
    """
    kinds = (DataOptions, HeldOutOptions, ModelOptions, PeftOptions, TrainOptions, EMDPOOptions, MixDPOConfig)
    data, held_out_options, model_options, peft, options, mixture, config = parse(
        "em-dpo", kinds, argv, main.__doc__ or ""
    )
    source = data.source()
    run = Path(need(config.output_dir, "output_dir"))
    resume = _resume(config.resume_from_checkpoint)
    if (run / CONFIG_NAME).exists() and not resume:
        raise ConfigError(
            f"--output_dir {run} holds another run: choose another folder, or go on with --resume_from_checkpoint True"
        )
    if model_options.reward_model:
        raise ConfigError("--reward_model has no effect: EM-DPO trains language models; leave it out")
    if not config.push_to_hub:
        refuse_idle_options(config)

    from pluralpref.inference.em_dpo.driver import EMDPO
    from pluralpref.inference.em_dpo.settings import check_options

    check_options(mixture.beta, mixture.num_classes, mixture.iterations, mixture.start_from, config)
    train_pairs, held_out, notes = load_training_pairs(data, held_out_options, config.seed)
    for note in notes:
        print(note, flush=True)
    tokenizer = load_tokenizer(model_options)
    prepared, reports = tokenize_sets({"train": train_pairs, "held_out": held_out}, tokenizer, data, config)
    policy = add_adapters(load_model(model_options), peft, config.disable_dropout)
    # Loaded before anything is written, and handed over so that it is gone once it was used.
    name = options.ref_model_name_or_path
    references = [] if name is None else [load_model(model_options, name)]
    em = EMDPO(
        lambda: policy,  # not copied
        beta=mixture.beta,
        num_classes=mixture.num_classes,
        iterations=mixture.iterations,
        args=config,
        train_dataset=prepared["train"],
        eval_dataset=prepared.get("held_out"),
        processing_class=tokenizer,
        reference=references.pop if references else None,
        start_from=mixture.start_from,
        report=lambda line: print(line, flush=True),
    )
    run.mkdir(parents=True, exist_ok=True)
    if not resume or not (run / CONFIG_NAME).exists():
        groups = (data, held_out_options, model_options, peft, options, mixture)
        settings: dict[str, Any] = {name: value for group in groups for name, value in asdict(group).items()}
        settings |= changed_options(config)
        text = yaml.safe_dump({name: value for name, value in settings.items() if value is not None})
        with written_aside(run / CONFIG_NAME) as partial:
            partial.write_text(text)
    with written_aside(run / "rows.json") as partial:
        partial.write_text(json.dumps({key: report.to_dict() for key, report in reports.items()}, indent=2) + "\n")
    result = em.train(resume=resume)
    for folder in result.policies:
        print(f"policy: {folder}")
    if held_out is not None:
        names = {"reference": name or model_options.model_name_or_path, "dataset": source}
        _write_held_out(run, result, prepared["held_out"], names)
    return 0


def _write_held_out(run: Path, result: Any, pairs: Any, names: dict[str, Any]) -> None:
    """Tables of margins, one for each class, and how well the mixture predicts the choices."""
    columns = {
        name: pairs[name][:] if name in pairs.column_names else None for name in ("annotator", "weight", "preferred")
    }
    margins = result.margins("held_out")
    for k, policy in enumerate(result.policies):
        path = run / f"margins-class-{k + 1}.parquet"
        table = MarginsTable(
            margins=margins[:, k],
            groups={"row": pairs["row"][:]},
            metadata={"policy": str(policy), "beta": result.beta, **names},
            **columns,
        )
        write_margins(path, table)
        print(f"margins of {len(table)} held-out pairs: {path}")
    found = result.metrics(margins, columns["annotator"], preferred=columns["preferred"], weight=columns["weight"])
    print(f"held-out log-loss {found['log_loss']:.4f} nats a pair, accuracy {found['accuracy']:.1%}")
    if columns["annotator"] is not None:
        print(
            f"with each person's earlier held-out choices: log-loss {found['log_loss/sequential']:.4f}, accuracy "
            f"{found['accuracy/sequential']:.1%}; {found['annotators/known']:.0f} of {found['annotators']:.0f} annotators known "
            "from training"
        )


def _resume(value: str | None) -> bool:
    if value is None or value.lower() in ("false", "no"):
        return False
    if value.lower() in ("true", "yes"):
        return True
    raise ConfigError(
        f"--resume_from_checkpoint {value}: EM-DPO goes on with the last complete class of --output_dir; give True"
    )
