"""Answers of several policies, scored under each other."""

import json

import pytest
import torch

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.class_answers import class_answers
from pluralpref.evaluation.win_rate import Prompt, read_answers


@pytest.fixture(scope="module")
def models(tiny_llama):
    """Three policies and the reference that they began as, a little apart."""

    def changed(seed):
        model = tiny_llama(0)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    return [changed(1), changed(2), changed(3)], tiny_llama(0)


def loaders(models):
    policies, reference = models
    return [lambda model=model: model for model in policies], lambda: reference


def answered(models, tokenizer, prompts, folder, count=3, **options):
    policies, reference = loaders(models)
    return class_answers(policies[:count], reference, tokenizer, prompts, folder, progress=False, **options)


@torch.no_grad()
def log_prob(model, prompt, answer):
    """Of an answer, token by token."""
    logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(answer)))


@pytest.mark.parametrize("count", [2, 3])
def test_every_answer_is_scored_token_for_token(models, tiny_tokenizer, tmp_path, count):
    prompts = [Prompt(i, f"question {i}" * (1 + i % 3)) for i in range(5)]
    found = answered(models, tiny_tokenizer, prompts, tmp_path, count, max_new_tokens=6, batch_size=2)
    assert found.log_ratios.shape == (5, count, count)
    assert found.used == list(range(5))
    assert not found.skipped
    for p, prompt in enumerate(prompts):
        ids = tiny_tokenizer(prompt.prompt, add_special_tokens=False)["input_ids"]
        for j in range(count):
            answer = found.answers[j][p].token_ids
            against = log_prob(models[1], ids, answer)
            for i in range(count):
                expected = log_prob(models[0][i], ids, answer) - against
                assert float(found.log_ratios[p, i, j]) == pytest.approx(expected, abs=1e-4)


def test_expectations_are_under_the_policies(models, tiny_tokenizer, tmp_path):
    """Answers of one token, whose expected log-ratio is a sum over the vocabulary."""
    prompts = [Prompt(i, "q") for i in range(600)]
    found = answered(models, tiny_tokenizer, prompts, tmp_path, 2, max_new_tokens=1, batch_size=300)
    ids = torch.tensor([tiny_tokenizer("q", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logs = [model(ids).logits[0, -1].double().log_softmax(-1) for model in (*models[0], models[1])]
    for i in range(2):
        for j in range(2):
            exact = float((logs[j].exp() * (logs[i] - logs[-1])).sum())
            values = found.log_ratios[:, i, j]
            assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / len(values) ** 0.5
    # The spread over prompts is that of one token's log-ratio, not of some constant.
    assert float(found.log_ratios.std(0).min()) > 0.01


def test_a_run_goes_on_and_the_rest_is_the_same(models, tiny_tokenizer, tmp_path):
    prompts = [Prompt(i, f"question {i}") for i in range(6)]
    whole = answered(models, tiny_tokenizer, prompts, tmp_path / "whole", 2, max_new_tokens=4)
    answered(models, tiny_tokenizer, prompts, tmp_path / "part", 2, max_new_tokens=4)
    file = tmp_path / "part" / "answers-class-2.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]) + b'{"prom')
    again = answered(models, tiny_tokenizer, prompts, tmp_path / "part", 2, max_new_tokens=4)
    assert [[a.token_ids for a in own] for own in again.answers] == [
        [a.token_ids for a in own] for own in whole.answers
    ]
    torch.testing.assert_close(again.log_ratios, whole.log_ratios)
    with pytest.raises(ConfigError, match="made with other settings"):
        answered(models, tiny_tokenizer, prompts, tmp_path / "part", 2, max_new_tokens=5)


def test_what_is_not_answered_is_counted(models, tiny_tokenizer, tmp_path):
    prompts = [Prompt(0, "short"), Prompt(4, "a much longer prompt"), Prompt(7, "brief")]
    found = answered(models, tiny_tokenizer, prompts, tmp_path, 2, max_new_tokens=3, max_prompt_length=8)
    assert found.used == [0, 2]
    assert found.skipped == {"prompt_too_long": 1}
    assert found.log_ratios.shape == (2, 2, 2)
    with pytest.raises(DataError, match="none of the 3 prompts"):
        answered(models, tiny_tokenizer, prompts, tmp_path / "none", 2, max_new_tokens=3, max_prompt_length=2)
    with pytest.raises(ConfigError, match="no policy"):
        answered(models, tiny_tokenizer, prompts, tmp_path / "none", 0)


def test_a_mixture_answers_as_often_as_it_weighs(models, tiny_tokenizer, tmp_path):
    prompts = [Prompt(i, "q") for i in range(400)]
    found = answered(models, tiny_tokenizer, prompts, tmp_path, 3, max_new_tokens=1, batch_size=400)
    weights = torch.tensor([0.25, 0.0, 0.75])
    drawn = found.drawn(weights, seed=1)
    assert 1 not in drawn
    assert abs(drawn.count(0) / 400 - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert drawn == found.drawn(weights, seed=1)
    assert drawn != found.drawn(weights, seed=2)
    path = tmp_path / "mixture.jsonl"
    found.write_mixture(path, torch.tensor([1.0, 0.0, 0.0]))
    found.write_mixture(path, weights, seed=1)
    read = read_answers(path, prompts)
    assert [a.answer for a in read] == [found.answers[k][i].answer for i, k in enumerate(drawn)]
    assert [json.loads(line)["class"] for line in path.read_text().splitlines()[1:]] == [k + 1 for k in drawn]
