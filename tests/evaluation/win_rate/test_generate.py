from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.evaluation.win_rate import GenerationOptions, Prompt, generate_answers, read_answers
from pluralpref.evaluation.win_rate.sampling import SeededSampling, row_uniforms

PROMPTS = [Prompt(i, "Why? " * (1 + 3 * i % 7) + str(i)) for i in range(7)]


def generate(model, tokenizer, path, options=None, prompts=PROMPTS, **more):
    return generate_answers(
        model, tokenizer, prompts, path, options or GenerationOptions(max_new_tokens=12), progress=False, **more
    )


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize(
    "sampling", [{}, {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 3}]
)
def test_answers_do_not_depend_on_their_batch(request, tmp_path, tiny_tokenizer, kind, sampling):
    model = request.getfixturevalue(kind)(0, vocab_size=258)
    options = GenerationOptions(max_new_tokens=12, **sampling)
    runs = [generate(model, tiny_tokenizer, tmp_path / f"{n}.jsonl", options, batch_size=n) for n in (1, 3, 7)]
    assert runs[0] == runs[1] == runs[2]
    assert len({a.answer for a in runs[0]}) > 1
    # Without some of the others, and in another order.
    few = generate(model, tiny_tokenizer, tmp_path / "few.jsonl", options, [PROMPTS[5], PROMPTS[2]], batch_size=2)
    assert few == [runs[0][5], runs[0][2]]


def test_greedy_is_that_of_transformers(tmp_path, tiny_llama, tiny_tokenizer):
    model = tiny_llama(0, vocab_size=258)
    found = generate(model, tiny_tokenizer, tmp_path / "a.jsonl", batch_size=4)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = tiny_tokenizer(prompt.prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ]
        assert answer.answer == tiny_tokenizer.decode(expected, skip_special_tokens=True)
        assert (answer.finish, answer.tokens) == (("stop", len(expected) - 1) if expected[-1] == 1 else ("length", 12))


def test_samples_follow_the_distribution_and_the_seed(tmp_path, tiny_llama, tiny_tokenizer):
    model = tiny_llama(0, vocab_size=258)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    prompts = [Prompt(i, "same") for i in range(400)]
    one = GenerationOptions(max_new_tokens=1, do_sample=True, top_k=3)
    found = generate(model, tiny_tokenizer, tmp_path / "a.jsonl", one, prompts, batch_size=400)
    ids = tiny_tokenizer("same", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        top = model(ids).logits[0, -1].topk(3)
    p = dict(zip((tiny_tokenizer.decode(i) for i in top.indices), top.values.softmax(-1).tolist(), strict=True))
    assert {a.answer for a in found} <= set(p)
    for token, expected in p.items():
        share = np.mean([a.answer == token for a in found])
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)
    text = [a.answer for a in found]
    for name, more in (
        ("seed", {"options": GenerationOptions(1, do_sample=True, top_k=3, seed=1)}),
        ("stream", {"stream": 1}),
    ):
        arguments = {"options": one, "prompts": prompts, "batch_size": 400, **more}
        assert [a.answer for a in generate(model, tiny_tokenizer, tmp_path / f"{name}.jsonl", **arguments)] != text


def test_the_token_is_the_quantile_of_the_row():
    scores = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]).log()
    sampler = SeededSampling(torch.tensor([[0.19], [0.69], [0.71]], dtype=torch.float64), width=4)
    chosen = sampler(torch.zeros(3, 4, dtype=torch.long), scores)
    assert chosen.argmax(-1).tolist() == [0, 1, 2]
    assert torch.isfinite(chosen).sum() == 3
    assert torch.equal(row_uniforms(0, 1, [5, 8], 3)[1], row_uniforms(0, 1, [8], 9)[0, :3])
    with pytest.raises(InferenceError, match="logits aren't finite"):
        sampler(torch.zeros(3, 4, dtype=torch.long), scores * float("nan"))


