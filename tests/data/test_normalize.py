"""One row of any accepted form as prompt, chosen and rejected."""

import pytest
from datasets import Dataset

from pluralpref.data import tokenize_preferences
from pluralpref.data.normalize import normalize_row
from pluralpref.errors import DataError


def _m(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _row(chosen, rejected, prompt=None):
    row = {"chosen": chosen, "rejected": rejected}
    return row if prompt is None else {**row, "prompt": prompt}


def _fields(row, hh_format="text"):
    fields, reason = normalize_row(row, 0, hh_format)
    assert reason is None
    return fields["prompt"], fields["chosen"], fields["rejected"]


def test_explicit_prompt_standard():
    assert _fields(_row(" yes", " no", "Is it?")) == ("Is it?", " yes", " no")


def test_explicit_prompt_conversational():
    prompt, chosen, rejected = _m("q"), _m("yes", first="assistant"), _m("no", first="assistant")
    assert _fields(_row(chosen, rejected, prompt)) == (prompt, chosen, rejected)


def test_message_prompt_with_text_answers():
    prompt = _m("q")
    assert _fields(_row("yes", "no", prompt)) == (prompt, _m("yes", first="assistant"), _m("no", first="assistant"))


def test_implicit_prompt_standard():
    assert _fields(_row("The sky is blue.", "The sky is green.")) == ("The sky is ", "blue.", "green.")


def test_implicit_prompt_conversational():
    fields = _fields(_row(_m("q", "a", "q2", "yes"), _m("q", "a", "q2", "no")))
    assert fields == (_m("q", "a", "q2"), _m("yes", first="assistant"), _m("no", first="assistant"))


def test_prompt_repeated_in_both_answers():
    # UltraFeedback: the prompt as text, and again as first message of both answers.
    fields = _fields(_row(_m("q", "yes"), _m("q", "no"), "q"))
    assert fields == (_m("q"), _m("yes", first="assistant"), _m("no", first="assistant"))


def test_nothing_shared_leaves_the_prompt_empty():
    assert _fields(_row("Paris ", "London")) == ("", "Paris ", "London")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("I like cats", "I like cats and dogs", ("I like", " cats", " cats and dogs")),
        ("I like cats and dogs", "I like cats", ("I like", " cats and dogs", " cats")),
        ("Yes", "Yes, of course", ("", "Yes", "Yes, of course")),
        ("Yes ", "Yes  no", ("", "Yes ", "Yes  no")),
    ],
)
def test_one_answer_starts_the_other(chosen, rejected, expected):
    fields = _fields(_row(chosen, rejected))
    assert fields == expected
    assert fields[0] + fields[1] == chosen
    assert fields[0] + fields[2] == rejected


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Is it?\n\nAssistant:"


def test_hh_text():
    assert _fields(_row(HH + " Yes it is", HH + " Yes it was")) == (HH, " Yes it is", " Yes it was")


def test_hh_chat():
    prompt, chosen, rejected = _fields(_row(HH + " Yes it is", HH + " Yes it was"), "chat")
    assert prompt == _m("Hi", "Hello", "Is it?")
    assert (chosen, rejected) == (_m("Yes it is", first="assistant"), _m("Yes it was", first="assistant"))


def test_hh_differing_histories():
    chosen = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: x\n\nAssistant: B"
    rejected = "\n\nHuman: Hi\n\nAssistant: C\n\nHuman: y\n\nAssistant: D"
    start = "\n\nHuman: Hi\n\nAssistant:"
    # As text, everything after the last shared turn is the answer; a chat can't hold that.
    assert _fields(_row(chosen, rejected)) == (start, chosen[len(start) :], rejected[len(start) :])
    assert normalize_row(_row(chosen, rejected), 0, "chat")[1] == "transcript"


def test_hh_without_shared_turn():
    row = _row("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Bye\n\nAssistant: B")
    assert normalize_row(row, 0, "text")[1] == "transcript"


