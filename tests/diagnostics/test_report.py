from __future__ import annotations

import base64
import json
import re
import warnings
from html import escape as html_escape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pluralpref.diagnostics import (
    CalibrationResult,
    Report,
    Table,
    compare,
    plot_calibration,
    plot_chains,
    plot_groups,
    plot_margins,
    plot_parameter,
    plot_people,
    plot_strength,
    plot_training,
    predictive_checks,
    write_report,
)
from pluralpref.diagnostics.report import format_number
from pluralpref.errors import ConfigError, DataError, PluralPrefWarning
from pluralpref.inference.posterior import fit_posterior
from pluralpref.models import FixedStrength, GammaStrength, GroupStrength, LogNormalStrength

EVIL = '<script>alert("1")</script>'


class Checker(HTMLParser):
    """Collects resources and text; complains about tags that don't match."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.resources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.resources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "script" not in checker.tags
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in checker.resources)
    return checker


@pytest.fixture(scope="module")
def posterior():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluralPrefWarning)
        return fit_posterior(
            GammaStrength(mean=0.5), torch.randn(100) + 0.4, num_samples=40, num_warmup=30, num_chains=2,
            progress_bar=False,
        )  # fmt: skip


def test_whole_report(posterior, tmp_path):
    rows = [{"step": 1, "loss": 0.69, "beta/cv": 0.5}, {"step": 2, "loss": 0.6, "beta/cv": 0.4, "eval_loss": 0.65}]
    path = write_report(
        tmp_path / "report.html",
        title=f"Run {EVIL}",
        config={"model": EVIL, "seeds": [1, 2]},
        rows={"read": 1200, EVIL: 3},
        training=rows,
        training_law=GammaStrength(mean=0.4, cv=0.3),
        posterior=posterior,
        margins=torch.randn(100),
        metrics={"log_loss": 0.61},
        tables=[Table(["run", "cv"], [[EVIL, (0.1, 0.25)], ["b", None]], "Comparison")],
        figures=[(plot_margins(torch.randn(50)), EVIL)],
        truth=GammaStrength(mean=0.5, cv=0.6).law(),
        notices=[EVIL],
        reproduce="pluralpref demo\n# <b>",
    )
    text = path.read_text(encoding="utf-8")
    checker = check(text)
    assert EVIL not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "0.1000 to 0.2500" in text
    assert "1,200" in text
    headings = re.findall(r"<h2 id=\"s\d+\">([^<]*)</h2>", text)
    assert headings == [
        "Results", "What was run", "Data", "Training", "Held-out choices", "Training law and posterior",
        "What identifies heterogeneity, and what doesn&#x27;t", "How to reproduce",
    ]  # fmt: skip
    images = [value for value in checker.resources if value.startswith("data:")]
    assert len(images) == 8
    for value in images:
        assert base64.b64decode(value.split(",", 1)[1]).startswith(b"\x89PNG\r\n")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    low, high = posterior.interval("beta_cv")
    assert f"{format_number(low)} to {format_number(high)}" in text
    assert any("ess_bulk" in note for note in re.findall(r"<aside[^>]*><p>(.*?)</p>", text))
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture(scope="module")
def grouped():
    """A panel of people with hostile names in groups with hostile names."""
    torch.manual_seed(0)
    code = torch.arange(30).repeat_interleave(8)
    region = [f"{EVIL}north" if c % 2 else "south" for c in code.tolist()]
    h = torch.randn(240) * 2 + 0.5
    strength = GroupStrength([f"{EVIL}north", "south"], LogNormalStrength(mean=0.5), column="region")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluralPrefWarning)
        return fit_posterior(
            strength, h, annotator=[f"{EVIL}{c}" for c in code.tolist()], groups={"region": region}, num_samples=60,
            num_proposals=500, num_chains=2, progress_bar=False,
        )  # fmt: skip


def test_sections_about_people(grouped, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluralPrefWarning)
        found = compare(
            grouped.choices.margins,
            annotator=[grouped.annotators[c] for c in grouped.choices.annotator.tolist()],
            groups=grouped.choices.groups,
            models={f"{EVIL}fixed": FixedStrength(0.5, learned=True), "group": grouped},
            method="laplace",
            num_samples=50,
        )
    calibration = CalibrationResult({EVIL: np.arange(60) % 21}, 20, 60, family="LogNormalStrength", method="laplace")
    people = grouped.beta_given_choices(num_draws=20)
    options = {"people": people, "checks": predictive_checks(grouped, num_draws=40), "calibration": calibration}
    path = write_report(tmp_path / "r.html", title="t", posterior=grouped, comparison=found, **options)
    text = path.read_text(encoding="utf-8")
    check(text)
    assert EVIL not in text
    headings = re.findall(r"<h2 id=\"s\d+\">([^<]*)</h2>", text)
    assert headings == [
        "Held-out choices", "Groups", "People", "Predictive checks", "Models compared", "Calibration of the inference",
        "What identifies heterogeneity, and what doesn&#x27;t",
    ]  # fmt: skip
    low, high = np.quantile(grouped.draws("beta_mean_context")[..., 0], [0.025, 0.975])
    assert f"{format_number(low)} to {format_number(high)}" in text
    table = people.table().sort_values("beta_mean")
    for row in (0, 9, 20, 29):
        assert f">{format_number(table['beta_mean'].iloc[row])}<" in text
    assert f">{format_number(table['beta_mean'].iloc[15])}<" not in text
    for sentence in found.sentences:
        assert html_escape(sentence) in text
    # The record that the command writes says the same.
    record = {**json.loads(json.dumps(found.record())), "drivers": {}}
    again = write_report(tmp_path / "again.html", title="t", posterior=grouped, comparison=record, **options)
    assert again.read_text(encoding="utf-8") == text


def test_figures_of_people_and_groups(grouped, posterior):
    people = grouped.beta_given_choices(num_draws=20)
    (ax,) = plot_people(people, prob=0.5).axes
    means = ax.lines[0].get_ydata()
    assert (np.diff(means) >= 0).all()
    assert means == pytest.approx(np.sort(people.mean))
    segments = np.array(ax.collections[0].get_segments())
    assert np.sort(segments[:, 0, 1]) == pytest.approx(np.sort(people.interval(0.5)[0]))
    (ax,) = plot_groups(grouped).axes
    middle = np.median(grouped.draws("beta_mean_context").reshape(-1, 2), axis=0)
    assert ax.lines[0].get_xdata() == pytest.approx(np.sort(middle))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [grouped.problem.contexts.labels()[i] for i in np.argsort(middle)]
    with pytest.raises(ConfigError, match="no beta_mean_context"):
        plot_groups(posterior)


def test_several_runs(posterior, tmp_path):
    laws = {"a": GammaStrength(mean=0.4, cv=0.3), "b": LogNormalStrength(mean=0.2)}
    path = write_report(tmp_path / "r.html", title="t", training_law=laws, posterior={"a": posterior})
    check(path.read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match="no label in common"):
        write_report(tmp_path / "r.html", title="t", training_law=laws, posterior={"c": posterior, "d": posterior})


def test_minimal_report(tmp_path):
    check(write_report(tmp_path / "r.html", title="t").read_text(encoding="utf-8"))
    with pytest.raises(DataError, match="doesn't exist"):
        write_report(tmp_path / "no" / "r.html", title="t")


def test_table_checks_its_rows():
    with pytest.raises(ConfigError, match="row 1 of a table has 1 values for 2 columns"):
        Table(["a", "b"], [[1, 2], [1]])
    report = Report("t")
    report.add_table(Table(["name", "n"], [["x", 3], ["y", None]]))
    assert '<td class="number">3</td>' in report.html()
    assert "<td>x</td>" in report.html()


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (-0.00123456, "−0.001235"), (123.456, "123.5"), (1e-9, "1.000e-09"),
     (123456.7, "123,457"), (float("nan"), "not a number"), (float("inf"), "∞"), (2.0, "2"), (np.float64(0.5), "0.5000"),
     (0.0, "0")],
)  # fmt: skip
def test_numbers(value, text):
    assert format_number(value) == text


def test_figures_have_labels_and_leave_pyplot_alone(posterior):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures = [
        plot_strength(posterior, GammaStrength(mean=0.4, cv=2.0), truth=LogNormalStrength(mean=0.5).law()),
        plot_strength(training_law=FixedStrength(0.1)),
        plot_parameter(posterior, "beta_cv", truth=0.5),
        plot_margins([0.1, -0.2, 0.0]),
        plot_calibration({"a": GammaStrength(mean=0.4)}, torch.randn(50)),
        plot_chains(posterior),
        plot_training([{"step": 1, "loss": 0.6}]),
    ]
    for figure in figures:
        for ax in figure.axes:
            assert ax.get_xlabel()
            assert ax.get_ylabel()
        figure.canvas.draw()
    assert plt.get_fignums() == before


def test_strength_figure_shows_the_density_it_names(posterior):
    figure = plot_strength(posterior)
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "posterior, median")
    x, y = line.get_data()
    assert np.allclose(y, np.quantile(posterior.density(x), 0.5, axis=0))


def test_figures_refuse_nothing():
    with pytest.raises(ConfigError, match="needs a posterior"):
        plot_strength()
    with pytest.raises(DataError, match="no row has any"):
        plot_training([{"step": 1, "x": 1.0}])
    with pytest.raises(DataError, match="finite"):
        plot_margins([float("nan")])
