"""The claims' short form, killed and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_short_form_goes_on_where_it_was_killed(tmp_path):
    output = tmp_path / "short.jsonl"
    run("run.py", str(output), "--short", "--processes", "1")
    lines = output.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 9
    assert {row["method"] for row in rows} == {"DPO, β = 0.3", "DPO, β learned", "MixDPO, log-normal"}
    for row in rows:
        low, high = row["cv_panel"][1:]
        assert 0 <= low <= row["cv_panel"][0] <= high
        assert 0 < row["win_rate"]["all"] < 1
        assert row["log_loss_scaled"] <= row["log_loss"] + 1e-9 or row["method"].startswith("MixDPO")
        assert row["margin"] != row["margin_macro"]  # people have five choices or twenty
        assert (row["explained"] is None) == (row["method"] == "DPO, β = 0.3")
    # A kill in the middle of a line: the line is made again, the others stay.
    output.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    shown = run("run.py", str(output), "--short", "--processes", "1")
    assert shown.count("done before") == 2
    again = output.read_text().splitlines()
    assert again[:8] == lines[:8]
    last = json.loads(again[-1])
    assert {k: v for k, v in last.items() if k != "seconds"} == {k: v for k, v in rows[-1].items() if k != "seconds"}
    sections = run("report.py", str(output)).split("### ")[1:]
    of_populations = [text for text in sections if "\n1 population." in text]
    assert len(of_populations) == 3
    for text in of_populations:
        assert "\n| MixDPO, log-normal |" in text
