"""``pluralpref mmra``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from pluralpref.atomic import written_aside
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse, show_progress
from pluralpref.cli.prompt_options import PromptOptions
from pluralpref.cli.train import CONFIG_NAME
from pluralpref.cli.win_rate import device
from pluralpref.errors import ConfigError


@dataclass
class MMRAOptions:
    """Whose policies answer, and how."""

    run_dir: str | None = field(default=None, metadata={"help": "Folder of a run of pluralpref em-dpo."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of answers and result (RUN_DIR/mmra); the same command goes on in it."}
    )
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The run's reference; default: the one that its config.yaml names."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "The reference's revision on the hub, with --ref_model_name_or_path (main)."}
    )
    regret_weights: list[float] | None = field(
        default=None, metadata={"help": "How much each class's regret counts, one number for each class (1)."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "The longest answer, in tokens."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts are left out and counted (what the model has room for)."}
    )
    chat_template: str = field(
        default="auto",
        metadata={"help": "Prompts through the policies' chat template: auto (where they have one), yes, or no."},
    )
    batch_size: int = field(default=8, metadata={"help": "Prompts at a time."})
    seed: int = field(default=0, metadata={"help": "Of the answers, and of who of the mixture answers."})
    dtype: str = field(default="float32", metadata={"help": "Precision of all weights: float32, bfloat16 or float16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run models on the CPU also where there is a GPU."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the models."})


def main(argv: Sequence[str]) -> int:
    """One policy of EM-DPO's classes by min-max regret (MMRA, arXiv:2405.15065): how often each class's policy answers.

    Every policy answers the prompts. What a class loses when another's answers, by its own policy's log-ratios, is its regret;
    the mixture is found whose greatest regret is the least. Example: pluralpref mmra --run_dir run --prompts prompts.jsonl
    """
    of_prompts, options = parse("mmra", (PromptOptions, MMRAOptions), argv, main.__doc__ or "")

    from pluralpref.evaluation.class_answers import class_answers
    from pluralpref.inference.em_dpo import EMDPOResult, min_max_regret
    from pluralpref.inference.em_dpo.aggregation import check_regret_weights

    run = Path(need(options.run_dir, "run_dir"))
    result = EMDPOResult.load(run)
    classes = len(result.policies)
    if classes < 2:
        raise ConfigError(f"--run_dir {run} has one class: there is nothing to choose between")
    check_regret_weights(options.regret_weights, classes)  # before hours of answers
    reference, revision = _reference(options, run)
    folder = Path(options.output_dir) if options.output_dir else run / "mmra"
    prompts, rows = of_prompts.load()
    source = ModelOptions(dtype=options.dtype, trust_remote_code=options.trust_remote_code)

    of_reference = replace(source, model_revision=revision)

    def load(name: str, where: ModelOptions = source) -> Any:
        return load_model(where, name).to(device(options.use_cpu))

    names = [str(policy) for policy in result.policies]
    answers = class_answers(
        [lambda name=name: load(name) for name in names],  # type: ignore[misc]
        lambda: load(reference, of_reference),
        load_tokenizer(source, names[0]),
        prompts,
        folder,
        max_new_tokens=options.max_new_tokens,
        max_prompt_length=options.max_prompt_length,
        chat_template=options.chat_template,
        seed=options.seed,
        batch_size=options.batch_size,
        names=names,
        progress=show_progress(),
    )
    found = min_max_regret(answers.log_ratios, options.regret_weights)
    mixture = folder / "answers-mixture.jsonl"
    answers.write_mixture(mixture, found.weights, options.seed)
    alternatives = {"the classes' shares": result.eta}
    alternatives |= {f"class {k + 1} alone": torch.eye(classes, dtype=torch.float64)[k] for k in range(classes)}
    record = {
        "weights": found.weights.tolist(),
        "regret": found.regret_of(found.weights).tolist(),
        "worst": found.worst_of(found.weights),
        "alternatives": {name: found.worst_of(weights) for name, weights in alternatives.items()},
        "regrets": found.regrets.tolist(),
        "standard_errors": None if bool(found.standard_errors.isnan().any()) else found.standard_errors.tolist(),
        "rows": rows.to_dict(),
        "prompts": {"used": len(answers.used), "left_out": answers.skipped},
        "policies": names,
        "reference": reference,
        "reference_revision": revision,
        "options": {**asdict(of_prompts), **asdict(options)},
    }
    with written_aside(folder / "mmra.json") as partial:
        partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    print(_as_text(found, result.eta, alternatives))
    left_out = "".join(f", {count} left out ({reason})" for reason, count in answers.skipped.items())
    print(f"\n{len(answers.used)} prompts{left_out}\nresult: {folder / 'mmra.json'}\nthe mixture's answers: {mixture}")
    return 0


def _reference(options: MMRAOptions, run: Path) -> tuple[str, str]:
    """The reference's name and revision: as given, or as the run's options name them.

    :raises ConfigError: if there are no such options, and for a revision of a reference that isn't named.
    """
    if options.ref_model_name_or_path is not None:
        return options.ref_model_name_or_path, options.model_revision or "main"
    if options.model_revision is not None:
        raise ConfigError("--model_revision has no effect without --ref_model_name_or_path: the run's own is taken")
    path = run / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"--ref_model_name_or_path is missing: {path}, which would name the reference, isn't there")
    settings = yaml.safe_load(path.read_text())
    name = settings.get("ref_model_name_or_path") or settings["model_name_or_path"]
    return name, settings.get("model_revision", "main")


def _as_text(found: Any, shares: Any, alternatives: dict[str, Any]) -> str:
    """The tables that a person reads."""
    classes = len(found.weights)
    columns = "".join(f"{f'class {k + 1}':>18}" for k in range(classes))
    lines = [
        "regret in nats of log-ratio (standard error) of, when answers are of:",
        f"{'':<10}{columns}{'mixture':>10}",
    ]
    mixed = found.regret_of(found.weights)
    for i in range(classes):
        cells = (f"{found.regrets[i, j]:.3f} ({found.standard_errors[i, j]:.3f})" for j in range(classes))
        lines.append(f"{f'class {i + 1}':<10}{''.join(f'{cell:>18}' for cell in cells)}{mixed[i]:>10.3f}")
    lines.append(f"{'share':<10}{''.join(f'{share:>18.1%}' for share in shares)}")
    lines.append(f"{'weight':<10}{''.join(f'{weight:>18.1%}' for weight in found.weights)}")
    lines.append("")
    lines.append(f"greatest regret: {found.worst_of(found.weights):.3f} nats")
    lines += [f"  of {name}: {found.worst_of(weights):.3f}" for name, weights in alternatives.items()]
    return "\n".join(lines)
