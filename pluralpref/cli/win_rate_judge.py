"""The judge that a command line describes."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from pluralpref.cli.options import ModelOptions, importable_here, load_pretrained, load_tokenizer, need
from pluralpref.errors import ConfigError
from pluralpref.evaluation.win_rate import CallableJudge, ChatEndpoint, EndpointJudge, Judge, RewardModelJudge

#: Which options belong to which judge.
_OPTIONS = {
    "reward_model": (
        "judge_model", "judge_tie_threshold", "judge_batch_size", "judge_max_length", "judge_chat_template",
    ),
    "endpoint": (
        "judge_model", "judge_base_url", "judge_api_key_env", "judge_timeout", "judge_max_retries", "judge_concurrency",
        "judge_max_attempts", "judge_request_options", "judge_criterion",
    ),
    "callable": ("judge_function",),
}  # fmt: skip


@dataclass
class JudgeOptions:
    """Who judges."""

    judge: str | None = field(default=None, metadata={"help": f"One of {', '.join(_OPTIONS)}."})
    judge_model: str | None = field(
        default=None, metadata={"help": "reward_model: folder or hub name; endpoint: the model's name there."}
    )
    judge_tie_threshold: float | None = field(
        default=None, metadata={"help": "reward_model: rewards that differ by no more are a tie (0)."}
    )
    judge_batch_size: int | None = field(default=None, metadata={"help": "reward_model: answers at a time (8)."})
    judge_max_length: int | None = field(
        default=None, metadata={"help": "reward_model: longest prompt plus answer, in tokens (what it has room for)."}
    )
    judge_chat_template: str | None = field(
        default=None, metadata={"help": "reward_model: through its chat template: auto (where it has one), yes, or no."}
    )
    judge_base_url: str | None = field(
        default=None, metadata={"help": "endpoint: its address with the version, http://localhost:8000/v1."}
    )
    judge_api_key_env: str | None = field(
        default=None, metadata={"help": "endpoint: environment variable that holds the key (OPENAI_API_KEY)."}
    )
    judge_timeout: float | None = field(default=None, metadata={"help": "endpoint: seconds for one reply (60)."})
    judge_max_retries: int | None = field(
        default=None, metadata={"help": "endpoint: further attempts after timeouts, lost connections, 429 and 5xx (5)."}
    )
    judge_concurrency: int | None = field(default=None, metadata={"help": "endpoint: requests at a time (4)."})
    judge_max_attempts: int | None = field(
        default=None, metadata={"help": "endpoint: replies outside of the protocol before a verdict is invalid (3)."}
    )
    judge_request_options: str | None = field(
        default=None, metadata={"help": 'endpoint: further fields of the request as JSON ({"temperature": 0}).'}
    )
    judge_criterion: str | None = field(
        default=None, metadata={"help": "endpoint: a sentence that says which answer is better."}
    )
    judge_function: str | None = field(
        default=None, metadata={"help": "callable: module:function, called with prompt, first and second answer."}
    )

    def name(self) -> str:
        """What a reader calls the judge."""
        return f"{self.judge} {self.judge_function or self.judge_model}"


def check_judge_options(options: JudgeOptions) -> None:
    """Before anything is generated.

    :raises ConfigError: for missing options, contradictions and those without effect.
    """
    kind = need(options.judge, "judge")
    if kind not in _OPTIONS:
        raise ConfigError(f"--judge {kind}: choose one of {', '.join(_OPTIONS)}")
    for other, names in _OPTIONS.items():
        for name in names:
            if getattr(options, name) is not None and name not in _OPTIONS[kind]:
                raise ConfigError(f"--{name} has no effect on --judge {kind}: it's for {other}")
    for name in {"reward_model": ("judge_model",), "endpoint": ("judge_model", "judge_base_url")}.get(kind, ()):
        need(getattr(options, name), name)
    if kind == "callable":
        _function(options)
    if kind == "endpoint":
        _endpoint(options).endpoint.close()


def build_judge(options: JudgeOptions, dtype: str, device: torch.device) -> Judge:
    """The judge.

    :param options: checked.
    :param dtype: of a reward model's weights.
    :param device: where a reward model runs.
    :raises ConfigError: if it can't be made; says why.
    """
    if options.judge == "callable":
        return CallableJudge(_function(options), options.judge_function)
    if options.judge == "endpoint":
        return _endpoint(options)
    source = ModelOptions(dtype=dtype)
    tokenizer = load_tokenizer(source, options.judge_model)
    model, found = load_pretrained(
        "reward model",
        AutoModelForSequenceClassification,
        source,
        options.judge_model,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ConfigError(
            f"--judge_model {options.judge_model} is no reward model: its weights lack {sorted(found['missing_keys'])[0]}, "
            "which would be random numbers"
        )
    given = {
        "tie_threshold": options.judge_tie_threshold,
        "batch_size": options.judge_batch_size,
        "chat_template": options.judge_chat_template,
    }
    return RewardModelJudge(model.to(device), tokenizer, max_length=options.judge_max_length, **_given(given))


def _endpoint(options: JudgeOptions) -> EndpointJudge:
    variable = options.judge_api_key_env
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"--judge_api_key_env {variable}: there is no such environment variable, or it's empty")
    request: Any = {"temperature": 0}
    if options.judge_request_options is not None:
        try:
            request = json.loads(options.judge_request_options)
        except ValueError as error:
            raise ConfigError(f"--judge_request_options is no JSON: {error}") from None
        if not isinstance(request, dict):
            raise ConfigError("--judge_request_options: expected a JSON object")
    client = {"api_key_env": variable, "timeout": options.judge_timeout, "max_retries": options.judge_max_retries}
    endpoint = ChatEndpoint(
        str(options.judge_base_url), str(options.judge_model), request_options=request, **_given(client)
    )
    asking = {
        "criterion": options.judge_criterion,
        "max_attempts": options.judge_max_attempts,
        "concurrency": options.judge_concurrency,
    }
    return EndpointJudge(endpoint, **{"concurrency": 4, **_given(asking)})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _function(options: JudgeOptions) -> Any:
    name = need(options.judge_function, "judge_function")
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"--judge_function {name}: expected module:function")
    try:
        with importable_here():
            function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--judge_function {name}: {error}") from error
    if not callable(function):
        raise ConfigError(f"--judge_function {name}: can't be called")
    return function
