"""Fixtures of the public data sets' tests. All rows are invented; their columns are those of the published data."""

import json

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the data sets' cache out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_lines():
    """Write rows as JSON Lines."""

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def brief():
    """Each pair as (last thing asked, chosen, rejected, weight), answers as text."""

    def content(value):
        return value if isinstance(value, str) else value[-1]["content"]

    def rows(dataset):
        return [(content(r["prompt"]), content(r["chosen"]), content(r["rejected"]), r["weight"]) for r in dataset]

    return rows
