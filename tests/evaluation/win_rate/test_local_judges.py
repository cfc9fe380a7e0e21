from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pluralpref.errors import ConfigError, InferenceError
from pluralpref.evaluation.win_rate import CallableJudge, Comparison, RewardModelJudge, collect_verdicts, make_pairs
from pluralpref.evaluation.win_rate.answers import Answer
from pluralpref.evaluation.win_rate.prompts import Prompt


@pytest.fixture
def reward_model():
    def build(num_labels=1, **more):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=64, num_labels=num_labels, pad_token_id=0, eos_token_id=1, **more,
            )  # fmt: skip
            return LlamaForSequenceClassification(config).eval()

    return build


def test_rewards_are_those_of_the_model_and_each_answer_is_scored_once(
    reward_model, tiny_tokenizer, pairs_of, tmp_path
):
    model = reward_model()
    rows, own = [], model.forward

    def counted(**arguments):
        rows.append(len(arguments["input_ids"]))
        return own(**arguments)

    model.forward = counted
    answers = [("good", "bad"), ("a much longer answer", ""), ("same", "same")]
    pairs = pairs_of(answers)
    verdicts = collect_verdicts(
        pairs, RewardModelJudge(model, tiny_tokenizer, batch_size=4), tmp_path / "v.jsonl", progress=False
    )
    assert sum(rows) == 5  # equal answers are one
    for pair, there, back in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
        rewards = []
        for answer in (pair.policy.answer, pair.baseline.answer):
            ids = tiny_tokenizer(pair.prompt.prompt + answer, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                rewards.append(float(own(input_ids=ids).logits))
        assert list(there.raw.values()) == pytest.approx(rewards, abs=1e-6)
        assert list(back.raw.values()) == pytest.approx(rewards[::-1], abs=1e-6)
        expected = "tie" if rewards[0] == rewards[1] else "policy" if rewards[0] > rewards[1] else "baseline"
        assert there.winner == back.winner == expected
    assert verdicts[4].winner == "tie"
    gap = abs(verdicts[0].raw["score_first"] - verdicts[0].raw["score_second"])
    for threshold, is_tie in ((gap * 1.01, True), (gap * 0.99, False)):
        tied = RewardModelJudge(model, tiny_tokenizer, tie_threshold=threshold).judge(
            [pairs[0].comparison("policy_first")]
        )
        assert (next(iter(tied)).verdict == "TIE") is is_tie


def test_rewards_that_cannot_be_had_are_invalid(reward_model, tiny_tokenizer):
    judge = RewardModelJudge(reward_model(), tiny_tokenizer)
    (verdict,) = judge.judge([Comparison(0, "policy_first", "Q", "a" * 64, "b")])
    assert verdict.verdict == "INVALID"
    assert verdict.raw["score_first"] == "65 tokens are more than 64"
    assert isinstance(verdict.raw["score_second"], float)
    model = reward_model()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    (verdict,) = RewardModelJudge(model, tiny_tokenizer).judge([Comparison(0, "policy_first", "Q", "a", "b")])
    assert (verdict.verdict, verdict.raw["score_first"]) == ("INVALID", "the reward is nan")


def test_reward_models_that_are_refused(reward_model, tiny_tokenizer):
    with pytest.raises(ConfigError, match="has 2 outputs"):
        RewardModelJudge(reward_model(num_labels=2), tiny_tokenizer)
    for options, message in (
        ({"tie_threshold": -1.0}, "tie_threshold=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_length": 65}, "room for 64 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            RewardModelJudge(reward_model(), tiny_tokenizer, **options)
    settings = RewardModelJudge(reward_model(), tiny_tokenizer).settings
    assert settings == RewardModelJudge(reward_model(), tiny_tokenizer).settings
    other = reward_model()
    with torch.no_grad():
        other.score.weight.add_(1)
    assert RewardModelJudge(other, tiny_tokenizer).settings != settings
    assert json.loads(json.dumps(settings)) == settings


def test_conversations_go_through_the_reward_models_template(reward_model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(
        tiny_tokenizer, "chat_template", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    judge = RewardModelJudge(reward_model(), tiny_tokenizer)
    for prompt in ("Q", [{"role": "user", "content": "Q"}]):
        ids = judge._encode(Comparison(0, "policy_first", prompt, "a", "b"), "a")
        assert tiny_tokenizer.decode(ids) == "<user>Q<assistant>a"
    transcript = Comparison(0, "policy_first", "\n\nHuman: Q\n\nAssistant:", " a", "b")
    assert tiny_tokenizer.decode(judge._encode(transcript, " a")) == "<user>Q<assistant>a"
    plain = RewardModelJudge(reward_model(), tiny_tokenizer, chat_template="no")
    assert tiny_tokenizer.decode(plain._encode(transcript, " a")) == "\n\nHuman: Q\n\nAssistant: a"


def test_functions_and_what_they_may_not_say(pairs_of, tmp_path):
    seen = []

    def judge(prompt, first, second):
        seen.append((prompt, first, second))
        return {"x": "A", "y": "B", "z": "TIE", "lower": "a", "number": 1, "none": None}[first]

    pairs = pairs_of([("x", "y"), ("z", "lower"), ("number", "none")])
    verdicts = collect_verdicts(pairs, CallableJudge(judge), tmp_path / "v.jsonl", progress=False)
    assert [(v.verdict, v.raw) for v in verdicts] == [
        ("A", "A"), ("B", "B"), ("TIE", "TIE"), ("INVALID", "'a'"), ("INVALID", "1"), ("INVALID", "None"),
    ]  # fmt: skip
    assert seen[:2] == [("Question 0?", "x", "y"), ("Question 0?", "y", "x")]


def test_a_function_that_fails_loses_no_verdict(pairs_of, tmp_path):
    broken = [True]

    def judge(prompt, first, second):
        if broken and prompt == "Question 1?":
            raise ZeroDivisionError("oh")
        return "A"

    path = tmp_path / "v.jsonl"
    pairs = pairs_of([("x", "y")] * 3)
    with pytest.raises(
        InferenceError, match=r"on prompt_id 1 \(policy_first\): ZeroDivisionError: oh\. 2 of 6 verdicts are in"
    ):
        collect_verdicts(pairs, CallableJudge(judge, "j"), path, progress=False)
    before = path.read_bytes()
    broken.clear()
    assert len(collect_verdicts(pairs, CallableJudge(judge, "j"), path, progress=False)) == 6
    assert path.read_bytes().startswith(before)
    with pytest.raises(ConfigError, match=r"judge\.name was 'j', is 'k'"):
        collect_verdicts(pairs, CallableJudge(judge, "k"), path, progress=False)


def test_prompts_that_were_too_long_are_not_judged(tmp_path):
    prompts = [Prompt(0, "a"), Prompt(1, "b")]
    ours, theirs = [Answer(0, "x"), Answer(1, None, "prompt_too_long")], [Answer(0, "y"), Answer(1, "z")]
    pairs = make_pairs(prompts, ours, theirs)
    verdicts = collect_verdicts(
        pairs, CallableJudge(lambda p, a, b: "A", "first"), tmp_path / "v.jsonl", progress=False
    )
    assert [v.prompt_id for v in verdicts] == [0, 0]
