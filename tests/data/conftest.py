"""Real data for the tests that want it."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def hh_file() -> Path:
    """HH-RLHF's harmless-base test split, named by PLURALPREF_HH_FILE or beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "data" / "hh_harmless_base_test.jsonl.gz"
    path = Path(os.environ.get("PLURALPREF_HH_FILE", beside))
    if not path.is_file():
        pytest.skip("HH-RLHF harmless-base test split not found: set PLURALPREF_HH_FILE to the .jsonl.gz file")
    return path
