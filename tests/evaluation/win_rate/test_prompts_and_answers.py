from __future__ import annotations

import json

import pytest
from datasets import Dataset

from pluralpref.data import tokenize_preferences
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.win_rate import Answer, Prompt, load_prompts, read_answers
from pluralpref.evaluation.win_rate.encode import as_chat, encode_prompt
from pluralpref.evaluation.win_rate.prompts import cluster_of

TRANSCRIPT = "\n\nHuman: Hello\n\nAssistant:"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_from_columns_pairs_and_transcripts(tmp_path):
    source = write(
        tmp_path / "p.jsonl", [{"prompt": "one", "x": 1}, {"prompt": " "}, {"prompt": "one"}, {"prompt": None}]
    )
    prompts, report = load_prompts(source)
    assert prompts == [Prompt(0, "one"), Prompt(2, "one")]
    assert (report.total, dict(report.skipped), report.examples) == (4, {"empty_prompt": 2}, {"empty_prompt": [1, 3]})
    assert cluster_of(prompts) == {0: 0, 2: 0}
    assert load_prompts(source, split="train[:1]")[0] == [Prompt(0, "one")]
    pairs = Dataset.from_list(
        [
            {"chosen": f"{TRANSCRIPT} Hi.", "rejected": f"{TRANSCRIPT} Go."},
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": ""},
        ]
    )
    assert load_prompts(pairs)[0] == [Prompt(0, TRANSCRIPT)]
    assert load_prompts(pairs)[1].skipped == {"empty_answer": 1}
    assert load_prompts(pairs, hh_format="chat")[0] == [Prompt(0, [{"role": "user", "content": "Hello"}])]
    only = Dataset.from_list([{"prompt": TRANSCRIPT}, {"prompt": "\n\nAssistant: a"}])
    chat, _ = load_prompts(only, hh_format="chat")
    assert chat == [Prompt(0, [{"role": "user", "content": "Hello"}]), Prompt(1, "\n\nAssistant: a")]


def test_prompts_that_are_refused(tmp_path):
    for rows, error, message in (
        ([{"question": "one"}], DataError, "no column 'prompt': there are question"),
        ([{"prompt": 3}], DataError, "row 0: column 'prompt' is a int"),
        ([{"prompt": ""}], DataError, "no row can be used"),
    ):
        with pytest.raises(error, match=message):
            load_prompts(write(tmp_path / "p.jsonl", rows))
    with pytest.raises(ConfigError, match="hh_format='chat' has no effect"):
        load_prompts(Dataset.from_list([{"prompt": "one"}]), hh_format="chat")
    with pytest.raises(ConfigError, match="choose 'text' or 'chat'"):
        load_prompts(Dataset.from_list([{"prompt": "one"}]), hh_format="html")


def test_ids_are_those_of_training(tiny_tokenizer):
    prompts = ["Question?", "<eos>", "spaces  "]
    rows = Dataset.from_list([{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts])
    expected = tokenize_preferences(rows, tiny_tokenizer)[0]["prompt_ids"]
    assert [encode_prompt(Prompt(i, p), tiny_tokenizer) for i, p in enumerate(prompts)] == list(expected)
    messages = [{"role": "user", "content": "Question?"}]
    with pytest.raises(
        ConfigError, match="row 7: the prompt is a conversation, but the tokenizer has no chat template"
    ):
        encode_prompt(Prompt(7, messages), tiny_tokenizer)
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        as_chat(Prompt(0, "x"), tiny_tokenizer, "yes")


def test_chat_templates(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    messages = [{"role": "user", "content": "Question?"}]
    rows = Dataset.from_list(
        [
            {
                "prompt": messages,
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            }
        ]
    )
    expected = tokenize_preferences(rows, tiny_tokenizer)[0]["prompt_ids"][0]
    assert tiny_tokenizer.decode(expected) == "<user>Question?<assistant>"
    assert encode_prompt(Prompt(0, messages), tiny_tokenizer) == expected
    assert encode_prompt(Prompt(0, "Question?"), tiny_tokenizer) == expected
    assert tiny_tokenizer.decode(encode_prompt(Prompt(0, "Question?"), tiny_tokenizer, "no")) == "Question?"
    assert tiny_tokenizer.decode(encode_prompt(Prompt(0, TRANSCRIPT), tiny_tokenizer, "no")) == TRANSCRIPT
    with pytest.raises(ConfigError, match="row 0: an HH transcript would be rendered as one turn"):
        encode_prompt(Prompt(0, TRANSCRIPT), tiny_tokenizer)
    with pytest.raises(ConfigError, match="chat_template='no'"):
        encode_prompt(Prompt(0, messages), tiny_tokenizer, "no")


def test_answers_made_elsewhere(tmp_path):
    prompts = [Prompt(0, "one"), Prompt(2, "two")]
    path = tmp_path / "a.jsonl"
    expected = [Answer(0, "x"), Answer(2, "z")]
    write(path, [{"answer": "x"}, {"answer": "y"}, {"answer": "z"}])  # row 1 had no prompt
    assert read_answers(path, prompts) == expected
    write(path, [{"prompt_id": 2, "answer": "z", "prompt": "two"}, {"prompt_id": 0, "answer": "x", "prompt": "one"}])
    assert read_answers(path, prompts) == expected
    (tmp_path / "a.csv").write_text('answer\nNA\n42\n""\n')
    assert read_answers(tmp_path / "a.csv", [Prompt(0, "one"), Prompt(1, "two"), Prompt(2, "x")]) == [
        Answer(0, "NA"), Answer(1, "42"), Answer(2, ""),
    ]  # fmt: skip
    for rows, message in (
        ([{"answer": "x"}, {"answer": "y"}], "2 rows, but the prompts reach to row 2"),
        ([{"prompt_id": 0, "answer": "x"}], r"1 of 2 prompts have no answer \(the first is prompt_id 2\)"),
        ([{"prompt_id": 0, "answer": "x"}, {"prompt_id": 0, "answer": "y"}], "prompt_id 0 is answered twice"),
        ([{"prompt_id": 9, "answer": "x"}], "prompt_id 9 is none of the prompts"),
        ([{"prompt_id": 0, "answer": "x", "prompt": "two"}], "row 0: column 'prompt' is not the prompt of row 0"),
        ([{"prompt_id": "0", "answer": "x"}], "row 0: column 'prompt_id' is '0'"),
        ([{"answer": "x"}, {"answer": None}, {"answer": "z"}], "row 1: column 'answer' is None"),
        ([{"text": "x"}], "no column 'answer': there are text"),
    ):
        write(path, rows)
        with pytest.raises(DataError, match=message):
            read_answers(path, prompts)
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none.jsonl", prompts)


def test_answers_without_numbers_stand_beside_all_rows_of_the_prompts(tmp_path):
    """A part of the prompts with a file of answers to all of them: which belongs to which can't be known."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"answer": f"answer {i}"}) + "\n" for i in range(4)))
    prompts = [Prompt(i, f"q{i}") for i in range(2)]
    with pytest.raises(DataError, match="4 rows, but 2 rows of prompts were read"):
        read_answers(path, prompts, 2)
    assert [a.answer for a in read_answers(path, prompts, 4)] == ["answer 0", "answer 1"]
