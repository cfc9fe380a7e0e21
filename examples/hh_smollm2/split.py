"""Split a file of HH-RLHF transcripts into pairs to train on and pairs to hold out.

    python split.py harmless-base/test.jsonl.gz data --train 400 --held_out 48

Writes ``train.jsonl`` and ``held_out.jsonl``. The rows are drawn at random, and rows with the same first human turn go
to the same side: HH has several pairs from one conversation.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from pathlib import Path

SOURCE = (
    "get it from the data set Anthropic/hh-rlhf on the Hugging Face hub (harmless-base/test.jsonl.gz, MIT licence; it "
    "holds offensive text)"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a .jsonl or .jsonl.gz file with the columns chosen and rejected")
    parser.add_argument("output", type=Path, help="the folder for the two files")
    parser.add_argument("--train", type=int, default=400, help="pairs to train on")
    parser.add_argument("--held_out", type=int, default=48, help="pairs to hold out")
    parser.add_argument("--longest", type=int, default=600, help="skip transcripts of more characters: they are slow")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.source.is_file():
        print(f"error: {options.source} is not there: {SOURCE}", file=sys.stderr)
        return 2
    opener = gzip.open if options.source.suffix == ".gz" else open
    with opener(options.source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    short = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) <= options.longest]
    conversations: dict[str, list[dict[str, str]]] = {}
    for row in short:
        conversations.setdefault(row["chosen"].split("\n\nAssistant:")[0], []).append(row)
    order = sorted(conversations)
    random.Random(options.seed).shuffle(order)
    parts: dict[str, list[dict[str, str]]] = {"held_out": [], "train": []}
    wanted = {"held_out": options.held_out, "train": options.train}
    for key in order:
        part = next((name for name in parts if len(parts[name]) < wanted[name]), None)
        if part is None:
            break
        parts[part] += conversations[key]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part_rows in parts.items():
        if len(part_rows) < wanted[name]:
            print(f"error: only {len(part_rows)} of {wanted[name]} {name} pairs are short enough", file=sys.stderr)
            return 1
        path = options.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part_rows), encoding="utf-8")
        print(f"{path}: {len(part_rows)} pairs")
    print(f"{len(rows) - len(short)} of {len(rows)} pairs are longer than {options.longest} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