def test_killed_runs_go_on_without_doing_anything_twice(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    model = tiny_llama(0, vocab_size=258)
    whole = generate(model, tiny_tokenizer, tmp_path / "whole.jsonl", batch_size=2)
    path = tmp_path / "a.jsonl"
    own, calls = model.generate, []

    def counted(**arguments):
        calls.append(len(arguments["input_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(**arguments)

    monkeypatch.setattr(model, "generate", counted)
    before = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        generate(model, tiny_tokenizer, path, batch_size=2)
    assert model.generation_config is before
    content = path.read_bytes()
    assert content.count(b"\n") == 5  # a header and two batches
    path.write_bytes(content[:-9])  # the power went as the last line was written
    assert generate(model, tiny_tokenizer, path, batch_size=2) == whole
    assert path.read_bytes().startswith(content[: content[:-9].rfind(b"\n") + 1])
    assert sum(calls[3:]) == 4
    again = path.read_bytes()
    assert generate(model, tiny_tokenizer, path, batch_size=2) == whole
    assert sum(calls[3:]) == 4
    assert path.read_bytes() == again
    assert read_answers(path, PROMPTS) == whole
    with pytest.raises(DataError, match="other prompts"):
        read_answers(path, PROMPTS[:3])
    path.write_bytes(content)
    with pytest.raises(DataError, match="3 of 7 prompts have no answer"):
        read_answers(path, PROMPTS)


def test_other_settings_are_refused(tmp_path, tiny_llama, tiny_tokenizer):
    path = tmp_path / "a.jsonl"
    model = tiny_llama(0, vocab_size=258)
    generate(model, tiny_tokenizer, path, name="my/model")
    assert json.loads(path.read_text().splitlines()[0])["model"] == "my/model"
    for arguments, message in (
        ({"model": tiny_llama(1, vocab_size=258)}, "weights_tokens_versions was"),
        ({"options": GenerationOptions(max_new_tokens=13)}, "generation.max_new_tokens was 12, is 13"),
        ({"prompts": PROMPTS[:5]}, "prompts was"),
        ({"stream": 1}, "stream was 0, is 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate(**{"model": model, "tokenizer": tiny_tokenizer, "path": path, **arguments})
    generate(model, tiny_tokenizer, path, GenerationOptions(max_new_tokens=12, seed=5))  # greedy has no seed


def test_long_prompts_are_counted_and_end_tokens_are_the_models_and_the_tokenizers(
    tmp_path, tiny_llama, tiny_tokenizer
):
    model = tiny_llama(0, vocab_size=258, max_position_embeddings=24)
    prompts = [Prompt(0, "x" * 16), Prompt(1, "x" * 17)]
    options = GenerationOptions(max_new_tokens=8)
    found = generate(model, tiny_tokenizer, tmp_path / "a.jsonl", options, prompts)
    assert (found[1].answer, found[1].finish, found[1].tokens) == (None, "prompt_too_long", None)
    assert found[0].answer is not None
    first = tiny_tokenizer(found[0].answer)["input_ids"][0]
    # The model's own settings are left aside, but for its end tokens.
    model.generation_config = GenerationConfig(
        eos_token_id=[first, 5], repetition_penalty=9.0, do_sample=True, temperature=7.0
    )
    (ended,) = generate(model, tiny_tokenizer, tmp_path / "b.jsonl", options, prompts[:1])
    assert (ended.answer, ended.finish, ended.tokens, ended.is_empty) == ("", "stop", 0, True)
    with pytest.raises(ConfigError, match="more than the 24 tokens"):
        generate(model, tiny_tokenizer, tmp_path / "c.jsonl", GenerationOptions(max_new_tokens=24), prompts)
    with pytest.raises(ConfigError, match="batch_size=0"):
        generate(model, tiny_tokenizer, tmp_path / "c.jsonl", options, prompts, batch_size=0)


def test_damaged_weights_are_an_error(tmp_path, tiny_llama, tiny_tokenizer):
    model = tiny_llama(0, vocab_size=258)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InferenceError, match="logits aren't finite"):
        generate(model, tiny_tokenizer, tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1.0}, "temperature has no effect without do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 is out of range"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5"),
        ({"do_sample": True, "top_k": 0}, "top_k=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"chat_template": "perhaps"}, "chat_template='perhaps'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**options)
