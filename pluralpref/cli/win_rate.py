"""``pluralpref win-rate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pluralpref.atomic import written_aside
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse, show_progress
from pluralpref.cli.prompt_options import PromptOptions
from pluralpref.cli.win_rate_judge import JudgeOptions, build_judge, check_judge_options
from pluralpref.errors import ConfigError
from pluralpref.evaluation.win_rate import (
    Answer,
    GenerationOptions,
    Prompt,
    WinRateSummary,
    collect_verdicts,
    generate_answers,
    make_pairs,
    read_answers,
    summarize,
)

_GENERATION = (
    "chat_template", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "max_prompt_length", "batch_size",
)  # fmt: skip


@dataclass
class WinRateOptions:
    """Who answers, and where everything is written."""

    policy: str | None = field(default=None, metadata={"help": "Folder or hub name of the policy."})
    baseline: str | None = field(default=None, metadata={"help": "Likewise of the baseline."})
    answers_a: str | None = field(
        default=None, metadata={"help": "A file of the policy's answers (column answer), instead of --policy."}
    )
    answers_b: str | None = field(default=None, metadata={"help": "Likewise of the baseline's, instead of --baseline."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of answers, verdicts and summary; the same command goes on in it."}
    )
    dtype: str = field(default="float32", metadata={"help": "Precision of all weights: float32, bfloat16 or float16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run models on the CPU also where there is a GPU."})
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "Prompts through a policy's chat template: auto (where it has one, the default), yes, or no."
        },
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "The longest answer, in tokens (256)."})
    do_sample: bool | None = field(default=None, metadata={"help": "Sample instead of greedy answers (False)."})
    temperature: float | None = field(default=None, metadata={"help": "Of sampling (1)."})
    top_k: int | None = field(default=None, metadata={"help": "Sample from the k most probable tokens (all)."})
    top_p: float | None = field(default=None, metadata={"help": "Sample from the most probable mass p (1)."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts aren't answered but counted (what the model has room for)."}
    )
    batch_size: int | None = field(default=None, metadata={"help": "Prompts generated at a time (8)."})
    seed: int = field(default=0, metadata={"help": "Of sampling and of the bootstrap."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Draws of the bootstrap over prompts."})


def main(argv: Sequence[str]) -> int:
    """Which of two policies a judge prefers: answers, a verdict on each pair in both orders, win rate with intervals."""
    of_prompts, options, of_judge = parse(
        "win-rate", (PromptOptions, WinRateOptions, JudgeOptions), argv, main.__doc__ or ""
    )
    check_judge_options(of_judge)
    if options.num_bootstrap < 1 or options.seed < 0:
        raise ConfigError(
            f"--num_bootstrap {options.num_bootstrap} must be at least 1 and --seed {options.seed} at least 0"
        )
    folder = Path(need(options.output_dir, "output_dir"))
    generation = _generation(options)
    if generation is None and of_judge.judge != "reward_model":
        for name, idle in (("dtype", options.dtype != "float32"), ("use_cpu", options.use_cpu)):
            if idle:
                raise ConfigError(f"--{name} has no effect: no model runs here")
    prompts, report = of_prompts.load()
    policy = _answers(options, "policy", "a", 0, prompts, generation, folder, report.total)
    baseline = _answers(options, "baseline", "b", 1, prompts, generation, folder, report.total)
    pairs = make_pairs(prompts, policy, baseline)
    judge = build_judge(of_judge, options.dtype, device(options.use_cpu))
    path = folder / "verdicts.jsonl"
    verdicts = collect_verdicts(pairs, judge, path, info=of_judge.name(), progress=show_progress())
    summary = summarize(pairs, verdicts, num_bootstrap=options.num_bootstrap, seed=options.seed)
    settings = {**asdict(of_prompts), **asdict(options), **asdict(of_judge)}
    with written_aside(folder / "summary.json") as partial:
        partial.write_text(json.dumps({**summary.to_dict(), "options": settings}, indent=2) + "\n")
    print(as_text(summary))
    print(f"\nverdicts: {path}\nsummary: {folder / 'summary.json'}")
    return 0


def device(use_cpu: bool) -> torch.device:
    """The first GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")


def _generation(options: WinRateOptions) -> GenerationOptions | None:
    """How answers are generated; ``None`` when none are.

    :raises ConfigError: for contradictions and options without effect.
    """
    for side, letter in (("policy", "a"), ("baseline", "b")):
        model, file = getattr(options, side), getattr(options, f"answers_{letter}")
        if model is None and file is None:
            raise ConfigError(f"--{side} (or --answers_{letter}) is missing")
        if model is not None and file is not None:
            raise ConfigError(f"--{side} has no effect beside --answers_{letter}: leave one of them out")
    given = {name: value for name in _GENERATION if (value := getattr(options, name)) is not None}
    if options.policy is None and options.baseline is None:
        if given:
            raise ConfigError(f"--{next(iter(given))} has no effect: all answers are read from files")
        return None
    if given.pop("batch_size", 1) < 1:
        raise ConfigError(f"--batch_size {options.batch_size}: must be at least 1")
    return GenerationOptions(**given, seed=options.seed)


def _answers(
    options: WinRateOptions,
    side: str,
    letter: str,
    stream: int,
    prompts: list[Prompt],
    generation: GenerationOptions | None,
    folder: Path,
    num_rows: int,
) -> list[Answer]:
    file = getattr(options, f"answers_{letter}")
    if file is not None:
        return read_answers(file, prompts, num_rows)
    assert generation is not None
    name = getattr(options, side)
    source = ModelOptions(dtype=options.dtype)
    tokenizer = load_tokenizer(source, name)
    model: Any = load_model(source, name).to(device(options.use_cpu))
    return generate_answers(
        model,
        tokenizer,
        prompts,
        folder / f"answers_{side}.jsonl",
        generation,
        batch_size=options.batch_size or 8,
        stream=stream,
        name=name,
        progress=show_progress(),
    )


def as_text(summary: WinRateSummary) -> str:
    """The table that a person reads."""
    lines = [f"{'':<28}{'estimate':>9}   95% interval, prompts drawn anew"]
    for name, found in summary.estimates.items():
        value = "-" if found.value is None else f"{found.value:.1%}"
        interval = "-" if found.low is None or found.high is None else f"{found.low:.1%} to {found.high:.1%}"
        lines.append(f"{name:<28}{value:>9}   {interval}")
    lines.append("")
    lines += [f"{name:<34}{count:>9}" for name, count in summary.counts.items()]
    lines += [f"{name:<34}{value:>9.4g}" for name, value in summary.lengths.items()]
    shares = (summary.lengths["policy_longer_share"], summary.lengths["baseline_longer_share"])
    if max(shares) > 0 and min(shares) == 0:
        who = "policy" if shares[0] else "baseline"
        lines.append(
            f"\nno answer of the {who} is shorter than the other: its preference and that for length can't be told apart, "
            "and the length-controlled win rate is an extrapolation"
        )
    return "\n".join(lines)
