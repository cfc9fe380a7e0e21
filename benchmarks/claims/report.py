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
#: (what it is, column, factor of how much lower it is than the control's)
OVERVIEW = (
    ("How much lower than the control's the log-loss is, thousandths of a nat (95 % interval of a t test over populations).",
     "log_loss", 1000),
    ("The same of the log-loss's macro average over groups.", "log_loss_macro_group", 1000),
    ("How much higher than the control's the win rate is, in points.", "win_rate.all", -100),
    ("The same of the smaller group's win rate.", "win_rate.smaller", -100),
)  # fmt: skip
TITLES = {
    "strength": "People differ in strength: cv of β = {level:g}",
    "direction": "Three in ten people want something else: λ = {level:g}",
    "noise": "A share of {level:g} of the choices is reversed; everybody is alike",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    table = read(parser.parse_args().output)
    print(f"### All populations\n\n{overview(table)}\n\n### Learned and true cv\n\n{spreads(table)}\n")
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
    wide = {v: pivot(rows, v) for v in LOSSES}
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


def overview(table: pd.DataFrame) -> str:
    """Differences to the control on the same population, by what people differ in."""
    homogeneous = (table.kind == "strength") & (table.level == 0)
    parts = {
        "nobody differs": table[homogeneous],
        "strength": table[(table.kind == "strength") & ~homogeneous],
        "direction": table[table.kind == "direction"],
        "noise": table[table.kind == "noise"],
    }
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    tables = []
    for title, value, scale in OVERVIEW:
        lines = [f"{title}\n", "| method | " + " | ".join(parts) + " |", "|---" * (len(parts) + 1) + "|"]
        for name in dict.fromkeys(table.method):
            cells = [difference(pivot(rows, value) * scale, name, digits=1) for rows in parts.values()]
            if any(cell != "–" for cell in cells):
                lines.append(f"| {name} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    lines = [
        "By how many percent the margin's macro average over groups exceeds its micro average, under the same policy.\n",
        "| method | " + " | ".join(parts) + " |",
        "|---" * (len(parts) + 1) + "|",
    ]
    for name in dict.fromkeys(table.method):
        own = [rows[rows.method == name] for rows in parts.values()]
        excess = [f"{100 * (rows.margin_macro_group / rows.margin - 1).mean():.1f}" for rows in own]
        if any(cell != "nan" for cell in excess):
            lines.append(f"| {name} | {' | '.join(excess)} |".replace("nan", "–"))
    return "\n\n".join(["Populations: " + ", ".join(map(count_of, parts.items())) + ".", *tables, "\n".join(lines)])


def count_of(part: tuple[str, pd.DataFrame]) -> str:
    name, rows = part
    return f"{len(rows[['level', 'seed']].drop_duplicates())} ({name})"


def spreads(table: pd.DataFrame) -> str:
    """The cv that training ends with, and that of the posteriors on held-out margins, beside the true one."""
    lines = [
        "Means over populations of the training law's cv, and of the posterior means from held-out margins, every choice by "
        "itself and person by person; in brackets in how many populations the 95 % interval holds the true cv.\n",
        "| people differ in | true cv of β | method | training | posterior, single choices | posterior, panels |",
        "|---" * 6 + "|",
    ]
    for (kind, level), rows in table[table.cv_panel.notna()].groupby(["kind", "level"]):
        true = level if kind == "strength" else 0.0
        for name in (n for n in dict.fromkeys(rows.method) if n == CONTROL or n.startswith("MixDPO")):
            own = rows[rows.method == name]
            cells = []
            for value in ("cv_single", "cv_panel"):
                # A posterior of a number that can't be negative never holds 0 itself: 0.05 is taken for it.
                low, high = own[f"{value}_low"], own[f"{value}_high"]
                held = ((low <= max(true, 0.05)) & (high >= true)).sum()
                cells.append(f"{own[value].mean():.2f} ({held} of {len(own)})")
            lines.append(
                f"| {kind} {level:g} | {true:g} | {name} | {own.cv_training.mean():.2f} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def pivot(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """A value by population and method."""
    return rows.pivot_table(index=["kind", "level", "seed"], columns="method", values=value)


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


def difference(wide: pd.DataFrame, name: str, digits: int = 4) -> str:
    """How much lower a value is than the control's on the same populations."""
    if CONTROL not in wide or name == CONTROL or name not in wide:
        return "–"
    gain = (wide[CONTROL] - wide[name]).dropna().to_numpy()
    if len(gain) < 2:
        return f"{gain.mean():.{digits}f}" if len(gain) else "–"
    half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return f"{gain.mean():.{digits}f} ({gain.mean() - half:.{digits}f} to {gain.mean() + half:.{digits}f})"


if __name__ == "__main__":
    main()