@pytest.mark.parametrize("hh_format", ["text", "chat"])
def test_hh_ties_and_empty_answers(hh_format):
    assert normalize_row(_row(HH + " Yes", HH + " Yes"), 0, hh_format)[1] == "tie"
    assert normalize_row(_row(HH + " Yes", HH), 0, hh_format)[1] == "empty_answer"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "reason"),
    [
        (None, "b", "q", "empty_answer"),
        ("a", None, "q", "empty_answer"),
        ("", "b", "q", "empty_answer"),
        ([], _m("b", first="assistant"), "q", "empty_answer"),
        (_m("", first="assistant"), _m("b", first="assistant"), "q", "empty_answer"),
        ("same", "same", "q", "tie"),
        ("same", "same", None, "tie"),
        (_m("q", "a"), _m("q", "a"), None, "tie"),
    ],
)
def test_rows_that_are_skipped(chosen, rejected, prompt, reason):
    assert normalize_row(_row(chosen, rejected, prompt), 0, "text")[1] == reason


def test_skipped_rows_are_counted(tiny_tokenizer):
    dataset = Dataset.from_dict(
        {
            "prompt": ["q"] * 6,
            "chosen": ["a", None, "a", "same", "", "same"],
            "rejected": ["b", "b", None, "same", "b", "same"],
        }
    )
    kept, report = tokenize_preferences(dataset, tiny_tokenizer)
    assert report.to_dict() == {
        "total": 6,
        "kept": 1,
        "skipped": {"empty_answer": 3, "tie": 2},
        "examples": {"empty_answer": [1, 2, 4], "tie": [3, 5]},
        "cut_prompts": 0,
    }
    assert kept["row"][:] == [0]
    assert report.as_metrics() == {"skipped/empty_answer": 3.0, "skipped/tie": 2.0}
    assert "1 of 6 rows used" in report.summary()


def test_mixed_kinds_are_refused():
    with pytest.raises(DataError, match="row 7: chosen is text but rejected is a list"):
        normalize_row(_row("a", _m("b", first="assistant"), "q"), 7, "text")


@pytest.mark.parametrize("bad", [3, {"text": "a"}, [{"role": "user"}], ["a", "b"]])
def test_other_kinds_are_refused(bad):
    with pytest.raises(DataError, match="row 2: column 'rejected' is"):
        normalize_row(_row("a", bad, "q"), 2, "text")


def _messages(*pairs):
    return [{"role": role, "content": text} for role, text in pairs]


def test_prompt_repeated_after_a_system_message():
    lead = (("system", "Be brief."), ("user", "q"))
    rows = [_messages(*lead, ("assistant", text)) for text in ("yes", "no")]
    expected = _messages(*lead), _m("yes", first="assistant"), _m("no", first="assistant")
    assert _fields(_row(*rows, "q")) == expected
    assert _fields(_row(*rows, _messages(*lead))) == expected


def test_prompt_column_that_names_an_earlier_turn():
    assert _fields(_row(_m("q", "a", "q2", "yes"), _m("q", "a", "q2", "no"), "q")) == (
        _m("q", "a", "q2"),
        _m("yes", first="assistant"),
        _m("no", first="assistant"),
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (_m("q", "a"), _m("q", "b"), "another question"),  # the prompt column asks something else
        (_m("q", "a"), _m("q", "b"), _m("another question")),
        (_m("q", "a", "x", "c"), _m("q", "a", "y", "c"), None),  # the users differ
        (_m("q", "a"), _m("q", "a", "y", "c"), None),  # one conversation goes on
        (_m("q", "a"), _m("r", "b"), None),
    ],
)
def test_a_person_is_never_scored(chosen, rejected, prompt):
    assert normalize_row(_row(chosen, rejected, prompt), 0, "text")[1] == "different_prompts"


def test_blank_answers_are_empty():
    assert normalize_row(_row(" \n", "b", "q"), 0, "text")[1] == "empty_answer"
    assert (
        normalize_row(_row(_m(" ", first="assistant"), _m("b", first="assistant"), "q"), 0, "text")[1] == "empty_answer"
    )
    assert normalize_row(_row(HH + " ", HH + " Yes"), 0, "text")[1] == "empty_answer"
