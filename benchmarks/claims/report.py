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
LOSSES = ("log_loss", "log_loss_macro", "log_loss_macro_group")
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
    print(f"### How the held-out choices are explained\n\n{explanations(table)}\n")


def read(path: Path) -> pd.DataFrame:
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill; run.py makes it again
            rows.append(json.loads(line))
    table = pd.json_normalize(rows).drop_duplicates(["kind", "level", "seed", "method"])
    for name in ("cv_single", "cv_panel"):
        values = [v if isinstance(v, list) else [np.nan] * 3 for v in table[name]]  # a mixture over people has no cv
        table[[name, f"{name}_low", f"{name}_high"]] = values
    return table


def markdown(rows: pd.DataFrame) -> str:
    """One population's table: a row for each method."""
    seeds = rows.seed.nunique()
    names = list(dict.fromkeys(rows.method))
    lines = [
        f"{seeds} population{'s' if seeds > 1 else ''}.\n",
        "| method | log-loss | less than the control's | macro, by people | macro, by groups | scale fitted "
        "| accuracy (worse group) | margin, micro | macro, by people | macro, by groups "
        "| win rate (smaller group) | cv, training | cv, single posterior (95 %) | cv, panel posterior (95 %) | ms a step |",
        "|---" * 15 + "|",
    ]
    wide = {v: rows.pivot_table(index="seed", columns="method", values=v) for v in LOSSES}
    for name in names:
        own = rows[rows.method == name]
        mean = own.select_dtypes("number").mean()
        lines.append(
            f"| {name} | {mean.log_loss:.4f} | {' | '.join(difference(wide[v], name) for v in LOSSES)} "
            f"| {mean.log_loss_scaled:.4f} | {mean.accuracy:.3f} ({mean.accuracy_worst:.3f}) "
            f"| {mean.margin:.2f} | {mean.margin_macro:.2f} | {mean.margin_macro_group:.2f} "
            f"| {mean['win_rate.all']:.3f} ({mean['win_rate.smaller']:.3f}) | {mean.cv_training:.2f} "
            f"| {mean.cv_single:.2f} ({mean.cv_single_low:.2f} to {mean.cv_single_high:.2f}) "
            f"| {mean.cv_panel:.2f} ({mean.cv_panel_low:.2f} to {mean.cv_panel_high:.2f}) | {1000 * mean.seconds:.0f} |"
        )
    return "\n".join(lines).replace("nan (nan to nan)", "–").replace("nan (nan)", "–").replace("nan", "–")


def explanations(table: pd.DataFrame) -> str:
    """Whether a spread of strengths or label noise predicts people who were left out better, population by population."""
    lines = [
        "Differences of the expected log predictive density of all choices of a person who is left out, nats; in brackets the "
        "standard error.\n",
        "| population | seed | margins of | a spread rather than one strength | a spread rather than label noise | p (cv = 0) |",
        "|---|---|---|---|---|---|",
    ]
    for row in table[table["explained.fixed"].notna()].sort_values(["kind", "level", "seed"]).to_dict("records"):
        over_fixed = row["explained.lognormal"] - row["explained.fixed"]
        lines.append(
            f"| {row['kind']} {row['level']:g} | {row['seed']} | {row['method']} | {over_fixed:.1f} "
            f"| {row['explained.spread_over_noise']:.1f} ({row['explained.spread_over_noise_se']:.1f}) "
            f"| {row['explained.p_value']:.2g} |"
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
