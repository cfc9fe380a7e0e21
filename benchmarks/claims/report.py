"""Tables of what ``run.py`` wrote, as Markdown.

    python benchmarks/claims/report.py OUTPUT.jsonl > report.md

Means over the populations (seeds) of each kind and level. Differences are paired: on the same population, to DPO with a learned
beta; in brackets the 95 % interval of a t test over populations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

CONTROL = "DPO, β learned"
TITLES = {
    "strength": "People differ in strength: cv of β = {level:g}",
    "direction": "Three in ten people want something else: λ = {level:g}",
    "noise": "A share of {level:g} of the choices is reversed; everybody is alike",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    table = read(parser.parse_args().output)
    for kind in TITLES:
        for level, rows in table[table.kind == kind].groupby("level"):
            print(f"### {TITLES[kind].format(level=level)}\n\n{markdown(rows)}\n")


def read(path: Path) -> pd.DataFrame:
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill; run.py makes it again
            rows.append(json.loads(line))
    table = pd.json_normalize(rows)
    for name in ("cv_single", "cv_panel"):
        table[[name, f"{name}_low", f"{name}_high"]] = table[name].tolist()
    return table


def markdown(rows: pd.DataFrame) -> str:
    """One population's table: a row for each method."""
    seeds = rows.seed.nunique()
    names = list(dict.fromkeys(rows.method))
    lines = [
        f"{seeds} population{'s' if seeds > 1 else ''}.\n",
        "| method | log-loss | less than the control's | scale fitted | accuracy (worse group) | margin, micro | macro "
        "| win rate (smaller group) | cv, training | cv, panel posterior (95 %) | ms a step |",
        "|---" * 11 + "|",
    ]
    wide = rows.pivot_table(index="seed", columns="method", values="log_loss")
    for name in names:
        own = rows[rows.method == name]
        mean = own.select_dtypes("number").mean()
        lines.append(
            f"| {name} | {mean.log_loss:.4f} | {difference(wide, name)} | {mean.log_loss_scaled:.4f} "
            f"| {mean.accuracy:.3f} ({mean.accuracy_worst:.3f}) | {mean.margin:.2f} | {mean.margin_macro:.2f} "
            f"| {mean['win_rate.all']:.3f} ({mean['win_rate.smaller']:.3f}) | {mean.cv_training:.2f} "
            f"| {mean.cv_panel:.2f} ({mean.cv_panel_low:.2f} to {mean.cv_panel_high:.2f}) | {1000 * mean.seconds:.0f} |"
        )
    return "\n".join(lines)


def difference(wide: pd.DataFrame, name: str) -> str:
    """How much lower the log-loss is than the control's on the same populations."""
    if CONTROL not in wide or name == CONTROL:
        return "–"
    gain = (wide[CONTROL] - wide[name]).dropna().to_numpy()
    if len(gain) < 2:
        return f"{gain.mean():.4f}" if len(gain) else "–"
    half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return f"{gain.mean():.4f} ({gain.mean() - half:.4f} to {gain.mean() + half:.4f})"


if __name__ == "__main__":
    main()
