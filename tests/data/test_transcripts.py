"""Conversations written as text."""

import pytest
from datasets import Dataset

from pluralpref.data import as_transcripts
from pluralpref.errors import ConfigError, DataError


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def row(**changes):
    base = {
        "prompt": said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")),
        "chosen": said(("assistant", "Because.")),
        "rejected": said(("assistant", "No.")),
        "annotator": "p1",
    }
    return {**base, **changes}


def test_by_hand():
    (found,) = as_transcripts(Dataset.from_list([row()]))
    assert found == {
        "prompt": "Be brief.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:",
        "chosen": " Because.",
        "rejected": " No.",
        "annotator": "p1",
    }


def test_what_is_refused():
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ConfigError, match="text already"):
        as_transcripts(text)
    with pytest.raises(DataError, match="no place for the role 'tool'"):
        as_transcripts(Dataset.from_list([row(prompt=said(("tool", "x")))]))
    with pytest.raises(DataError, match="'chosen' isn't one message"):
        as_transcripts(Dataset.from_list([row(chosen=said(("assistant", "a"), ("user", "b")))]))
    with pytest.raises(DataError, match="no column 'prompt'"):
        as_transcripts(text.remove_columns("prompt"))
