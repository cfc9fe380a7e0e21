"""A large file is read in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import re, sys, threading, time
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
datasets.disable_progress_bars()
from pluralpref.data import disjoint_split, read_dataset

def anonymous():  # MiB that are the process's own: not those of files that are mapped
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before, peak, done = anonymous(), [0.0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
pairs, report = read_dataset("psoups", sys.argv[1])
train, held_out = disjoint_split(pairs, fraction=0.5)
done.set()
watcher.join()
print(report.kept, len(train) + len(held_out), peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    rows, size = 60_000, 2000
    with (tmp_path / "psoups.jsonl").open("w") as file:
        for row in range(rows):
            fields = {name: f"{name} {row} ".ljust(size, "x") for name in ("prompt", "chosen", "rejected")}
            file.write(json.dumps({**fields, "uid": row % 6}) + "\n")
    arguments = [str(tmp_path / "psoups.jsonl"), str(tmp_path / "cache")]
    run = subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, check=True)
    kept, split, grown = run.stdout.split()
    assert int(kept) == int(split) == rows
    assert float(grown) < 200  # the texts alone are 343 MiB
