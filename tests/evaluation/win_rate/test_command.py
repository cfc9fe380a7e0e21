from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pluralpref.cli.main import main


@pytest.fixture
def workplace(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    """A folder with two policies, a reward model, prompts and a judge."""
    for name, seed in (("policy", 0), ("baseline", 1)):
        tiny_llama(seed, vocab_size=258).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            num_labels=1, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    rows = [{"prompt": f"Question {i}?"} for i in range(6)] + [{"prompt": ""}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for side, text in (("a", "a long answer"), ("b", "short")):
        rows = [{"prompt_id": i, "answer": text * (i % 3)} for i in range(6)]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "win_rate_judges.py").write_text(
        "def longer(prompt, first, second):\n"
        "    return 'TIE' if len(first) == len(second) else 'A' if len(first) > len(second) else 'B'\n"
        "def invalid(prompt, first, second):\n    return 'both'\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("win_rate_judges", None)


MODELS = ["--policy", "policy", "--baseline", "baseline", "--max_new_tokens", "8", "--use_cpu"]
FILES = ["--answers_a", "a.jsonl", "--answers_b", "b.jsonl"]
LONGER = ["--judge", "callable", "--judge_function", "win_rate_judges:longer"]


def run(*arguments, out="out"):
    return main(["win-rate", "--prompts", "prompts.jsonl", "--output_dir", out, "--num_bootstrap", "20", *arguments])


def test_two_models_and_a_function(workplace, capsys):
    assert run(*MODELS, *LONGER, "--do_sample", "True", "--batch_size", "4") == 0
    shown = capsys.readouterr().out
    assert "6 of 7 rows used; 1 skipped: the prompt is empty" in shown
    names = ["answers_policy.jsonl", "answers_baseline.jsonl", "verdicts.jsonl", "summary.json"]
    content = {name: (workplace / "out" / name).read_bytes() for name in names}
    answers = [
        {r["prompt_id"]: r["answer"] for r in map(json.loads, content[name].splitlines()[1:])} for name in names[:2]
    ]
    lengths = [(len(answers[0][i]), len(answers[1][i])) for i in range(6)]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths) / 6
    found = json.loads(content["summary.json"])
    assert found["estimates"]["win_rate"]["value"] == pytest.approx(wins)
    assert found["estimates"]["flip_share"]["value"] == 0
    assert found["counts"]["verdicts"] == 12
    assert f"win_rate{wins:>29.1%}" in shown
    verdicts = [json.loads(line) for line in content["verdicts.jsonl"].splitlines()]
    assert verdicts[0]["judge"] == "callable win_rate_judges:longer"
    assert len(verdicts) == 13
    # The same command changes nothing.
    assert run(*MODELS, *LONGER, "--do_sample", "True") == 0
    again = {name: (workplace / "out" / name).read_bytes() for name in names[:3]}
    assert again == {name: content[name] for name in names[:3]}
    # Its answers are files of answers.
    files = ["--answers_a", "out/answers_policy.jsonl", "--answers_b", "out/answers_baseline.jsonl"]
    assert run(*files, *LONGER, out="other") == 0
    other = json.loads((workplace / "other" / "summary.json").read_text())
    assert other["estimates"] == found["estimates"]
    capsys.readouterr()
    for arguments, message in (
        ([*MODELS, *LONGER], "generation.do_sample was True, is False"),
        ([*files, "--judge", "callable", "--judge_function", "win_rate_judges:invalid"], "judge.name was"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_a_reward_model(workplace, capsys):
    assert run(*FILES, "--judge", "reward_model", "--judge_model", "reward", "--judge_batch_size", "3") == 0
    assert "empty_answers_policy                      2" in capsys.readouterr().out
    found = json.loads((workplace / "out" / "summary.json").read_text())
    assert found["estimates"]["flip_share"]["value"] == 0
    assert found["estimates"]["tie_share"]["value"] == pytest.approx(2 / 6)  # two empty answers to two prompts
    assert run(*FILES, "--judge", "reward_model", "--judge_model", "policy", out="other") == 2
    assert "is no reward model: its weights lack score.weight" in capsys.readouterr().err
    assert run(*FILES, "--judge", "reward_model", "--judge_model", "nowhere", out="other") == 2
    assert "can't be loaded" in capsys.readouterr().err


def test_an_endpoint_that_goes_away(workplace, serve, completion, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    server = serve(lambda body, n: (200, completion("TIE")) if n < 7 else (503, b"down"))
    judge = [
        "--judge",
        "endpoint",
        "--judge_model",
        "m",
        "--judge_api_key_env",
        "JUDGE_KEY",
        "--judge_max_retries",
        "0",
    ]
    assert run(*FILES, *judge, "--judge_base_url", server.url, "--judge_concurrency", "1") == 1
    error = capsys.readouterr().err
    assert "status 503: down. 7 of 12 verdicts are in out" in error
    assert "run the same again to go on" in error
    back = serve(lambda body, n: (200, completion('{"verdict": "A"}')))
    assert run(*FILES, *judge, "--judge_base_url", back.url) == 0
    assert len(back.requests) == 5
    assert back.requests[0]["temperature"] == 0
    found = json.loads((workplace / "out" / "summary.json").read_text())
    assert found["estimates"]["tie_share"]["value"] == pytest.approx(7 / 12)
    written = "".join(path.read_text() for path in (workplace / "out").iterdir()) + capsys.readouterr().out + error
    assert "sk-secret" not in written
    monkeypatch.delenv("JUDGE_KEY")
    assert run(*FILES, *judge, "--judge_base_url", back.url) == 2
    assert "JUDGE_KEY: there is no such environment variable" in capsys.readouterr().err


def test_nothing_but_invalid_verdicts(workplace, capsys):
    assert run(*FILES, "--judge", "callable", "--judge_function", "win_rate_judges:invalid") == 1
    assert "invalid_verdicts 12" in capsys.readouterr().err
    assert len((workplace / "out" / "verdicts.jsonl").read_text().splitlines()) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "policy", *LONGER], "--baseline (or --answers_b) is missing"),
        ([*MODELS, "--answers_a", "a.jsonl", *LONGER], "--policy has no effect beside --answers_a"),
        ([*FILES, "--max_new_tokens", "8", *LONGER], "--max_new_tokens has no effect: all answers are read"),
        ([*FILES, "--chat_template", "no", *LONGER], "--chat_template has no effect"),
        ([*FILES, "--use_cpu", *LONGER], "--use_cpu has no effect: no model runs here"),
        ([*MODELS, "--temperature", "0.5", *LONGER], "temperature has no effect without do_sample"),
        ([*MODELS, "--batch_size", "0", *LONGER], "--batch_size 0"),
        ([*FILES, *LONGER, "--num_bootstrap", "0"], "--num_bootstrap 0"),
        (FILES, "--judge is missing"),
        ([*FILES, "--judge", "oracle"], "--judge oracle: choose one of reward_model, endpoint, callable"),
        ([*FILES, *LONGER, "--judge_model", "m"], "--judge_model has no effect on --judge callable"),
        ([*FILES, *LONGER, "--judge_timeout", "3"], "--judge_timeout has no effect on --judge callable: it's for endpoint"),
        ([*FILES, "--judge", "endpoint", "--judge_model", "m"], "--judge_base_url is missing"),
        ([*FILES, "--judge", "callable", "--judge_function", "win_rate_judges"], "expected module:function"),
        ([*FILES, "--judge", "callable", "--judge_function", "win_rate_judges:no"], "has no attribute 'no'"),
        ([*FILES, "--judge", "callable", "--judge_function", "json:__name__"], "can't be called"),
    ],
)  # fmt: skip
def test_mistakes(workplace, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("options", ["[1]", "{"])
def test_request_options_that_are_no_object(workplace, capsys, options):
    judge = ["--judge", "endpoint", "--judge_model", "m", "--judge_base_url", "http://localhost:1/v1"]
    assert run(*FILES, *judge, "--judge_request_options", options) == 2
    assert "--judge_request_options" in capsys.readouterr().err
