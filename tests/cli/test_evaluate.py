from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pluralpref.cli.main import main
from pluralpref.data import MarginsTable, read_margins, write_margins
from pluralpref.evaluation import bootstrap_intervals, compare_runs, held_out_metrics, pair_scores
from pluralpref.models import FixedStrength, LogNormalStrength

COLUMNS = ["--group_columns", "age"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs a and b on the same pairs in another order, where we are."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    margins = generator.normal(0.5, 2, 30)
    margins[4] = 0
    for name, law in (("a", LogNormalStrength(mean=0.5, cv=1.0)), ("b", FixedStrength(0.4))):
        order = np.arange(30) if name == "a" else generator.permutation(30)
        law.save_pretrained(tmp_path / name / "strength")
        groups = {
            "row": order.tolist(),
            "age": [("old", "young", None)[i % 3] if i else "very old" for i in order],
            "talk": [int(i) // 4 for i in order],
        }
        table = MarginsTable(torch.tensor(margins[order]), annotator=[f"p{i % 7}" for i in order], groups=groups)
        write_margins(tmp_path / name / "margins.parquet", table)
        margins = margins + generator.normal(0, 0.5, 30)
    return tmp_path


def test_one_run(runs, capsys):
    files = ["--output", "m.json", "--people", "p.csv", "--groups", "g.parquet"]
    assert main(["evaluate", "--run_dir", "a", *COLUMNS, *files]) == 0
    shown = capsys.readouterr().out
    table = read_margins("a/margins.parquet")
    law = LogNormalStrength(mean=0.5, cv=1.0)
    scores = pair_scores(law, table, groups=["age"])
    found = json.loads((runs / "m.json").read_text())
    assert found["metrics"] == pytest.approx(held_out_metrics(law, table, groups=["age"]), rel=1e-5)
    intervals = bootstrap_intervals(scores)
    assert found["bootstrap"] == intervals.attrs
    assert found["intervals"]["log_loss/macro"] == pytest.approx(intervals.loc["log_loss/macro"].to_dict(), rel=1e-5)
    assert found["intervals"]["group/age=old/margins"]["clusters"] == 7
    assert found["intervals"]["group/age=very old/margins"]["low"] is None
    assert found["calibration"]["ties"] == 1
    assert sum(found["calibration"]["count"]) == 29
    assert set(found["calibration_scores"]) == {"mixed", "plug_in"}
    assert [row["metric"] for row in found["worst_groups"]] == ["log_loss", "accuracy", "margins"]
    assert "2000 resamples of 7 clusters (annotator)" in shown
    assert "groups/age/single_pair 1, groups/age/missing 10" in shown
    assert "very old" in shown
    people = pd.read_csv("p.csv")
    assert people["pairs"].sum() == 30
    assert sorted(people["annotator"]) == [f"p{i}" for i in range(7)]
    groups = pd.read_parquet("g.parquet")
    assert groups["group"].tolist() == ["old", "very old", "young", "missing"]
    assert groups["single_pair"].tolist() == [False, True, False, False]
    assert {"margins_low", "margins_high"} <= set(groups.columns)


def test_two_runs_are_compared_with_the_first(runs, capsys):
    files = ["--output", "m.json", "--people", "p.csv", "--groups", "g.csv"]
    assert main(["evaluate", "--run_dir", "a", "b", *COLUMNS, *files, "--num_resamples", "200", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "differences to a, pairs matched by their keys" in shown
    found = json.loads((runs / "m.json").read_text())
    assert set(found["runs"]) == {"a", "b"}
    laws = {"a": LogNormalStrength(mean=0.5, cv=1.0), "b": FixedStrength(0.4)}
    scores = {n: pair_scores(law, read_margins(f"{n}/margins.parquet"), groups=["age"]) for n, law in laws.items()}
    expected = compare_runs(scores, num_resamples=200, seed=3)
    assert found["comparison"] == expected.attrs
    rows = {(row["run"], row["metric"]): row for row in found["differences"]}
    assert set(rows) == set(expected.index)
    for name in ("low", "high", "difference"):
        assert rows["b", "log_loss"][name] == pytest.approx(expected.loc[("b", "log_loss"), name], rel=1e-4)
    assert pd.read_csv("p.csv").groupby("run")["pairs"].sum().to_dict() == {"a": 30, "b": 30}
    assert set(pd.read_csv("g.csv")["run"]) == {"a", "b"}


def test_other_ways_to_name_runs(runs, capsys):
    tables = ["--margins", "a/margins.parquet", "b/margins.parquet"]
    assert main(["evaluate", *tables, "--strength", "a/strength", "--num_resamples", "100"]) == 0
    assert "differences to a/margins.parquet" in capsys.readouterr().out
    laws = ["--strength", "a/strength", "b/strength", "--margins", "a/margins.parquet"]
    assert main(["evaluate", *laws, "--num_resamples", "100", "--key_column", "row", "--cluster_column", "talk"]) == 0
    shown = capsys.readouterr().out
    assert "== b/strength" in shown
    assert "100 resamples of 8 clusters (talk)" in shown


def test_options_leave_parts_out(runs, capsys):
    assert main(["evaluate", "--run_dir", "a", "--num_resamples", "0", "--bins", "0", "--single_choices"]) == 0
    shown = capsys.readouterr().out
    assert "intervals" not in shown
    assert "calibration" not in shown
    assert "macro" not in shown


def test_what_cannot_be_had_is_said(runs, capsys):
    alone = runs / "alone.csv"
    alone.write_text("margin,annotator\n0.0,p\n0.0,p\n")
    assert main(["evaluate", "--strength", "b/strength", "--margins", str(alone), "--output", "m.json"]) == 0
    shown = capsys.readouterr().out
    assert "note: no intervals: intervals need at least two clusters" in shown
    assert "note: no calibration: every margin is 0" in shown
    assert len(json.loads((runs / "m.json").read_text())["notes"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run_dir", "a", "--group_columns", "income"], "no column 'income'; its groups are row, age, talk"),
        (["--run_dir", "a", "--cluster_column", "team"], "--cluster_column: the table has no column 'team'"),
        (["--run_dir", "a", "b", "--key_column", "id"], "--key_column: the table has no column 'id'"),
        (["--run_dir", "a", "--key_column", "row"], "--key_column has no effect on a single run"),
        (["--run_dir", "a", "--groups", "g.csv"], "--groups has no effect without --group_columns"),
        (["--run_dir", "a", "--people", "p.txt"], "--people p.txt: the name must end in .csv or .parquet"),
        (["--run_dir", "a", "--people", "p.csv", "--single_choices"], "--people has no effect without annotators"),
        (["--run_dir", "a", "--num_resamples", "0", "--seed", "1"], "--seed has no effect with --num_resamples 0"),
        (["--run_dir", "a", "--num_resamples", "7"], "num_resamples=7: at least 100"),
        (["--run_dir", "a", "b", "--num_resamples", "0"], "--num_resamples 0: differences of several runs"),
        (["--run_dir", "a", "--level", "95"], "level=95.0: must lie between 0 and 1"),
        (["--run_dir", "a", "a"], "--run_dir a is given twice"),
        (["--run_dir", "a", "b", "--margins", *["a/margins.parquet"] * 3], "2 laws and 3 tables of margins"),
        (["--run_dir", "a", "--output", "a/margins.parquet"], "margins.parquet exists"),
        (["--strength", "a/strength"], "--margins (or --run_dir) is missing"),
        (["--run_dir", "a", "--strength", "b/strength", "--margins", "a/margins.parquet"], "--run_dir has no effect"),
    ],
)
def test_mistakes(runs, capsys, options, message):
    assert main(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err


def test_other_pairs_are_refused(runs, capsys):
    table = read_margins("b/margins.parquet")
    table.groups["row"] = [row + 1 for row in table.groups["row"]]
    write_margins("b/margins.parquet", table)
    assert main(["evaluate", "--run_dir", "a", "b"]) == 2
    assert "1 pairs of run 'a' aren't in run 'b' (0)" in capsys.readouterr().err
