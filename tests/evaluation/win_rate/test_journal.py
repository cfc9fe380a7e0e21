from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.win_rate.journal import Journal, read_header


def open_journal(path, **changed):
    return Journal(path, "answers", {"a": 1, "b": {"c": [2]}, **changed}, lambda r: r["id"], {"by": "someone"})


def fill(path, records):
    with open_journal(path) as journal:
        for record in records:
            journal.append(record)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), min_size=1, max_size=4),
    cut=st.integers(min_value=0),
)
def test_a_file_cut_anywhere_is_gone_on_with(tmp_path_factory, texts, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    fill(path, records)
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    with open_journal(path) as journal:
        known = dict(journal.records)
        for record in records:
            if record["id"] not in known:
                journal.append(record)
        assert list(journal.records.values()) == records
    assert path.read_bytes() == whole
    # What was whole, with or without its line feed, is kept; the first line is the header.
    assert len(known) == max(0, sum(1 for end in ends(whole) if end <= cut) - 1)


def ends(content):
    """Where each line is complete: before its line feed."""
    return [i for i, byte in enumerate(content) if byte == 10]


def test_other_settings_kinds_and_broken_lines_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, [{"id": 0}, {"id": 1}])
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"other settings \(a was 1, is 5; b.c was \[2\], is None; b.d was None, is 3\)"
    ):
        open_journal(path, a=5, b={"d": 3})
    with pytest.raises(DataError, match="is no file of verdicts"):
        Journal(path, "verdicts", {}, lambda r: r["id"])
    path.write_bytes(before + b'{"id": 1}\n')
    with pytest.raises(DataError, match="line 4: 1 is there twice"):
        open_journal(path)
    path.write_bytes(before.replace(b'{"id": 0}', b'{"id": '))
    with pytest.raises(DataError, match="line 2: not a JSON object"):
        open_journal(path)
    path.write_bytes(before.replace(b'"version": 1', b'"version": 0'))
    with pytest.raises(DataError, match="another version"):
        open_journal(path)
    for foreign in (b"my notes", b"my notes\nmore", b'{"answer": 1}\n'):
        path.write_bytes(foreign)
        with pytest.raises(DataError):
            open_journal(path)
        assert path.read_bytes() == foreign


def test_text_is_readable_and_half_surrogates_survive(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, [{"id": 0, "text": "größer 日本"}, {"id": 1, "text": "\ud800"}])
    assert "größer 日本" in path.read_text()
    with open_journal(path) as journal:
        assert journal.records[1]["text"] == "\ud800"
    assert read_header(path, "answers")["by"] == "someone"
    assert read_header(path, "verdicts") is None
    assert json.loads(path.read_text().splitlines()[1]) == {"id": 0, "text": "größer 日本"}


def test_two_runs_dont_write_to_one_file(tmp_path):
    path = tmp_path / "j.jsonl"
    script = (
        "import sys, os\n"
        "from pluralpref.evaluation.win_rate.journal import Journal\n"
        "Journal(sys.argv[1], 'answers', {'a': 1, 'b': {'c': [2]}}, lambda r: r['id'], {'by': 'someone'}).append({'id': 7})\n"
        "os._exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with open_journal(path) as journal:
        journal.append({"id": 0})
        with pytest.raises(ConfigError, match="is being written by another run: wait"):
            open_journal(path)
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "is being written by another run" in other.stderr
    assert subprocess.run(command, check=False).returncode == 9  # ends without closing it
    with pytest.raises(DataError, match="is no file of verdicts"):
        Journal(path, "verdicts", {}, lambda r: r["id"])
    with open_journal(path) as journal:
        assert list(journal.records) == [0, 7]
